"""Is a pair of numbers a position on Earth, and one that somebody knew? The one rule for EXIF, XMP, JSON, names and tables."""

from schemas.reasons import RejectReason


def position_problem(lat_deg: float, lon_deg: float) -> RejectReason | None:
    """Say what is wrong with a position; None when it can be used.

    Args:
        lat_deg: degrees north; NaN where it could not be read.
        lon_deg: degrees east.
    """
    if not (abs(lat_deg) <= 90 and abs(lon_deg) <= 180):  # NaN is never <=
        return RejectReason.POSITION_INVALID
    if lat_deg == 0 and lon_deg == 0:
        return RejectReason.NULL_ISLAND
    return None


def is_own_estimate(method: str) -> bool:
    """Whether a GPSProcessingMethod says that Folio looked the position up, by pixels or between photos.

    Such a position is an answer. Taken for known it would be built into maps, and answers would be measured by answers. One
    that a person gave by hand is known.
    """
    return method.startswith("folio:") and method != "folio: by hand"
