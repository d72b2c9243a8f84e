"""Tables of photos as people make them."""

import math
import struct
from datetime import UTC, datetime
from typing import Any

import geopandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shapely import Point

from pipelines.catalog.photo_tables import TableRow, read_photo_table
from schemas.errors import CatalogError


def rows_of(text: str | bytes, *, needs_position: bool = True) -> list[TableRow]:
    data = text if isinstance(text, bytes) else text.encode()
    return read_photo_table(data, name="photos.csv", needs_position=needs_position)[0]


def notes_of(text: str) -> list[str]:
    return read_photo_table(text.encode(), name="photos.csv", needs_position=True)[1]


def parquet(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


def rows_of_parquet(data: bytes) -> list[TableRow]:
    return read_photo_table(data, name="photos.parquet", needs_position=True)[0]


def test_every_column_of_a_csv_is_read():
    (row,) = rows_of(
        "uri,lat_deg,lon_deg,altitude_m,heading_deg,taken_at,sequence_id\na.jpg,55.5,13.25,12,-90,2026-05-01T12:00:00+02:00,007\n"
    )

    claim = row.claim
    assert (row.uri, claim.lat_deg, claim.lon_deg, claim.altitude_m, claim.heading_deg) == ("a.jpg", 55.5, 13.25, 12, 270)
    assert (claim.taken_at, claim.sequence_id) == (datetime(2026, 5, 1, 10, tzinfo=UTC), "007")
    assert claim.source == "row 1 of photos.csv"


@pytest.mark.parametrize(
    "header", ["path,lat,lon", "File,Latitude,Longitude", "image,y,x", "name,LAT,lng", "filename, lat ,long"]
)
def test_usual_spellings_are_read_and_mentioned(header: str):
    (row,) = rows_of(f"{header}\na.jpg,55.5,13.25\n")

    assert (row.uri, row.claim.lat_deg, row.claim.lon_deg) == ("a.jpg", 55.5, 13.25)
    theirs = header.split(",")
    assert notes_of(f"{header}\na.jpg,55.5,13.25\n") == [
        f"photos.csv: column `{title}` read as {ours}" for title, ours in zip(theirs, ("uri", "lat_deg", "lon_deg"), strict=True)
    ]


def test_our_own_names_need_no_mention_and_go_before_others():
    text = "uri,name,lat_deg,lon_deg,x,y\na.jpg,Town hall,55.5,13.25,300,400\n"

    (row,) = rows_of(text)

    assert (row.uri, row.claim.lat_deg, notes_of(text)) == ("a.jpg", 55.5, [])


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfuri,lat,lon\na.jpg,55.5,13.25\n",
        b"uri;lat;lon\r\na.jpg;55,5;13,25\r\n",
        b"uri\tlat\tlon\na.jpg\t55.5\t13.25",
        b'\n"uri","lat","lon"\n\n"a.jpg","55.5","13.25"\n\n',
    ],
    ids=["byte order mark", "semicolons and decimal commas", "tabs", "quotes and empty lines"],
)
def test_csv_is_read_in_each_of_its_dialects(data: bytes):
    (row,) = rows_of(data)

    assert (row.uri, row.claim.lat_deg, row.claim.lon_deg) == ("a.jpg", 55.5, 13.25)


def test_names_with_commas_and_line_breaks_survive():
    assert [row.uri for row in rows_of('uri,lat,lon\n"a,b.jpg",1,2\n"new\nline.jpg",1,2\n007,1,2\n')] == [
        "a,b.jpg", "new\nline.jpg", "007",
    ]  # fmt: skip


def test_an_empty_cell_says_nothing_and_nonsense_is_no_number():
    rows = rows_of("uri,lat,lon\na.jpg,,\nb.jpg,north,13\nc.jpg,nan,13\nd.jpg,5,\n")

    assert [row.claim.has_position for row in rows] == [False, True, True, True]
    assert math.isnan(rows[1].claim.lat_deg or 0)
    assert math.isnan(rows[2].claim.lat_deg or 0)
    assert rows[3].claim.lon_deg is None


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2026-05-01T12:00:00Z", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("2026-05-01 12:00:00", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("2026:05:01 12:00:00", datetime(2026, 5, 1, 12, tzinfo=UTC)),
        ("", None),
    ],
)
def test_times_are_read_as_utc_unless_they_say_otherwise(cell: str, expected: datetime | None):
    (row,) = rows_of(f"uri,lat,lon,taken_at\na.jpg,1,2,{cell}\n")

    assert row.claim.taken_at == expected


