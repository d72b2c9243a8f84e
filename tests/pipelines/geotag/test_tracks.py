"""Tracks from GPX files: where somebody was at a time, and files that are refused."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipelines.geotag import tracks
from pipelines.geotag.tracks import read_tracks
from schemas.errors import CatalogError

START = datetime(2026, 6, 1, 8, tzinfo=UTC).timestamp()


def gpx(*points: str, head: str = '<?xml version="1.0" encoding="UTF-8"?>', between: str = "") -> str:
    return (
        f'{head}<gpx version="1.1" creator="by hand" xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>'
        f"{''.join(points)}{between}</trkseg></trk></gpx>"
    )


def point(lat: object, lon: object, time: str | None) -> str:
    return f'<trkpt lat="{lat}" lon="{lon}">{f"<time>{time}</time>" if time else ""}</trkpt>'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "track.gpx"


def written(file: Path, text: str) -> str:
    file.write_text(text)
    return str(file)


def at(file: Path, text: str, *seconds: float) -> list[list[float]]:
    found = read_tracks([written(file, text)]).at(START + np.array(seconds))
    return found[:, :2].tolist()


MINUTE = gpx(
    point(55.7, 13.19, "2026-06-01T08:00:00Z"),
    point(55.7006, 13.19, "2026-06-01T08:01:00Z"),
    point(55.7006, 13.192, "2026-06-01T08:02:00Z"),
)


def test_between_two_points_one_was_between_them(file: Path):
    assert at(file, MINUTE, 0, 30, 60, 90, 120) == [
        pytest.approx(place)
        for place in ([55.7, 13.19], [55.7003, 13.19], [55.7006, 13.19], [55.7006, 13.191], [55.7006, 13.192])
    ]


def test_before_and_after_a_track_and_without_a_time_nothing_is_known(file: Path):
    assert np.isnan(at(file, MINUTE, -1, 121, float("nan"), -365 * 86_400.0)).all()


def test_a_gap_of_more_than_two_minutes_is_none_of_its_business(file: Path):
    gap = gpx(point(55.7, 13.19, "2026-06-01T08:00:00Z"), point(55.7, 13.1901, "2026-06-01T08:02:01Z"))

    assert np.isnan(at(file, gap, 30)).all()
    assert at(file, gap, 0, 121) == [[55.7, 13.19], [55.7, 13.1901]]


def test_two_segments_are_not_joined(file: Path):
    parts = gpx(
        point(55.7, 13.19, "2026-06-01T08:00:00Z"),
        between=f"</trkseg><trkseg>{point(55.7, 13.1901, '2026-06-01T08:00:20Z')}",
    )

    assert np.isnan(at(file, parts, 10)).all()


def test_times_with_an_offset_and_without_one_are_utc(file: Path):
    assert at(file, gpx(point(55.7, 13.19, "2026-06-01T10:00:00+02:00")), 0) == [[55.7, 13.19]]
    assert at(file, gpx(point(55.7, 13.19, "2026-06-01T08:00:00")), 0) == [[55.7, 13.19]]


def test_points_in_any_order_and_twice_are_one_track(file: Path):
    mixed = gpx(
        point(55.7006, 13.19, "2026-06-01T08:01:00Z"),
        point(55.7, 13.19, "2026-06-01T08:00:00Z"),
        point(55.7, 13.19, "2026-06-01T08:00:00Z"),
    )

    assert at(file, mixed, 30) == [pytest.approx([55.7003, 13.19])]


def test_points_without_a_time_or_a_place_on_earth_are_left_out(file: Path):
    odd = gpx(
        point(55.7, 13.19, "2026-06-01T08:00:00Z"),
        point("NaN", 13.19, "2026-06-01T08:00:10Z"),
        point(0, 0, "2026-06-01T08:00:20Z"),
        point(95, 13.19, "2026-06-01T08:00:30Z"),
        point(55.8, 13.19, None),
        point(55.7006, 13.19, "2026-06-01T08:01:00Z"),
    )

    assert at(file, odd, 20) == [pytest.approx([55.7002, 13.19])]


def test_of_two_tracks_the_one_with_more_points_is_believed(file: Path):
    rare = written(
        file.with_name("rare.gpx"), gpx(point(55.7, 13.19, "2026-06-01T08:00:00Z"), point(55.701, 13.19, "2026-06-01T08:02:00Z"))
    )
    dense = written(file, gpx(*(point(55.7, 13.1901, f"2026-06-01T08:00:{second:02}Z") for second in range(0, 60, 5))))

    for files in ([rare, dense], [dense, rare]):
        assert read_tracks(files).at(np.array([START + 32]))[0, :2].tolist() == pytest.approx([55.7, 13.1901])


BOMB = '<?xml version="1.0"?><!DOCTYPE gpx [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE gpx [<!ENTITY a SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not XML",
        "<html><body>404</body></html>",
        gpx(),
        gpx(point(55.7, 13.19, None)),
        gpx(point(0, 0, "2026-06-01T08:00:00Z")),
        gpx(point("north", 13.19, "2026-06-01T08:00:00Z")),
        gpx(point(55.7, 13.19, "yesterday")),
        MINUTE[:200],
        gpx(point(55.7, 13.19, "2026-06-01T08:00:00Z"), head=BOMB, between="<!-- &c; -->"),
        gpx(point(55.7, 13.19, "2026-06-01T08:00:00Z"), head=BOMB, between="<trkpt lat='1' lon='1'><name>&c;</name></trkpt>"),
        gpx(point(55.7, 13.19, "2026-06-01T08:00:00Z"), head=OUTSIDE, between="<trkpt lat='1' lon='1'><name>&a;</name></trkpt>"),
        "<a>" * 200_000,
        "\x00\x01\x02",
    ],
    ids=range(14),
)
def test_what_is_no_track_is_refused_by_name(file: Path, text: str):
    with pytest.raises(CatalogError, match=r"track.gpx: needed a GPX track in UTF-8, found .+ No photo was answered"):
        read_tracks([written(file, text)])


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_refused(file: Path):
    file.write_bytes(MINUTE.encode("utf-16"))
    with pytest.raises(CatalogError, match=r"track.gpx: needed"):
        read_tracks([str(file)])
    with pytest.raises(CatalogError, match=r"other.gpx: needed"):
        read_tracks([str(file.with_name("other.gpx"))])


def test_a_file_without_end_is_not_read_to_its_end(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracks, "MOST_BYTES", 1000)
    with pytest.raises(CatalogError, match="more than 1,000 bytes"):
        read_tracks(["/dev/zero"])
