"""Coverage: where the photos of a map stand, thinned for drawing. Written beside results so that a report needs no map."""

from typing import Final

import pyarrow as pa

COVERAGE: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("lat_deg", pa.float64(), nullable=False),
        pa.field("lon_deg", pa.float64(), nullable=False),
    ]
)
