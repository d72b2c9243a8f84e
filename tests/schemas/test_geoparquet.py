"""Tables with a position are GeoParquet that others open as it is; photos without a position are nulls in it, not (0, 0)."""

import json
import struct
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import FormatError
from schemas.geoparquet import GEOMETRY_FIELDS, point_columns, read_metadata, with_metadata

NAN = float("nan")
LON_DEG = [13.0, NAN, 14.0, -179.5]
LAT_DEG = [55.0, 55.0, NAN, -16.5]
"""Two whole positions and two halves."""


def places() -> pa.Table:
    geometry, bbox = point_columns(np.array(LON_DEG), np.array(LAT_DEG))
    schema = pa.schema([pa.field("name", pa.string()), *GEOMETRY_FIELDS])
    return with_metadata(pa.Table.from_arrays([pa.array(list("abcd")), geometry, bbox], schema=schema), "images", {"by": "us"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "places.parquet"
    pq.write_table(places(), path)
    return path


def test_half_a_position_is_none_in_both_columns():
    table = places()

    assert [value.is_valid for value in table["geometry"]] == [True, False, False, True]
    assert table["bbox"].to_pylist() == [
        {"xmin": 13.0, "ymin": 55.0, "xmax": 13.0, "ymax": 55.0},
        None,
        None,
        {"xmin": -179.5, "ymin": -16.5, "xmax": -179.5, "ymax": -16.5},
    ]


def test_a_point_is_longitude_then_latitude_in_wkb():
    geometry, _ = point_columns(np.array([13.0]), np.array([55.0]))

    assert geometry[0].as_py() == b"\x01\x01\x00\x00\x00" + struct.pack("<dd", 13.0, 55.0)


def test_the_geo_entry_covers_the_known_points_and_leaves_the_crs_to_its_default():
    geo = json.loads(places().schema.metadata[b"geo"])

    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Point"])
    assert column["bbox"] == [-179.5, -16.5, 13.0, 55.0]
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    assert "crs" not in column  # absent means OGC:CRS84, longitude and latitude


@pytest.mark.parametrize("positions", [[], [NAN, NAN]])
def test_without_a_known_position_there_is_no_box_around_them(positions: list[float]):
    geometry, bbox = point_columns(np.array(positions), np.array(positions))
    table = with_metadata(pa.table([geometry, bbox], schema=pa.schema(GEOMETRY_FIELDS)), "images")

    assert "bbox" not in json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]


def test_geopandas_opens_it_with_the_nulls_as_missing_points(file: Path):
    frame = geopandas.read_parquet(file)

    assert frame.crs.to_string() == "OGC:CRS84"
    assert frame.geometry.isna().tolist() == [False, True, True, False]
    assert (frame.geometry.x[0], frame.geometry.y[0]) == (13.0, 55.0)
    assert (frame.geometry.x[3], frame.geometry.y[3]) == (-179.5, -16.5)


def test_geopandas_reads_only_the_rows_inside_a_box(file: Path):
    assert geopandas.read_parquet(file, bbox=(12, 54, 14, 56))["name"].tolist() == ["a"]


def test_duckdb_opens_it_and_finds_photos_in_a_box_without_an_extension(file: Path):
    found = duckdb.sql(f"select name from '{file}' where bbox.xmin between 12 and 14").fetchall()

    assert found == [("a",)]
    assert duckdb.sql(f"select count(*), count(geometry), count(bbox) from '{file}'").fetchall() == [(4, 2, 2)]


def test_facts_come_back_and_cannot_pose_as_the_kind_or_the_format():
    table = with_metadata(pa.table({"a": [1]}), "rejects", {"kind": "images", "version": 99, "run_id": "r"})

    assert read_metadata(table.schema, "rejects", where="here") == {"kind": "rejects", "version": 1, "run_id": "r"}
    assert b"geo" not in table.schema.metadata


def test_a_table_of_somebody_else_is_refused():
    with pytest.raises(FormatError, match="here: expected a Folio table of kind images, found no Folio metadata"):
        read_metadata(pa.schema([pa.field("uri", pa.string())]), "images", where="here")