def test_times_that_cannot_be_read_are_left_out_and_counted():
    text = "uri,lat_deg,lon_deg,time\na.jpg,1,2,yesterday\nb.jpg,1,2,\n"

    assert [row.claim.taken_at for row in rows_of(text)] == [None, None]
    assert notes_of(text)[-1] == "photos.csv: 1 times in column `time` are not ISO 8601 and were left out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "photos.csv: not a readable CSV file: Empty CSV file"),
        ("uri,lat,lon\n", "photos.csv: it has a header but no rows"),
        ("lat,lon\n1,2\n", "photos.csv: no column says which file; found `lat`, `lon`"),
        ("uri,town\na.jpg,Lund\n", "photos.csv: no columns lat_deg and lon_deg; found `uri`, `town`"),
        ("uri,lat\na.jpg,1\n", "photos.csv: only one of lat_deg and lon_deg; found `uri`, `lat`"),
        ("uri,lat,latitude,lon\na.jpg,1,1,2\n", "photos.csv: columns `lat`, `latitude` could both be lat_deg"),
        ("path,file,lat,lon\na.jpg,a.jpg,1,2\n", "photos.csv: columns `path`, `file` could both be uri"),
        ("uri,lat,lat,lon\na.jpg,1,1,2\n", "photos.csv: columns `lat`, `lat` could both be lat_deg"),
        ("uri,lat,lon\na.jpg,1\n", "photos.csv: not a readable CSV file: .*Expected 3 columns, got 2"),
        ("uri,lat,lon\nübergröße.jpg,1,2\n".encode("latin-1"), r"photos.csv: line 2 is not UTF-8 \(byte 0xfc\)"),
        ("uri,lat,lon\n".encode("utf-16"), r"photos.csv: line 1 is not UTF-8 \(byte 0xff\)"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_in_one_line(text: str | bytes, message: str):
    with pytest.raises(CatalogError, match=message) as caught:
        rows_of(text)
    assert "\n" not in str(caught.value)
    assert "Nothing was written." in str(caught.value)


def test_queries_need_no_position():
    (row,) = rows_of("uri,town\na.jpg,Lund\n", needs_position=False)

    assert not row.claim.has_position


def test_parquet_columns_of_any_number_type_are_read():
    taken_at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    data = parquet(
        {
            "uri": ["a.jpg", "b.jpg"],
            "lat_deg": pa.array([55.5, None], pa.float32()),
            "lon_deg": pa.array([13, None], pa.int16()),
            "taken_at": pa.array([taken_at, None], pa.timestamp("ms", tz="Europe/Stockholm")),
            "sequence_id": [4, 5],
        }
    )

    first, second = rows_of_parquet(data)

    assert (first.claim.lat_deg, first.claim.lon_deg, first.claim.taken_at, first.claim.sequence_id) == (55.5, 13, taken_at, "4")
    assert not second.claim.has_position


def test_parquet_nan_is_a_wrong_position_and_not_a_missing_one():
    (row,) = rows_of_parquet(parquet({"uri": ["a.jpg"], "lat": [math.nan], "lon": [13.0]}))

    assert row.claim.has_position


def test_what_is_no_parquet_is_refused():
    with pytest.raises(CatalogError, match=r"photos.parquet: not a readable Parquet file"):
        rows_of_parquet(b"PAR1 but not really")


def test_points_of_a_geoparquet_made_by_geopandas_are_read(tmp_path):
    frame = geopandas.GeoDataFrame({"uri": ["a.jpg", "b.jpg"]}, geometry=[Point(13.25, 55.5), None], crs="EPSG:4326")
    frame.to_parquet(tmp_path / "photos.parquet")

    first, second = rows_of_parquet((tmp_path / "photos.parquet").read_bytes())

    assert (first.claim.lat_deg, first.claim.lon_deg) == (55.5, 13.25)
    assert not second.claim.has_position


def test_points_in_metres_are_converted(tmp_path):
    """500 km east, 0 north in UTM zone 31 north is 3 degrees east on the equator."""
    frame = geopandas.GeoDataFrame({"uri": ["a.jpg"]}, geometry=[Point(500_000, 0)], crs="EPSG:32631")
    frame.to_parquet(tmp_path / "photos.parquet")

    (row,) = rows_of_parquet((tmp_path / "photos.parquet").read_bytes())

    assert (row.claim.lat_deg, row.claim.lon_deg) == pytest.approx((0, 3), abs=1e-9)


def test_a_geometry_that_is_no_point_is_a_wrong_position():
    line = struct.pack("<BII4d", 1, 2, 2, 13.0, 55.0, 14.0, 56.0)
    big_endian_point_with_height = struct.pack(">BI3d", 0, 1001, 13.25, 55.5, 80.0)
    data = parquet({"uri": ["a.jpg", "b.jpg"], "geometry": pa.array([line, big_endian_point_with_height], pa.binary())})

    first, second = rows_of_parquet(data)

    assert math.isnan(first.claim.lat_deg or 0)
    assert (second.claim.lat_deg, second.claim.lon_deg) == (55.5, 13.25)


def test_columns_go_before_the_geometry():
    point = struct.pack("<BIdd", 1, 1, 13.0, 55.0)
    (row,) = rows_of_parquet(parquet({"uri": ["a.jpg"], "lat": [1.0], "lon": [2.0], "geometry": pa.array([point], pa.binary())}))

    assert (row.claim.lat_deg, row.claim.lon_deg) == (1, 2)


def test_another_encoding_of_geometry_is_refused():
    geo = '{"primary_column": "geometry", "columns": {"geometry": {"encoding": "point"}}}'

    with pytest.raises(CatalogError, match="geometry encoded as point, needed WKB"):
        rows_of_parquet(parquet({"uri": ["a.jpg"], "geometry": pa.array([b""], pa.binary())}, {"geo": geo}))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Stockholm"])
def test_times_of_every_resolution_are_plain_datetimes(unit: str, zone: str | None):
    """Pandas writes nanoseconds, and is not installed with Folio."""
    taken_at = pa.array([datetime(2026, 5, 1, 12, tzinfo=UTC)]).cast(pa.timestamp(unit, zone))

    (row,) = rows_of_parquet(parquet({"uri": ["a.jpg"], "lat": [1.0], "lon": [2.0], "taken_at": taken_at}))

    assert type(row.claim.taken_at) is datetime
    assert row.claim.taken_at == datetime(2026, 5, 1, 12, tzinfo=UTC)
