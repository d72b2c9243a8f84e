"""Mapillary image descriptions: named as a source, or lying in a folder or tar of photos."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.mapillary import FILE_NAME, find, read_descriptions
from pipelines.catalog.sources import Catalog, list_photos
from schemas.errors import CatalogError
from tests.pipelines.catalog.photos import jpeg
from tests.pipelines.catalog.test_tars import packed

ERROR = {"error": {"type": "MapillaryGeoTaggingError", "message": "Unable to extract GPS", "vars": {}}, "filetype": "image"}


def described(filename: str, lat: float = 55.5, **more: Any) -> dict[str, Any]:
    return {
        "MAPLatitude": lat,
        "MAPLongitude": 13.25,
        "MAPAltitude": 12.5,
        "MAPCaptureTime": "2026_05_01_12_00_00_250",
        "MAPCompassHeading": {"TrueHeading": 359.5, "MagneticHeading": 1.5},
        "MAPSequenceUUID": "drive-1",
        "MAPOrientation": 1,
        "md5sum": None,
        "filename": filename,
        "filetype": "image",
        **more,
    }


def catalog(source: Path, *, needs_position: bool = False) -> Catalog:
    return list_photos([str(source)], settings=Settings(threads=2), limits=PhotoLimits(), needs_position=needs_position)


def positions(found: Catalog) -> dict[str, float | None]:
    return dict(zip(found.images["uri"].to_pylist(), found.images["lat_deg"].to_pylist(), strict=True))


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Two photos without positions."""
    folder = tmp_path / "drive"
    (folder / "cam1").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(jpeg())
    (folder / "cam1" / "b.jpg").write_bytes(jpeg(shade=20))
    return folder


def describe(folder: Path, entries: Any, name: str = FILE_NAME) -> Path:
    (folder / name).write_text(json.dumps(entries))
    return folder / name


def test_a_description_says_all_that_a_table_can():
    ((row,), notes) = read_descriptions(json.dumps([described("a.jpg")]).encode(), name="d.json")

    claim = row.claim
    assert (row.uri, claim.lat_deg, claim.lon_deg, claim.altitude_m) == ("a.jpg", 55.5, 13.25, 12.5)
    assert (claim.heading_deg, claim.sequence_id, claim.source) == (359.5, "drive-1", "entry 1 of d.json")
    assert claim.taken_at == datetime(2026, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)
    assert notes == []


def test_a_description_may_be_named_as_a_source(drive: Path):
    """The photo that mapillary_tools could not place is a photo all the same."""
    source = describe(drive, [described("a.jpg"), {**ERROR, "filename": str(drive / "cam1" / "b.jpg")}], "mine.json")

    found = catalog(source)

    assert positions(found) == {"a.jpg": 55.5, f"{drive}/cam1/b.jpg": None}
    assert found.notes == ["mine.json: 1 photos that mapillary_tools could not place are taken without what it says"]


def test_a_description_in_a_folder_is_used_for_its_photos(drive: Path):
    describe(drive, [described("a.jpg"), described("./cam1/b.jpg", 60.5), described("gone.jpg")])

    found = catalog(drive, needs_position=True)

    assert positions(found) == {"drive/a.jpg": 55.5, "drive/cam1/b.jpg": 60.5}
    assert found.images["sequence_id"].to_pylist() == ["drive-1", "drive-1"]
    assert found.notes == [f"drive/{FILE_NAME}: describes 2 photos, and 1 that are not there"]


def test_a_description_below_the_folder_speaks_of_what_lies_beside_it(drive: Path):
    describe(drive / "cam1", [described("b.jpg", 60.5), described("a.jpg", 1.5)])

    assert positions(catalog(drive)) == {"drive/a.jpg": None, "drive/cam1/b.jpg": 60.5}


def test_a_description_in_a_tar_is_used_for_its_photos(drive: Path):
    said = json.dumps([described("b.jpg", 60.5)]).encode()
    (drive / "x.tar").write_bytes(packed([("cam1/b.jpg", jpeg()), (f"cam1/{FILE_NAME}", said)]))

    assert positions(catalog(drive / "x.tar")) == {"drive/x.tar/cam1/b.jpg": 60.5}


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("a.jpg", "drive/a.jpg"),
        ("./cam1/../a.jpg", "drive/a.jpg"),
        ("/home/me/import/cam1/b.jpg", "drive/cam1/b.jpg"),
        ("C:\\import\\cam1\\b.jpg", "drive/cam1/b.jpg"),
        ("/drive/a.jpg", "drive/a.jpg"),
        ("back\\slash.jpg", "drive/back\\slash.jpg"),
        ("../a.jpg", None),
        ("cam2/b.jpg", None),
        ("/home/me/gone.jpg", None),
        ("", None),
        ("/", None),
    ],
)
def test_described_photos_are_found_also_in_an_archive_that_moved(filename: str, expected: str | None):
    paths = {"drive/a.jpg", "drive/cam1/b.jpg", "drive/back\\slash.jpg", "a.jpg"}

    assert find(filename, "drive", paths) == expected


def test_entries_of_videos_and_broken_ones_are_counted_and_left_out():
    entries = [described("a.jpg"), {"filename": "v.mp4", "filetype": "gopro"}, {"filename": 7}, 7, described("b.jpg", "north")]

    rows, notes = read_descriptions(json.dumps(entries).encode(), name="d.json")

    assert [row.uri for row in rows] == ["a.jpg"]
    assert notes == ["d.json: 1 entries are of videos and were left out", "d.json: 3 entries cannot be read and were left out"]


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b"[7]", b"[" * 100_000, b'[{"filename": "\xff"}]'], ids=range(7))
def test_what_is_no_description_is_refused_as_a_source_and_skipped_in_a_folder(drive: Path, data: bytes):
    (drive / FILE_NAME).write_bytes(data)

    with pytest.raises(CatalogError, match="needed a list of Mapillary image descriptions"):
        catalog(drive / FILE_NAME)
    found = catalog(drive)
    assert positions(found) == {"drive/a.jpg": None, "drive/cam1/b.jpg": None}
    assert "Its photos were taken without it." in found.notes[0]


def test_wrong_positions_in_a_description_are_rejected_by_entry(drive: Path):
    describe(drive, [described("a.jpg", 95.0)])

    found = catalog(drive, needs_position=True)

    assert f"entry 1 of drive/{FILE_NAME} gives latitude 95, longitude 13.25" in found.rejects["detail"].to_pylist()


@pytest.mark.parametrize("time", ["2026_05_01", "0000_00_00_00_00_00_000", "9999_12_31_23_59_59_000", "soon", ""])
def test_a_time_that_cannot_be_is_none(time: str):
    ((row,), _) = read_descriptions(json.dumps([described("a.jpg", MAPCaptureTime=time)]).encode(), name="d.json")

    assert row.claim.taken_at is None
