"""Order places along a Hilbert curve, so that places near in the order are near on Earth.

Photos are cut into segments in this order, which keeps the bounding boxes of segments small. Used by `sources` and `maintain`.
Source: Hilbert, Mathematische Annalen 38 (1891); the quadrant-by-quadrant walk of https://en.wikipedia.org/wiki/Hilbert_curve
"""

from typing import Final

import numpy as np
from jaxtyping import Float64, Int64, UInt64

ORDER: Final = 31
"""Bits a coordinate: cells of about 2 cm at the equator, and positions on the curve still fit 62 bits."""


def hilbert_position(lon_deg: Float64[np.ndarray, " n"], lat_deg: Float64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Say how far along the curve over the whole Earth each place lies.

    Args:
        lon_deg: from -180 to 180.
        lat_deg: from -90 to 90.
    """
    return curve_position(_cell(lon_deg, -180, 360), _cell(lat_deg, -90, 180), order=ORDER)


def curve_position(x: Int64[np.ndarray, " n"], y: Int64[np.ndarray, " n"], *, order: int) -> UInt64[np.ndarray, " n"]:
    """Say how far along the curve each cell of a square grid lies.

    Args:
        x: column, from 0 to 2**order - 1.
        y: row, likewise.
        order: bits a coordinate, from 1 to 31.
    """
    position = np.zeros(len(x), dtype=np.uint64)
    for bit in reversed(range(order)):
        right, upper = (x >> bit) & 1, (y >> bit) & 1
        quadrant = (3 * right) ^ upper  # 0, 1, 2, 3 in the order of the walk
        position |= quadrant.astype(np.uint64) << np.uint64(2 * bit)
        # The first quadrant is walked mirrored on one diagonal, the last on the other.
        mask = (1 << bit) - 1
        x, y = x & mask, y & mask
        last = (right == 1) & (upper == 0)
        x, y = np.where(last, mask - x, x), np.where(last, mask - y, y)
        x, y = np.where(upper == 0, y, x), np.where(upper == 0, x, y)
    return position


def _cell(degrees: Float64[np.ndarray, " n"], first: int, span: int) -> Int64[np.ndarray, " n"]:
    cells: Int64[np.ndarray, " n"] = np.floor((degrees - first) / span * 2**ORDER).astype(np.int64)
    return cells.clip(max=2**ORDER - 1)
