"""Local features: a Zarr v3 group a segment, one row a photo in the order of the segment's images.

| array       | shape        | dtype   | meaning                                                                  |
|-------------|--------------|---------|--------------------------------------------------------------------------|
| features    | N, K, 128    | float16 | L2-normalised features under the mask, in raster order, then zero rows   |
| patch       | N, K, 2      | uint8   | row and column of each feature's patch, from the top left                |
| reliability | N, K         | uint8   | of that patch, 0 to 255 for 0.0 to 1.0                                    |
| count       | N            | int32   | how many of the K rows are features; the rest is padding                 |

One photo is one chunk, many photos one shard object: a candidate is a small range read. Every chunk carries a crc32c. Zarr
reads a missing chunk as zeros, so readers compare `count` with the features they got, and the receipt lists every object.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float16, UInt8

RELIABILITY_STEPS: Final = 255
"""Reliability is stored as round(r * 255)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalFeatures:
    """The local features of one photo, as they are stored."""

    features: Float16[np.ndarray, "n D"]
    """L2-normalised, raster order."""

    patch: UInt8[np.ndarray, "n 2"]
    """Row and column of each feature's patch."""

    reliability: UInt8[np.ndarray, " n"]
    """Of each feature's patch, 0 to 255."""

    def __len__(self) -> int:
        return len(self.features)
