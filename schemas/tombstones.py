"""Tombstones: photos that were taken down and must never come back. One row a photo.

Only digests, so that the list does not itself keep what it is about: `image_id` and `photo_key` are digests of the photo's name
and state. `tombstones/<digest>.parquet`; a manifest names all that hold.
"""

from typing import Final

import pyarrow as pa

TOMBSTONES: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("photo_key", pa.string(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),  # as in images: of the photo's bytes, to know copies under other names
    ]
)
