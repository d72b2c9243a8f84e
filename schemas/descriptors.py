"""Descriptors: one global descriptor a photo, rows in the order of the segment's images. GeoParquet, float16."""

import pyarrow as pa

from schemas.geoparquet import GEOMETRY_FIELDS


def descriptors_schema(dim: int) -> pa.Schema:
    """Columns of `descriptors.parquet` for descriptors of `dim` numbers, L2-normalised before they were halved."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("descriptor", pa.list_(pa.field("item", pa.float16(), nullable=False), dim), nullable=False),
            *GEOMETRY_FIELDS,
        ]
    )
