"""geotags ▶ GeoJSON (RFC 7946): what web maps, QGIS and editors read without a plug-in."""

import json
from datetime import datetime
from typing import Any

import pyarrow as pa

LEFT_OUT = ("geometry", "bbox", "lat_deg", "lon_deg", "root")


def to_geojson(geotags: pa.Table, facts: dict[str, Any]) -> bytes:
    """Make a FeatureCollection: one point a photo, with a null geometry where the position is unknown.

    Args:
        geotags: rows in the schema of geotags.
        facts: map version and network, kept as a member beside the features.
    """
    features = [_feature(row) for row in geotags.drop_columns(["geometry", "bbox"]).to_pylist()]
    return json.dumps(
        {"type": "FeatureCollection", "folio": facts, "features": features}, ensure_ascii=False, allow_nan=False
    ).encode()


def _feature(row: dict[str, Any]) -> dict[str, Any]:
    known = row["lat_deg"] is not None
    properties = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items() if name not in LEFT_OUT
    }
    geometry = {"type": "Point", "coordinates": [row["lon_deg"], row["lat_deg"]]} if known else None
    return {"type": "Feature", "id": row["query_id"], "geometry": geometry, "properties": properties}
