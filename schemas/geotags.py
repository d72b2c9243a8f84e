"""Geotags: where each photo of an archive was taken, or that we do not know. One row a photo. GeoParquet."""

from enum import StrEnum
from typing import Final

import pyarrow as pa

from schemas.geoparquet import GEOMETRY_FIELDS


class GeotagStatus(StrEnum):
    """What became of a photo. Part of the format."""

    ANSWERED = "answered"
    UNKNOWN = "unknown"  # "don't know": no position is better than a wrong one


GEOTAGS: Final = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # a GeotagStatus
        pa.field("reason", pa.string()),  # why unknown, for a person
        pa.field("lat_deg", pa.float64()),  # null when unknown; likewise lon_deg and expected_error_m
        pa.field("lon_deg", pa.float64()),
        pa.field("expected_error_m", pa.float64()),
        pa.field("support", pa.float64(), nullable=False),  # share of the evidence that agrees, 0 to 1
        pa.field("probability", pa.float64()),  # that the best position, given or not, is within 25 m; null: map not calibrated
        pa.field("matched_uri", pa.string()),  # the best candidate, also when unknown; null on an empty answer
        pa.field("matched_image_id", pa.string()),
        pa.field("matches", pa.int32()),
        pa.field("cosine", pa.float32()),
        pa.field("pool_size", pa.int32(), nullable=False),  # candidates that were re-ranked
        pa.field("known_lat_deg", pa.float64()),  # what the photo or table itself says, where it says so
        pa.field("known_lon_deg", pa.float64()),
        pa.field("taken_at", pa.timestamp("us", tz="UTC")),
        *GEOMETRY_FIELDS,
    ]
)
"""File facts (metadata entry `folio`): map_version, model, trained. Format 1 had no probability."""
