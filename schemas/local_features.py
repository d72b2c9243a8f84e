"""Local features: a Zarr v3 array a segment, one row a photo in the order of the segment's images.

`local_features.zarr` is one array of bytes, shape N x K x B: photos, features of a photo, bytes of a feature. A feature is

| bytes            | meaning                                                                             |
|------------------|-------------------------------------------------------------------------------------|
| D * bits / 8     | its numbers; see below                                                              |
| 1, 1             | row and column of its patch, from the top left                                      |
| 1                | reliability of that patch, 0 to 255 for 0.0 to 1.0                                  |
| 1                | 1; in rows that only fill up to K, where this and all bytes before it are zeros, 0  |

Features come in raster order. The array's attributes say `kind` (`local_features`), `version` (2), `dim` (D) and `precision`:
`int4` and `int8` are codes, whole numbers whose direction is that of the feature (`int4`: -7 to 7, two in a byte, the first in
the lower half, each plus 8); `float16` and `float32` are little-endian and of unit length.

One photo is one chunk, many photos one shard object: a candidate is one small range read. Every chunk carries a crc32c. Zarr
reads a missing chunk as zeros, so readers look for the chunk in the shard's index, and the receipt lists every object.

Format 1 was a group of four arrays, which readers still take: `features` (N, K, D float16), `patch` (N, K, 2 uint8),
`reliability` (N, K uint8) and `count` (N int32: how many of the K rows are features).
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float16, Float32, Int8, UInt8

RELIABILITY_STEPS: Final = 255
"""Reliability is stored as round(r * 255)."""

Precision = Literal["int4", "int8", "float16", "float32"]

BITS: Final[dict[str, int]] = {"int4": 4, "int8": 8, "float16": 16, "float32": 32}
"""Of a number, by precision."""

PLACE_BYTES: Final = 4
"""Of a feature, beside its numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalFeatures:
    """The local features of one photo, as they are stored."""

    features: Int8[np.ndarray, "n D"] | Float16[np.ndarray, "n D"] | Float32[np.ndarray, "n D"]
    """Codes, also of four bits, or L2-normalised features; raster order."""

    patch: UInt8[np.ndarray, "n 2"]
    """Row and column of each feature's patch."""

    reliability: UInt8[np.ndarray, " n"]
    """Of each feature's patch, 0 to 255."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays."""
        return self.features.nbytes + self.patch.nbytes + self.reliability.nbytes


def bytes_per_feature(dim: int, precision: Precision) -> int:
    """Count the stored bytes of a feature of `dim` numbers."""
    return -(-dim * BITS[precision] // 8) + PLACE_BYTES


def pack(photo: LocalFeatures, features_per_photo: int, precision: Precision) -> UInt8[np.ndarray, "K B"]:
    """Write a photo's features as the bytes that are stored.

    Args:
        photo: at most K features, codes if `precision` is of codes, else floats.
        features_per_photo: K.
        precision: how numbers are stored.

    Raises:
        ValueError: the features are too many, or codes where floats are needed or the other way round.
    """
    n, dim = photo.features.shape
    if n > features_per_photo:
        raise ValueError(f"a photo here has at most {features_per_photo} features, got {n}")
    if (photo.features.dtype == np.int8) != precision.startswith("int"):
        raise ValueError(f"features of {photo.features.dtype} cannot be stored as {precision}")
    rows = np.zeros((features_per_photo, bytes_per_feature(dim, precision)), np.uint8)
    numbers = rows[:n, :-PLACE_BYTES]
    if precision == "int4":
        if np.abs(photo.features).max(initial=0) > 7:
            raise ValueError("codes of four bits go from -7 to 7")
        halves = np.full((n, 2 * numbers.shape[1]), 8, np.uint8)
        halves[:, :dim] = photo.features + np.int8(8)
        numbers[:] = halves[:, ::2] | halves[:, 1::2] << 4
    else:
        dtype = np.dtype(precision).newbyteorder("<")
        numbers[:] = np.ascontiguousarray(photo.features.astype(dtype)).view(np.uint8).reshape(n, numbers.shape[1])
    rows[:n, -4:-2], rows[:n, -2], rows[:n, -1] = photo.patch, photo.reliability, 1
    return rows


def unpack(rows: UInt8[np.ndarray, "K B"], dim: int, precision: Precision) -> LocalFeatures:
    """Read a photo's features from the bytes that are stored; the inverse of `pack`.

    Raises:
        ValueError: the bytes are not those of features.
    """
    n = int(rows[:, -1].sum())
    if rows.shape[1] != bytes_per_feature(dim, precision) or n > len(rows) or not (rows[:n, -1] == 1).all() or rows[n:].any():
        raise ValueError(f"{rows.shape} bytes that are no features of {dim} numbers in {precision}")
    numbers = np.ascontiguousarray(rows[:n, :-PLACE_BYTES])
    if precision == "int4":
        halves = np.empty((n, 2 * numbers.shape[1]), np.int8)
        halves[:, ::2], halves[:, 1::2] = numbers & 15, numbers >> 4
        features = halves[:, :dim] - np.int8(8)
    else:
        stored = np.dtype(precision).newbyteorder("<")
        features = numbers.view(stored).astype(np.dtype(precision), copy=False).reshape(n, dim)
    return LocalFeatures(features=features, patch=rows[:n, -4:-2].copy(), reliability=rows[:n, -2].copy())
