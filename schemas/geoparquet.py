"""What our Parquet tables have in common: a format number, and GeoParquet 1.1 where there is a position.

Each table carries a metadata entry `folio` = {"kind", "version", "sha256", ...facts of the file} and, with a geometry, `geo` as
GeoParquet 1.1 asks (WKB points, lon/lat in CRS84, a `bbox` covering column), so that GeoPandas, DuckDB and QGIS open it as it
is. Source: https://geoparquet.org/releases/v1.1.0/

`sha256` is the seal of the file, like that of documents (`schemas/manifest.py`): of the whole file with its own 64 digits
replaced by zeros. It stands in the metadata of the Parquet file; the copy of it that Arrow keeps beside it stays blank. Tables of
the first Folio have none.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from schemas.errors import FormatError
from schemas.versions import FORMATS, require_readable

JsonValue = Any

BLANK_SEAL: Final = "0" * 64

BBOX: Final = pa.struct([pa.field(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
"""The covering column: west, south, east, north in degrees."""

GEOMETRY_FIELDS: Final = [pa.field("geometry", pa.binary()), pa.field("bbox", BBOX)]
"""Last in every table with a position. Null where there is none."""


def point_columns(lon_deg: Float64[np.ndarray, " n"], lat_deg: Float64[np.ndarray, " n"]) -> tuple[pa.Array, pa.Array]:
    """Make the `geometry` and `bbox` columns of n points; NaN in either coordinate gives null in both columns."""
    known = np.isfinite(lon_deg) & np.isfinite(lat_deg)
    points = [
        struct.pack("<BIdd", 1, 1, lon, lat) if ok else None  # little-endian, type 1 = Point, x, y
        for lon, lat, ok in zip(lon_deg.tolist(), lat_deg.tolist(), known.tolist(), strict=True)
    ]
    sides = [pa.array(side) for side in (lon_deg, lat_deg, lon_deg, lat_deg)]
    bbox = pa.StructArray.from_arrays(sides, fields=list(BBOX), mask=pa.array(~known))
    return pa.array(points, pa.binary()), bbox


def with_metadata(table: pa.Table, kind: str, facts: Mapping[str, JsonValue] | None = None) -> pa.Table:
    """Attach the `folio` entry of `kind`, not yet sealed, and the `geo` entry where the table has a geometry.

    Args:
        table: rows in the schema of `kind`.
        kind: one of `schemas.versions.FORMATS`.
        facts: what else a reader of this file should know; plain JSON values.
    """
    metadata = {
        "folio": json.dumps({**(facts or {}), "kind": kind, "version": FORMATS[kind], "sha256": BLANK_SEAL}, sort_keys=True)
    }
    if "geometry" in table.column_names:
        metadata["geo"] = json.dumps(_geo_entry(table["bbox"]), sort_keys=True)
    return table.replace_schema_metadata(metadata)


def read_metadata(schema: pa.Schema, kind: str, *, where: str) -> dict[str, JsonValue]:
    """Check that a table is of `kind` in a format we read, and return its `folio` entry without the seal.

    Raises:
        FormatError: not one of our tables, another kind, or a newer format.
    """
    entry = json.loads((schema.metadata or {}).get(b"folio", b"{}"))
    if entry.get("kind") != kind:
        raise FormatError(
            f"{where}: expected a Folio table of kind {kind}, found {entry.get('kind', 'no Folio metadata')}. "
            "Nothing was changed. Check the path."
        )
    require_readable(kind, int(entry.get("version", 0)), where=where)
    return {name: value for name, value in entry.items() if name != "sha256"}


def read_seal(metadata: Mapping[bytes, bytes]) -> str | None:
    """Give the seal of a table of ours from its Parquet metadata; None where it never had one, "" where it had one."""
    if b"folio" not in metadata:  # every Folio wrote this
        return ""
    entry = json.loads(metadata[b"folio"])
    # A damaged name must not pass for a table that never had a seal.
    had_one = any(isinstance(value, str) and len(value) == len(BLANK_SEAL) for value in entry.values())
    return str(entry["sha256"]) if "sha256" in entry else "" if had_one else None


def _geo_entry(bbox: pa.ChunkedArray) -> dict[str, JsonValue]:
    column: dict[str, JsonValue] = {
        "encoding": "WKB",
        "geometry_types": ["Point"],
        "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
    }
    sides = bbox.drop_null().combine_chunks()
    if len(sides):
        x, y = sides.field("xmin").to_numpy(), sides.field("ymin").to_numpy()
        column["bbox"] = [float(x.min()), float(y.min()), float(x.max()), float(y.max())]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
