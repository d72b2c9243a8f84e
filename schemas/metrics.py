"""Metrics: numbers that say how good and how fast, one row a number."""

from typing import Final

import pyarrow as pa

METRICS: Final = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),  # recall, position_error, answered, photos_per_second ...
        pa.field("stage", pa.string(), nullable=False),  # global, reranked, geotag, build, query
        pa.field("at", pa.float64()),  # the k of recall@k, or the percentile of an error; null elsewhere
        pa.field("value", pa.float64(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),  # fraction, m, photos/s, bytes/photo ...
        pa.field("queries", pa.int64(), nullable=False),  # how many the number is over
    ]
)
"""File facts (metadata entry `folio`): radius_m, map_version, model, trained, grid_side, mode."""
