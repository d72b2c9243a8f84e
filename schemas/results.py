"""Results: for each query photo its best candidates in final order. One row a candidate; queries in catalog order.

What `evaluate`, `geotag` and `report` know of a search they read here; nothing is searched twice.
"""

from typing import Final

import pyarrow as pa

RESULTS: Final = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),  # image_id of the query photo
        pa.field("rank", pa.int32(), nullable=False),  # 1 is the best
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("lat_deg", pa.float64(), nullable=False),
        pa.field("lon_deg", pa.float64(), nullable=False),
        pa.field("global_rank", pa.int32(), nullable=False),  # by descriptor alone; 1 is the best
        pa.field("cosine", pa.float32(), nullable=False),  # of the descriptors
        pa.field("matches", pa.int32()),  # mutual nearest neighbours; null where it was not re-ranked
        pa.field("local_score", pa.float32()),  # null where it was not re-ranked
        pa.field("score", pa.float32()),  # what the pool is ordered by, falling; null where it was not re-ranked
        # Matched patches for drawing: query row, query column, candidate row, candidate column, flattened, best pairs first.
        pa.field("matched_patches", pa.list_(pa.uint8())),  # null but for rank 1
    ]
)
"""File facts (metadata entry `folio`): map_version, model, trained, grid_side (patches along one side), mode.

Also, for the next run on the same archive (`pipelines/geotag/kept.py`): basis (what all rows rest on; null: not the
same), queries (digest of the `queries.parquet` that they belong to), without_features (queries that damage may have touched)."""
