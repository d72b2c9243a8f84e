"""Photos that could not be used, each with a reason a person understands (`schemas/reasons.py`).

A reject never stops a run. `rejects.parquet` lies in each segment (photos that would not decode), in each run's folder (all
rejects of the run, those of the catalog too) and beside the answers of `geotag` and `evaluate`.
"""

from typing import Final

import pyarrow as pa

REJECTS: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("photo_key", pa.string()),  # null when the bytes could not be read
        pa.field("stage", pa.string(), nullable=False),  # catalog, encode, query or train
        pa.field("reason", pa.string(), nullable=False),  # a RejectReason
        pa.field("detail", pa.string(), nullable=False),
    ]
)
