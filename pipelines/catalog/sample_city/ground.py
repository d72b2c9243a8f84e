"""What the ground of the sample city looks like: asphalt with markings, kerbs, pavement and, inside the blocks, grass.

Computed from the plan for each pixel, so that a town of any size costs no memory. Used by `render`.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.catalog.sample_city.noise import smooth_noise
from pipelines.catalog.sample_city.town import PAVEMENT_M, Street, Town

Array = NDArray[np.float32]

_TILE: Final = 256  # cells along one side of a repeating pattern
_STONE: Final = np.array([1.05, 1.0, 0.95], np.float32)
_GRASS: Final = np.array([0.50, 0.66, 0.32], np.float32)


class Ground:
    """The ground of one town."""

    def __init__(self, town: Town) -> None:
        self._north_south = _Streets(town.streets_ns, town.width_m)
        self._east_west = _Streets(town.streets_ew, town.depth_m)
        rng = np.random.default_rng([town.seed, 1])
        self._grain = rng.standard_normal(_TILE * _TILE, dtype=np.float32)
        self._stains = smooth_noise(_TILE, (9, 21, 60), rng).ravel()

    def texels(self, x_m: Array, y_m: Array, pixel_m: Array) -> NDArray[np.uint32]:
        """Paint some points of the ground.

        Args:
            x_m: (N,) east.
            y_m: (N,) north.
            pixel_m: (N,) size of the pixel on the ground; what is finer fades.

        Returns:
            Packed as in `facades`, material 0, (N,).
        """
        ns_kerb, ns_middle, ns_grey, ns_lined = self._north_south.at(x_m)
        ew_kerb, ew_middle, ew_grey, ew_lined = self._east_west.at(y_m)
        kerb = np.minimum(ns_kerb, ew_kerb)  # metres beyond the kerb; negative on the road
        fine = np.minimum(np.float32(0.12) / pixel_m, 1)
        brightness = np.where(ns_kerb < ew_kerb, ns_grey, ew_grey)
        brightness += 7 * _tiled(self._stains, x_m * 4, y_m * 4) + 7 * fine * _tiled(self._grain, x_m * 12, y_m * 12)
        paint = np.maximum(
            _markings(ns_middle, ns_lined, ew_kerb, x_m, y_m, ns_kerb, pixel_m),
            _markings(ew_middle, ew_lined, ns_kerb, y_m, x_m, ew_kerb, pixel_m),
        )
        brightness += paint * (215 - brightness)
        texels: NDArray[np.uint32] = brightness.astype(np.uint32) * np.uint32(0x010101)
        beside = np.flatnonzero(kerb >= 0)
        texels[beside] = self._pavement(x_m[beside], y_m[beside], kerb[beside], fine[beside])
        return texels

    def _pavement(self, x_m: Array, y_m: Array, kerb: Array, fine: Array) -> NDArray[np.uint32]:
        """Kerb stones, slabs and, beyond them, grass."""
        x, y = x_m / np.float32(0.75), y_m / np.float32(0.75)
        slab = 152 + 8 * _tiled(self._grain, x, y) * fine
        slab -= 38 * fine * ((_phase(x) < 0.07) | (_phase(y) < 0.07))
        slab[kerb < 0.22] = 182
        tint = np.where(kerb > PAVEMENT_M + 0.3, _GRASS[:, None], _STONE[:, None])
        red, green, blue = (slab * tint).astype(np.uint32)
        texels: NDArray[np.uint32] = red | green << 8 | blue << 16
        return texels


class _Streets:
    """Parallel streets, to be asked for by their coordinate across."""

    def __init__(self, streets: tuple[Street, ...], extent_m: float) -> None:
        self._centre = np.array([street.centre_m for street in streets], np.float32)
        self._road_half_width = np.array([street.road_half_width_m for street in streets], np.float32)
        self._grey = np.array([street.grey for street in streets], np.float32)
        self._lined = np.array([street.lined for street in streets], np.float32)
        metres = np.arange(int(extent_m) + 1, dtype=np.float32) + np.float32(0.5)
        self._nearest = np.abs(metres[:, None] - self._centre).argmin(axis=1)  # (metre,)

    def at(self, across_m: Array) -> tuple[Array, Array, Array, Array]:
        """Metres beyond the kerb, metres from the middle, brightness and whether it is lined, of the nearest street."""
        street = self._nearest[np.clip(across_m.astype(np.int32), 0, len(self._nearest) - 1)]
        middle = np.abs(across_m - self._centre[street])
        return middle - self._road_half_width[street], middle, self._grey[street], self._lined[street]


def _markings(
    middle: Array, lined: Array, crossing_kerb: Array, across_m: Array, along_m: Array, kerb: Array, pixel_m: Array
) -> Array:
    """How much of each pixel is white paint: a broken middle line, and zebra stripes before each crossing."""
    line: Array = np.clip((np.float32(0.09) - middle) / pixel_m + np.float32(0.5), 0, 1) * np.minimum(1, 0.15 / pixel_m)
    line *= lined * (crossing_kerb > 6) * (_phase(along_m / np.float32(6)) < 0.5)
    zebra = (crossing_kerb > 1.2) & (crossing_kerb < 4.0) & (kerb < -0.3) & (_phase(across_m) < 0.5)
    stripes: Array = zebra * np.clip(np.float32(0.25) / pixel_m, 0.4, 1)
    return np.maximum(line, stripes) * np.float32(0.85)


def _tiled(tile: Array, x: Array, y: Array) -> Array:
    """Look up a repeating pattern that has one value for each unit square."""
    return tile[(x.astype(np.int32) & (_TILE - 1)) * _TILE + (y.astype(np.int32) & (_TILE - 1))]


def _phase(x: Array) -> Array:
    """How far each number is beyond the whole number below it."""
    whole: Array = np.floor(x)
    return x - whole
