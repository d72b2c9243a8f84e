"""Pictures of facades, painted when first seen and kept in several sizes.

A far wall covers few pixels; picking single texels of the full picture would make it flicker, so each picture is also kept halved
again and again: in both directions, and in width alone for walls seen at a sharp angle. All pictures lie in one array, so that
`render` looks up a whole photo with one index array.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.catalog.sample_city.facades import paint_facade, texels_per_m
from pipelines.catalog.sample_city.town import Town

Texels = NDArray[np.uint32]

_HEIGHT_LEVELS: Final = 5
_WIDTH_LEVELS: Final = 6
_MATERIAL: Final = np.uint32(0xFF000000)
_LOW_BITS: Final = np.uint32(0x00010101)


class TexelStore:
    """The pictures of a town's facades.

    Args:
        town: whose facades.
        capacity: texels kept, 4 bytes each, about 100,000 a facade. When they do not suffice, all facades are forgotten and
            painted anew on sight.
    """

    def __init__(self, town: Town, *, capacity: int) -> None:
        self._town = town
        facades = len(town.facades)
        self._per_m = np.array([texels_per_m(facade.face) for facade in town.facades], np.float32)
        self._texels = np.zeros(capacity, np.uint32)  # the system hands out the memory page by page as it is written
        self._used = 0
        self._painted = np.zeros(facades, bool)
        self._first = np.zeros((facades, _HEIGHT_LEVELS, _WIDTH_LEVELS), np.int32)
        self._shape = np.zeros((facades, 2), np.int32)

    def look_up(
        self,
        facade_id: NDArray[np.intp],
        along: NDArray[np.float32],
        height_m: NDArray[np.float32],
        column_m: NDArray[np.float32],
        row_m: NDArray[np.float32],
    ) -> Texels:
        """Pick the texels of a block of pixels whose columns see one facade each.

        Args:
            facade_id: (columns,).
            along: (columns,), from 0 at the facade's start to 1 at its end.
            height_m: (rows, columns) above the ground; below it or above the picture, the nearest row is taken.
            column_m: (columns,) metres of wall from one column to the next.
            row_m: (columns,) metres of wall from one row to the next.

        Returns:
            (rows, columns).
        """
        self._paint(np.unique(facade_id))
        per_m = self._per_m[facade_id]
        height_level = _level(row_m * per_m, _HEIGHT_LEVELS)
        width_level = np.maximum(_level(column_m * per_m, _WIDTH_LEVELS), height_level)
        rows, columns = (self._shape[facade_id] >> np.stack([height_level, width_level], axis=1)).T
        column = np.minimum((along * columns).astype(np.int32), columns - 1)
        start = self._first[facade_id, height_level, width_level] + column
        row = (height_m * (per_m / (1 << height_level)).astype(np.float32)).astype(np.int32)
        np.clip(row, 0, rows - 1, out=row)
        row *= columns
        row += start
        return self._texels[row]

    def _paint(self, facade_ids: NDArray[np.intp]) -> None:
        """Make sure that these facades are kept."""
        missing = self._pictures(facade_ids[~self._painted[facade_ids]])
        if self._used + _room(missing) > len(self._texels):
            self._painted[:] = False
            self._used = 0
            missing = self._pictures(facade_ids)
            if _room(missing) > len(self._texels):
                raise ValueError(
                    f"facade_texels={len(self._texels):,} is too small: one photo shows facades of {_room(missing):,} texels"
                )
        for facade_id, picture in missing.items():
            self._keep(facade_id, picture)

    def _pictures(self, facade_ids: NDArray[np.intp]) -> dict[int, Texels]:
        facades = [self._town.facades[facade_id] for facade_id in facade_ids.tolist()]
        return {
            facade.facade_id: paint_facade(
                facade.style,
                width_m=facade.width_m,
                face=facade.face,
                rng=np.random.default_rng([self._town.seed, facade.facade_id]),
            )
            for facade in facades
        }

    def _keep(self, facade_id: int, picture: Texels) -> None:
        self._shape[facade_id] = picture.shape
        self._painted[facade_id] = True
        for height_level, width_level, size in _sizes(picture):
            self._first[facade_id, height_level, width_level] = self._used
            self._texels[self._used : self._used + size.size] = size.ravel()
            self._used += size.size


def _room(pictures: dict[int, Texels]) -> int:
    """Texels that pictures take in all their sizes: less than three times their own."""
    return 3 * sum(picture.size for picture in pictures.values())


def _level(texels_per_pixel: NDArray[np.float32], levels: int) -> NDArray[np.int32]:
    """How often to halve so that a pixel covers about one texel."""
    return np.clip(np.log2(texels_per_pixel) + np.float32(0.4), 0, levels - 1).astype(np.int32)


def _sizes(picture: Texels) -> Iterator[tuple[int, int, Texels]]:
    """All kept sizes, each with how often its height and its width were halved; width at least as often as height."""
    square = picture
    for height_level in range(_HEIGHT_LEVELS):
        narrow = square
        for width_level in range(height_level, _WIDTH_LEVELS):
            yield height_level, width_level, narrow
            if width_level + 1 < _WIDTH_LEVELS:
                narrow = _average(narrow[:, 0::2], narrow[:, 1::2])
        if height_level + 1 < _HEIGHT_LEVELS:
            rows = _average(square[0::2], square[1::2])
            square = _average(rows[:, 0::2], rows[:, 1::2])


def _average(first: Texels, second: Texels) -> Texels:
    """Average the colours of two packed texels, byte by byte, and keep the material of the first."""
    differing = first ^ second
    colour = (first & second) + ((differing & ~_LOW_BITS & ~_MATERIAL) >> np.uint32(1)) + (differing & _LOW_BITS & first)
    averaged: Texels = (colour & ~_MATERIAL) | (first & _MATERIAL)
    return averaged
