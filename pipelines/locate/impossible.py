"""Positions that no answer may be: not a number, where broken receivers are, or outside of what a map covers."""

import math
from typing import Final

import numpy as np
from jaxtyping import Float64

from pipelines.catalog.boxes import inside
from pipelines.catalog.positions import position_problem
from schemas.manifest import BBox

MARGIN_M: Final = 1000.0
"""How far outside of the box round its photos a map still says something."""

NULL_ISLAND_DEG: Final = 1e-3
"""So near to latitude 0, longitude 0 there is a buoy."""

METRES_PER_DEGREE: Final = 110_500.0
"""Of latitude, where a degree is shortest."""


def covered_box(lat_deg: Float64[np.ndarray, " m"], lon_deg: Float64[np.ndarray, " m"]) -> BBox | None:
    """Draw the smallest box round the photos of a map, also over the date line, with a margin. None: there are no photos."""
    if not len(lat_deg):
        return None
    margin = MARGIN_M / METRES_PER_DEGREE
    south, north = max(-90.0, float(lat_deg.min()) - margin), min(90.0, float(lat_deg.max()) + margin)
    across = margin / max(math.cos(math.radians(max(abs(south), abs(north)))), 1e-9)
    east_of = np.sort(lon_deg)
    gaps = np.diff(east_of, append=east_of[0] + 360)
    widest = int(gaps.argmax())
    if gaps[widest] <= 2 * across:
        return -180.0, south, 180.0, north
    west, east = float(east_of[(widest + 1) % len(east_of)]) - across, float(east_of[widest]) + across
    return (west + 180) % 360 - 180, south, (east + 180) % 360 - 180, north


def why_impossible(lat_deg: float, lon_deg: float, covered: BBox | None) -> str | None:
    """Say what speaks against a position at all; None: nothing."""
    if not (math.isfinite(lat_deg) and math.isfinite(lon_deg)):
        return "the position found is not a number"
    if max(abs(lat_deg), abs(lon_deg)) < NULL_ISLAND_DEG:
        return "the position found is latitude 0, longitude 0, which stands for none"
    if problem := position_problem(lat_deg, lon_deg):
        return f"the position found cannot be one: {problem.value}"
    if covered is not None and not inside(np.array([lon_deg]), np.array([lat_deg]), covered)[0]:
        return f"the position found lies more than {MARGIN_M / 1000:.0f} km outside of the box round the map's photos"
    return None
