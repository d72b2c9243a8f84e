"""Where the sun does not reach.

For one position of the sun, a raster over the town says up to which height above the ground each cell lies in the shadow of
buildings and trees. It serves the ground and the walls alike. Used by `render`.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.catalog.sample_city.conditions import Conditions
from pipelines.catalog.sample_city.town import FigureKind, Town

_CELLS_PER_M: Final = 4
_MARGIN_M: Final = 12.0  # beyond the town stand the buildings across the streets' ends
_DOUBLINGS: Final = 9  # a shadow is followed for 2**9 cells: 128 m
_LOWEST_SUN_DEG: Final = 4.0
_CROWN: Final = 0.27  # radius of a tree's crown as a part of its height


class Shadows:
    """Heights of a town and, for the sun seen last, its shadows."""

    def __init__(self, town: Town) -> None:
        self._heights_m = _rasterise(town)
        self._sun_deg: tuple[float, float] | None = None
        self._shadow_m = self._heights_m

    def height_m(self, x_m: NDArray[np.float32], y_m: NDArray[np.float32], conditions: Conditions) -> NDArray[np.float32]:
        """How high the shadow reaches above the ground at some points of the town; 0 where the sun reaches the ground."""
        self._cast(conditions)
        rows, columns = self._shadow_m.shape
        offset = np.float32(_MARGIN_M * _CELLS_PER_M)
        row = np.clip((y_m * np.float32(_CELLS_PER_M) + offset).astype(np.int32), 0, rows - 1)
        column = np.clip((x_m * np.float32(_CELLS_PER_M) + offset).astype(np.int32), 0, columns - 1)
        shadow_m: NDArray[np.float32] = self._shadow_m.ravel()[row * columns + column]
        return shadow_m

    def _cast(self, conditions: Conditions) -> None:
        """Lower the heights along the sun's rays; each doubling looks twice as far towards the sun."""
        sun_deg = (conditions.sun_azimuth_deg, conditions.sun_elevation_deg)
        if self._sun_deg == sun_deg:
            return
        self._sun_deg = sun_deg
        east, north, up = conditions.to_sun
        level = max(float(np.hypot(east, north)), 1e-6)
        fall_m = max(up / level, float(np.tan(np.deg2rad(_LOWEST_SUN_DEG)))) / _CELLS_PER_M
        shadow = self._heights_m
        for doubling in range(_DOUBLINGS):
            cells = 1 << doubling
            towards = (round(north / level * cells), round(east / level * cells))
            shadow = np.maximum(shadow, _shifted(shadow, *towards) - np.float32(fall_m * cells))
        self._shadow_m = shadow


def _rasterise(town: Town) -> NDArray[np.float32]:
    rows, columns = (int((length + 2 * _MARGIN_M) * _CELLS_PER_M) for length in (town.depth_m, town.width_m))
    heights = np.zeros((rows, columns), np.float32)
    for box in town.buildings:
        area = heights[_cells(box.south_m) : _cells(box.north_m), _cells(box.west_m) : _cells(box.east_m)]
        np.maximum(area, box.style.wall_height_m + 0.5 * box.style.roof_height_m, out=area)
    for figure in town.figures:
        if figure.kind is FigureKind.TREE:
            radius = figure.height_m * _CROWN
            west, south = figure.x_m - radius, figure.y_m - radius
            area = heights[_cells(south) : _cells(south + 2 * radius), _cells(west) : _cells(west + 2 * radius)]
            np.maximum(area, 0.8 * figure.height_m, out=area)
    return heights


def _cells(metres: float) -> int:
    return max(0, round((metres + _MARGIN_M) * _CELLS_PER_M))


def _shifted(raster: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """What lies `rows` up and `columns` right of each cell; nothing beyond the edge."""
    shifted = np.full_like(raster, -np.inf)
    height, width = raster.shape
    if abs(rows) < height and abs(columns) < width:
        shifted[max(-rows, 0) : height - max(rows, 0), max(-columns, 0) : width - max(columns, 0)] = raster[
            max(rows, 0) : height - max(-rows, 0), max(columns, 0) : width - max(-columns, 0)
        ]
    return shifted
