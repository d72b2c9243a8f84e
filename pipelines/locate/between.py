"""A position between two that are known, by time: of a photo between two photos, or on a track. Never before or after them."""

from dataclasses import dataclass
from typing import Final

from pipelines.locate.position import WGS84

MOST_S: Final = 120.0
"""Known positions further apart in time have nothing between them."""

MOST_M: Final = 300.0
"""Likewise further apart in space."""

MOST_ERROR_M: Final = 100.0
"""What may be further off is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fix:
    """Where something was at a time."""

    seconds: float
    lat_deg: float
    lon_deg: float
    error_m: float
    """Radius meant to hold nine of ten."""


def between(before: Fix, after: Fix, seconds: float, *, speed_mps: float = 0.0) -> Fix | None:
    """Give the position on the straight line at an even speed.

    Args:
        before: known.
        after: known, and not earlier.
        seconds: when.
        speed_mps: how quick one is here usually; the straight line says less where one turned and came back.

    Returns:
        With an error that grows with the way to the nearer of the two. None: not between them, or they are too far apart, or more
        than `MOST_ERROR_M` may be missing.
    """
    if seconds in (before.seconds, after.seconds):
        return before if seconds == before.seconds else after
    took_s = after.seconds - before.seconds
    if not before.seconds <= seconds <= after.seconds or took_s > MOST_S:
        return None
    azimuth, _, apart_m = WGS84.inv(before.lon_deg, before.lat_deg, after.lon_deg, after.lat_deg)
    if apart_m > MOST_M:
        return None
    share = (seconds - before.seconds) / took_s
    quickest_mps = max(speed_mps, apart_m / took_s)
    nearer_s = min(seconds - before.seconds, after.seconds - seconds)
    error_m = before.error_m + share * (after.error_m - before.error_m) + quickest_mps * nearer_s
    if error_m > MOST_ERROR_M:
        return None
    lon_deg, lat_deg, _ = WGS84.fwd(before.lon_deg, before.lat_deg, azimuth, share * apart_m)
    return Fix(seconds=seconds, lat_deg=float(lat_deg), lon_deg=float(lon_deg), error_m=float(error_m))
