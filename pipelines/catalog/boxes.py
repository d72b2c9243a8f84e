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
    _, south, _, north = box
    across = [(west <= lon_deg) & (lon_deg <= east) for west, east in _spans(box)]
    return (south <= lat_deg) & (lat_deg <= north) & np.logical_or.reduce(across)  # type: ignore[no-any-return]


def meet(one: BBox, other: BBox) -> bool:
    """Tell whether two boxes have a point in common."""
    beside = any(west <= east_2 and west_2 <= east for west, east in _spans(one) for west_2, east_2 in _spans(other))
    return beside and one[1] <= other[3] and other[1] <= one[3]


def _spans(box: BBox) -> list[tuple[float, float]]:
    """List the longitudes of a box as intervals within -180 to 180, without arithmetic, which would round."""
    west, _, east, _ = box
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    if any(high == 180 for _, high in spans):
        spans.append((-180.0, -180.0))
    if any(low == -180 for low, _ in spans):
        spans.append((180.0, 180.0))
    return spans
