"""What other programs read is what the geotags say; checked with readers of others."""

import csv
import io
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gpxpy
import pyarrow as pa
import pyogrio
import pytest

from infra.storage import open_storage
from infra.tables import write_table
from pipelines.geotag.writing.exports import NAMES_OF, parse_formats, run_exports, to_gpx, to_hloc, to_kml, to_mapillary
from pipelines.geotag.writing.write import WriteRequest, run_writing
from schemas.errors import CatalogError
from schemas.geotags import GEOTAGS
from schemas.results import RESULTS
from tests.pipelines.geotag.writing.archives import LAT_DEG, LON_DEG, SETTINGS, geotag_row, write_geotags
from tests.schemas.make_golden import GOLDEN
from tests.schemas.samples import FACTS, TAKEN_AT, with_points

ODD = 'k\x01ö,"; <b>.jpg'


def rows() -> list[dict[str, Any]]:
    """Four placed photos of two walks, one of them far south-west and taken first, and one unknown."""
    early = TAKEN_AT - timedelta(minutes=5)
    return [
        geotag_row("a.jpg", "/photos"),
        geotag_row(ODD, "/photos", lat_deg=-33.25, lon_deg=-179.999999, taken_at=early, expected_error_m=None, probability=None),
        geotag_row("b.jpg", "/photos", sequence_id=None),
        geotag_row("c.jpg", "/photos", sequence_id="other walk", taken_at=None, status="interpolated", lon_deg=1e-7),
        geotag_row("d.jpg", "/photos", status="unknown", lat_deg=None, lon_deg=None, expected_error_m=None, reason="nothing"),
    ]


def table() -> pa.Table:
    return with_points(rows(), GEOTAGS)


def test_names_of_formats_come_in_any_number_with_commas_or_without():
    assert parse_formats(["csv,gpx", "KML", "gpx"]) == ("csv", "gpx", "kml")
    assert parse_formats([]) == ()
    with pytest.raises(ValueError, match="no format is called shp, ; there are csv"):
        parse_formats(["shp,"])


def test_a_results_folder_gets_the_formats_asked_for_and_notes_of_what_does_not_fit(tmp_path: Path):
    out = write_geotags(tmp_path / "out", rows())

    summary = run_exports(out, tuple(NAMES_OF), SETTINGS)

    assert [Path(file).name for file in summary.files] == list(NAMES_OF.values())
    assert all(Path(file).stat().st_size or "hloc" in file for file in summary.files)
    assert summary.notes == [
        "mapillary_image_description.json: 1 photos left out: they have no capture time, which Mapillary needs"
    ]
    with pytest.raises(CatalogError, match="nothing to export"):
        run_exports(str(tmp_path / "nothing"), ("csv",), SETTINGS)


def test_pairs_of_a_folder_without_candidates_are_said_to_be_none(tmp_path: Path):
    out = write_geotags(tmp_path / "out", rows())
    write_table(open_storage(out, SETTINGS), "results.parquet", RESULTS.empty_table(), kind="results", facts=FACTS)

    assert run_exports(out, ("hloc",), SETTINGS).notes == [
        "hloc-pairs.txt: empty: no candidates are kept in this folder, as with --redact"
    ]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_geotags_of_every_format_are_exported_and_written_about(tmp_path: Path, version: int):
    out = Path(write_geotags(tmp_path / "out", rows()))
    shutil.copyfile(GOLDEN / f"geotags-{version}.parquet", out / "geotags.parquet")

    summary = run_exports(str(out), tuple(NAMES_OF), SETTINGS)
    planned = run_writing(WriteRequest(out=str(out), kind="sidecar"), SETTINGS)

    assert len(summary.files) == len(NAMES_OF)
    assert planned.photos == 2


def test_csv_has_every_photo_and_every_column_but_the_geometry(tmp_path: Path):
    out = write_geotags(tmp_path / "out", rows())
    run_exports(out, ("csv",), SETTINGS)

    found = list(csv.DictReader(io.StringIO(open_storage(out, SETTINGS).get("geotags.csv").decode(), newline="")))

    assert [row["uri"] for row in found] == [row["uri"] for row in rows()]
    assert set(found[0]) == set(GEOTAGS.names) - {"geometry", "bbox"}
    assert (float(found[0]["lat_deg"]), float(found[0]["lon_deg"])) == (LAT_DEG, LON_DEG)
    assert datetime.fromisoformat(found[0]["taken_at"]) == TAKEN_AT
    assert (found[4]["lat_deg"], found[4]["status"], found[4]["reason"]) == ("", "unknown", "nothing")


