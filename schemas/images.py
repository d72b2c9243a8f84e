"""Images: the photos of a catalog, and, in a segment, those of them that were encoded. One row a photo.

`uri` is the name a photo has in its source and the identity that `image_id` is made from: as written in a table; below the
folder, led by the folder's own name (`lund/2026/0812.jpg`), for a folder; the full URL for a bucket. `root` is where a relative
`uri` starts; it is not part of the identity, so photos may move to another disk without being encoded again.
"""

import hashlib
from typing import Final

import msgspec
import pyarrow as pa

from schemas.geoparquet import GEOMETRY_FIELDS

IMAGES: Final = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("photo_key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),  # sha256:<hex> of the bytes, or etag:<etag> from a bucket
        pa.field("lat_deg", pa.float64()),  # null only for query photos
        pa.field("lon_deg", pa.float64()),
        pa.field("altitude_m", pa.float64()),
        pa.field("heading_deg", pa.float64()),  # clockwise from north, 0 to 360
        pa.field("taken_at", pa.timestamp("us", tz="UTC")),
        pa.field("sequence_id", pa.string()),
        *GEOMETRY_FIELDS,
    ]
)


def image_id(uri: str) -> str:
    """Name a photo: 32 hex digits of the sha256 of its `uri`. The same in every run and every map."""
    return hashlib.sha256(uri.encode()).hexdigest()[:32]


def photo_key(uri: str, size_bytes: int, checksum: str, *facts: object) -> str:
    """Name one state of a photo: its bytes and what the catalog says of it.

    Args:
        uri: its name.
        size_bytes: its size.
        checksum: sha256 or etag, with the prefix that says which.
        facts: lat_deg, lon_deg, altitude_m, heading_deg, taken_at in microseconds, sequence_id; None where unknown.
            A corrected position therefore is a new key, and a nightly build picks it up.
    """
    return hashlib.sha256(msgspec.json.encode([uri, size_bytes, checksum, *facts])).hexdigest()[:32]
