"""Results folders with made-up geotags, and small photos to write them to."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from infra.settings import Settings
from infra.storage import open_storage
from infra.tables import write_table
from schemas.geotags import GEOTAGS
from schemas.images import image_id
from tests.schemas.samples import FACTS, TAKEN_AT, results, with_points

SETTINGS = Settings(threads=1)
LAT_DEG, LON_DEG = 55.7001234, 13.1902345


def geotag_row(uri: str, root: str, **changes: Any) -> dict[str, Any]:
    """An answer with everything that may be known."""
    row = {
        "query_id": image_id(uri),
        "uri": uri,
        "root": root,
        "status": "answered",
        "reason": None,
        "lat_deg": LAT_DEG,
        "lon_deg": LON_DEG,
        "expected_error_m": 12.5,
        "support": 0.875,
        "probability": 0.96875,
        "sequence_id": "walk",
        "matched_uri": 'old town/"1" <ö>.jpg',
        "pool_size": 10,
        "taken_at": TAKEN_AT,
        **changes,
    }
    return {field.name: row.get(field.name) for field in GEOTAGS if field.name not in ("geometry", "bbox")}


def write_geotags(out: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Make a results folder of these rows."""
    storage = open_storage(str(out), SETTINGS)
    write_table(storage, "results.parquet", results(), kind="results", facts=FACTS)
    write_table(storage, "geotags.parquet", with_points([dict(row) for row in rows], GEOTAGS), kind="geotags", facts=FACTS)
    return str(out)


def jpeg(shade: int = 120, **options: Any) -> bytes:
    """A small photo without metadata."""
    data = io.BytesIO()
    Image.new("RGB", (32, 24), (shade % 256, shade // 256 % 256, 90)).save(data, "JPEG", **options)
    return data.getvalue()


def position(photo: bytes) -> tuple[float, float]:
    """What the GPS directory of a photo says, in degrees."""
    gps = Image.open(io.BytesIO(photo)).getexif().get_ifd(ExifTags.IFD.GPSInfo)
    lat_deg, lon_deg = (float(d) + float(m) / 60 + float(s) / 3600 for d, m, s in (gps[2], gps[4]))
    return lat_deg * {"N": 1, "S": -1}[gps[1]], lon_deg * {"E": 1, "W": -1}[gps[3]]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
