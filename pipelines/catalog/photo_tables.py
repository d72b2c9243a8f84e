"""Tables of photos that users bring: CSV, Parquet and GeoParquet.

A table names its photos (`uri`) and may say where, when and in which direction they were taken. Usual other spellings of the
column names are understood and mentioned. Used by `sources`.
"""

import csv
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from pipelines.catalog.claims import Claim
from pipelines.catalog.times import with_dashes
from schemas.errors import CatalogError

ENDINGS: Final = (".csv", ".parquet", ".geoparquet")

SPELLINGS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "uri": (("path", "filepath", "file_path", "file", "filename", "file_name", "image_path"), ("image", "photo", "url", "name")),
    "lat_deg": (("lat", "latitude"), ("y",)),
    "lon_deg": (("lon", "lng", "long", "longitude"), ("x",)),
    "altitude_m": (("alt", "alt_m", "altitude", "elevation"),),
    "heading_deg": (("heading", "compass", "compass_angle", "bearing"),),
    "taken_at": (("time", "timestamp", "captured_at", "datetime", "capture_time"),),
    "sequence_id": (("sequence", "seq", "sequence_key"),),
}
"""Our column names and what others call them. A later group counts only where the earlier ones name no column."""

Column: TypeAlias = pa.ChunkedArray


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One photo of a table."""

    uri: str
    """As written; empty where the table names none."""

    claim: Claim


def read_photo_table(data: bytes, *, name: str, needs_position: bool) -> tuple[list[TableRow], list[str]]:
    """Read a table of photos.

    Args:
        data: the file.
        name: of the file, for messages; its ending says what it is.
        needs_position: refuse a table that has no columns for positions.

    Returns:
        The rows, and notes for the user on how the table was understood.

    Raises:
        CatalogError: it cannot be read, or a column is missing or ambiguous.
    """
    table = _csv(data, name) if name.lower().endswith(".csv") else _parquet(data, name)
    if not len(table):
        raise _refused(name, "it has a header but no rows", "Check how it was made")
    columns = _recognise(table.column_names, name)
    notes = [f"{name}: column `{theirs}` read as {ours}" for ours, theirs in columns.items() if theirs != ours]
    if "uri" not in columns:
        raise _refused(name, f"no column says which file; found {_listed(table)}", "Name one uri, path or file")
    count = len(table)
    given = {ours: table[theirs] for ours, theirs in columns.items()}
    lat_deg, lon_deg = _positions(table, given, name, needs_position=needs_position)
    taken_at, unread = _times(given.get("taken_at"), count)
    if unread:
        notes.append(f"{name}: {unread} times in column `{columns['taken_at']}` are not ISO 8601 and were left out")
    cells = zip(
        _texts(given["uri"], count),
        lat_deg,
        lon_deg,
        _numbers(given.get("altitude_m"), count),
        _numbers(given.get("heading_deg"), count),
        taken_at,
        _texts(given.get("sequence_id"), count),
        strict=True,
    )
    rows = [
        TableRow(
            uri=uri or "",
            claim=Claim(
                source=f"row {row} of {name}",
                lat_deg=lat,
                lon_deg=lon,
                altitude_m=finite(altitude),
                heading_deg=read_heading(heading),
                taken_at=time,
                sequence_id=sequence,
            ),
        )
        for row, (uri, lat, lon, altitude, heading, time, sequence) in enumerate(cells, start=1)
    ]
    return rows, notes


def _csv(data: bytes, name: str) -> pa.Table:
    """Read a CSV with every column as text: names and ids such as 007 keep their zeros."""
    text = _utf8(data, name).lstrip()
    header = text.partition("\n")[0].rstrip("\r")
    delimiter = max(",;\t", key=header.count)
    titles = next(csv.reader([header], delimiter=delimiter), [])
    try:
        return pa.csv.read_csv(
            pa.BufferReader(text.encode()),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(titles, pa.string())),
        )
    except pa.ArrowException as error:
        raise _refused(name, f"not a readable CSV file: {_first_line(error)}", "Repair that line") from error


def _utf8(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refused(name, f"line {line} is not UTF-8 (byte 0x{data[error.start]:02x})", "Save it as UTF-8") from error


def _parquet(data: bytes, name: str) -> pa.Table:
    try:
        return pa.parquet.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise _refused(name, f"not a readable Parquet file: {_first_line(error)}", "Make it again") from error


def _recognise(titles: Sequence[str], name: str) -> dict[str, str]:
    """Find our columns among theirs: our name to theirs."""
    found: dict[str, str] = {}
    for ours, groups in SPELLINGS.items():
        for group in ((ours,), *groups):
            theirs = [title for title in titles if title.strip().lower() in group]
            if len(theirs) > 1:
                raise _refused(name, f"columns {_quoted(theirs)} could both be {ours}", f"Name the right one {ours}")
            if theirs:
                found[ours] = theirs[0]
                break
    return found


Degrees: TypeAlias = list[float | None]


def _positions(table: pa.Table, given: dict[str, Column], name: str, *, needs_position: bool) -> tuple[Degrees, Degrees]:
    """Latitudes and longitudes from their columns, else from the geometry, else unknown."""
    if "lat_deg" in given and "lon_deg" in given:
        return _numbers(given["lat_deg"], len(table)), _numbers(given["lon_deg"], len(table))
    if "lat_deg" in given or "lon_deg" in given:
        raise _refused(name, f"only one of lat_deg and lon_deg; found {_listed(table)}", "Add the other")
    geometry = _geometry_facts(table, name)
    if geometry is not None:
        return _points(table[geometry["column"]], geometry.get("crs"), name)
    if needs_position:
        raise _refused(name, f"no columns lat_deg and lon_deg; found {_listed(table)}", "Add or rename them")
    return [None] * len(table), [None] * len(table)


def _geometry_facts(table: pa.Table, name: str) -> dict[str, Any] | None:
    """Which column holds the geometry and in which reference system; None when there is none."""
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
    column = geo.get("primary_column", "geometry")
    if column not in table.column_names:
        return None
    facts = geo.get("columns", {}).get(column, {})
    if facts.get("encoding", "WKB") != "WKB":
        raise _refused(name, f"geometry encoded as {facts['encoding']}, needed WKB", "Write it with encoding WKB")
    return {"column": column, "crs": facts.get("crs")}


def _points(geometry: Column, crs: dict[str, Any] | None, name: str) -> tuple[Degrees, Degrees]:
    """Read WKB points; null where there is no geometry, NaN where it is no point."""
    cells = geometry.cast(pa.binary()).to_pylist()
    x, y = np.array([_point(cell) for cell in cells]).T
    if crs is not None:
        try:
            x, y = Transformer.from_crs(CRS.from_json_dict(crs), "OGC:CRS84", always_xy=True).transform(x, y)
        except CRSError as error:
            raise _refused(name, f"unknown coordinate reference system: {_first_line(error)}", "Use lon/lat") from error
    known = [cell is not None for cell in cells]
    lon_deg, lat_deg = ([value if math.isfinite(value) else math.nan for value in values.tolist()] for values in (x, y))
    return (
        [lat if there else None for lat, there in zip(lat_deg, known, strict=True)],
        [lon if there else None for lon, there in zip(lon_deg, known, strict=True)],
    )


def _point(wkb: bytes | None) -> tuple[float, float]:
    """Longitude and latitude of a WKB point, with or without Z and M; NaN for anything else."""
    if wkb is None or len(wkb) < 21:
        return math.nan, math.nan
    order = "<" if wkb[0] == 1 else ">"
    kind, x, y = struct.unpack_from(f"{order}Idd", wkb, 1)
    return (x, y) if kind % 1000 == 1 else (math.nan, math.nan)


def _numbers(column: Column | None, count: int) -> list[float | None]:
    """Read numbers; None where the cell is empty, NaN where it holds something else."""
    if column is None:
        return [None] * count
    return [read_number(value) for value in column.to_pylist()]


def read_number(value: Any) -> float | None:
    """Read a cell as number: None where it is empty, NaN where it holds something else. Text may have a decimal comma."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value.replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def finite(value: float | None) -> float | None:
    """Give a number, or None for one that is none."""
    return value if value is not None and math.isfinite(value) else None