def test_gpx_has_a_waypoint_a_photo_and_a_track_a_sequence_in_the_order_of_time(tmp_path: Path):
    data = to_gpx(table())
    parsed = gpxpy.parse(data)

    assert [point.name for point in parsed.waypoints] == ["a.jpg", ODD.replace("\x01", "\ufffd"), "b.jpg", "c.jpg"]
    assert (parsed.waypoints[0].latitude, parsed.waypoints[0].longitude) == (LAT_DEG, LON_DEG)
    assert parsed.waypoints[0].time == TAKEN_AT
    assert parsed.waypoints[0].description == "answered, within 12 m in nine of ten, probability 0.97"
    assert parsed.waypoints[3].description == "interpolated, within 12 m in nine of ten"  # its pixels speak for another place
    assert [track.name for track in parsed.tracks] == ["walk"]
    assert [point.longitude for point in parsed.tracks[0].segments[0].points] == [-179.999999, LON_DEG]
    (tmp_path / "geotags.gpx").write_bytes(data)
    assert len(pyogrio.read_dataframe(tmp_path / "geotags.gpx", layer="waypoints")) == 4
    assert len(pyogrio.read_dataframe(tmp_path / "geotags.gpx", layer="track_points")) == 2
    assert not re.search(rb'(lat|lon)="[^"]*[eE]', data)  # GPX wants decimals


def test_kml_opens_in_gdal(tmp_path: Path):
    (tmp_path / "geotags.kml").write_bytes(to_kml(table()))

    found = pyogrio.read_dataframe(tmp_path / "geotags.kml")

    assert list(found["Name"]) == ["a.jpg", ODD.replace("\x01", "\ufffd"), "b.jpg", "c.jpg"]
    assert (found.geometry[0].x, found.geometry[0].y) == pytest.approx((LON_DEG, LAT_DEG), abs=1e-8)
    assert (found.geometry[1].x, found.geometry[1].y) == pytest.approx((-179.999999, -33.25), abs=1e-8)
    assert list(found["matched_uri"].notna()) == [True, True, True, False]  # the last is not where its pixels were found


MAPILLARY_NEEDS = {"MAPLatitude": float, "MAPLongitude": float, "MAPCaptureTime": str, "filename": str, "filetype": str}
MAPILLARY_KNOWS = {*MAPILLARY_NEEDS, "MAPFilename", "MAPSequenceUUID", "MAPGPSAccuracyMeters"}
"""Of schema/image_description_schema.json of mapillary_tools, which allows no others."""


def test_mapillary_gets_what_its_schema_asks_for_and_photos_without_a_time_are_left_out():
    data, left_out = to_mapillary(table())
    found = json.loads(data)

    assert left_out == 1
    assert [each["filename"] for each in found] == ["/photos/a.jpg", f"/photos/{ODD}", "/photos/b.jpg"]
    for each in found:
        assert {name: type(each[name]) for name in MAPILLARY_NEEDS} == MAPILLARY_NEEDS
        assert set(each) <= MAPILLARY_KNOWS
        assert each["filetype"] == "image"
        assert re.fullmatch(r"[0-9]{4}_[0-9]{2}_[0-9]{2}_[0-9]{2}_[0-9]{2}_[0-9]{2}_[0-9]{3}", each["MAPCaptureTime"])
    assert found[0]["MAPCaptureTime"] == "2026_05_17_08_30_15_250"
    assert found[0]["MAPGPSAccuracyMeters"] == 8.79
    assert found[0]["MAPSequenceUUID"] == found[1]["MAPSequenceUUID"]
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", found[0]["MAPSequenceUUID"])
    assert ("MAPGPSAccuracyMeters" in found[1], "MAPSequenceUUID" in found[2]) == (False, False)


def parse_retrieval(text: str) -> dict[str, list[str]]:
    """As hloc reads pairs: split at blanks, two to a line."""
    found: dict[str, list[str]] = {}
    for line in text.rstrip("\n").split("\n"):
        query, reference = line.split()
        found.setdefault(query, []).append(reference)
    return found


def test_hloc_gets_the_candidates_of_each_photo_best_first_without_names_it_cannot_read():
    geotags = table()
    ids = geotags["query_id"].to_pylist()
    candidate = {"image_id": "i", "root": "", "lat_deg": 1.0, "lon_deg": 2.0, "global_rank": 1, "cosine": 0.5}
    found = [(4, 1, "m/1.jpg"), (0, 2, "m/2.jpg"), (0, 1, "m/3.jpg"), (0, 3, "old town/4.jpg")]
    results = pa.Table.from_pylist(
        [{"query_id": ids[q], "rank": rank, "uri": uri, **candidate} for q, rank, uri in found], RESULTS
    )

    data, left_out = to_hloc(geotags, results)

    assert parse_retrieval(data.decode()) == {"a.jpg": ["m/3.jpg", "m/2.jpg"], "d.jpg": ["m/1.jpg"]}
    assert left_out == 1


def test_times_are_utc():
    assert gpxpy.parse(to_gpx(table())).waypoints[0].time.astimezone(UTC) == TAKEN_AT
    assert b"2026-05-17T08:30:15.250Z" in to_kml(table())
