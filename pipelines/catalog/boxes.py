"""Boxes of longitude and latitude, also over the date line."""

import numpy as np

from schemas.manifest import BBox


def parse_box(text: str) -> BBox:
    """Read `west,south,east,north` in degrees.

    Raises:
        ValueError: it is something else.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"a box is west,south,east,north in degrees, got {text!r}") from error
    require_box((west, south, east, north))
    return west, south, east, north


def require_box(box: BBox) -> None:
    """Refuse what is no box on the globe.

    Raises:
        ValueError: so it is.
    """
    west, south, east, north = box
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise ValueError(
            "a box is west,south,east,north in degrees, with south up to north, and west beyond east only across the "
            f"date line; got {west},{south},{east},{north}"
        )


def inside(lon_deg: np.ndarray, lat_deg: np.ndarray, box: BBox) -> np.ndarray:
    """Mark the points in a box, edges included: (n,) bool. 180 and -180 degrees east are the same meridian."""
    west, south, east, north = box
    if west > east:
        east += 360
    turned = [(west <= lon_deg + turn) & (lon_deg + turn <= east) for turn in (-360, 0, 360)]
    return (south <= lat_deg) & (lat_deg <= north) & np.logical_or.reduce(turned)  # type: ignore[no-any-return]


def meet(one: BBox, other: BBox) -> bool:
    """Tell whether two boxes have a point in common."""
    (west, south, east, north), (west_2, south_2, east_2, north_2) = one, other
    east += 360 * (west > east)
    east_2 += 360 * (west_2 > east_2)
    beside = any(west <= east_2 + turn and west_2 + turn <= east for turn in (-360, 0, 360))
    return beside and south <= north_2 and south_2 <= north