def read_heading(value: float | None) -> float | None:
    """Give a heading from 0 to 360; None for a number that is none."""
    return value % 360 if value is not None and -360 <= value <= 360 else None


def _texts(column: Column | None, count: int) -> list[str | None]:
    if column is None:
        return [None] * count
    return [None if value is None or value == "" else str(value) for value in column.to_pylist()]


def _times(column: Column | None, count: int) -> tuple[list[datetime | None], int]:
    """Read times as UTC, and count the cells that hold something else."""
    if column is None:
        return [None] * count, 0
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)  # of nanoseconds only pandas makes objects
    cells = column.to_pylist()
    times = [read_time(cell) for cell in cells]
    return times, sum(time is None and cell not in (None, "") for time, cell in zip(times, cells, strict=True))


def read_time(value: Any) -> datetime | None:
    """Read a cell as time in UTC; one without an offset is UTC already. None for what is no time."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(with_dashes(value.strip()))
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _refused(name: str, found: str, advice: str) -> CatalogError:
    return CatalogError(f"{name}: {found}. Nothing was written. {advice}.")


def _listed(table: pa.Table) -> str:
    return _quoted(table.column_names)


def _quoted(titles: Sequence[str]) -> str:
    return ", ".join(f"`{title}`" for title in titles)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
