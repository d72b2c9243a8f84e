"""Geotags: where each photo of an archive was taken, or that we do not know. One row a photo. GeoParquet."""

from enum import StrEnum
from typing import Final

import pyarrow as pa

from schemas.geoparquet import GEOMETRY_FIELDS


class GeotagStatus(StrEnum):
    """What became of a photo. Part of the format."""

    ANSWERED = "answered"
    UNKNOWN = "unknown"  # "don't know": no position is better than a wrong one
    INTERPOLATED = "interpolated"  # between answered photos of its sequence, not from its own pixels
    ACCEPTED = "accepted"  # by hand: the best position was right after all
    CORRECTED = "corrected"  # by hand: a position that a person gave
    REFUSED = "refused"  # by hand: no position


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
        pa.field("best_lat_deg", pa.float64()),  # the best supported position, given or not; null: none; likewise the two below
        pa.field("best_lon_deg", pa.float64()),
        pa.field("best_error_m", pa.float64()),
        pa.field("sequence_id", pa.string()),  # photos with the same were decided on together, in the order they were taken
        pa.field("duplicate_of", pa.string()),  # query_id of a photo with the same bytes, which was answered in its place
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
"""File facts (metadata entry `folio`): map_version, model, trained.

Format 1 had no probability, format 2 none of the five that follow it."""
