"""When a photo was taken: the one reading of times for EXIF, XMP, JSON, names and tables.

A clock that says no offset from UTC gives a `datetime` without a time zone. `sources` settles that last: where nothing better is
known it is read as UTC, so that photos of one camera stay in order and as far apart as they were taken.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

PLAUSIBLE_YEARS: Final = range(1826, 2200)
"""From the first photograph to far beyond any clock that was set."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def iso_time(text: str) -> datetime | None:
    """Read a date with a time, as ISO 8601 or as EXIF writes it, with colons in the date; in UTC where it gives an offset.

    None for a date alone, for a clock that was never set, and for anything else.
    """
    text = with_dashes(text.strip())
    if not re.match(r"\d{4}-?\d\d-?\d\d[T ]\d", text):
        return None
    try:
        return plausible(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def with_dashes(text: str) -> str:
    """Write the date of a time as ISO 8601 does where EXIF's colons stand."""
    return re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text)


def unix_time(seconds: float) -> datetime | None:
    """Read seconds since 1970; None for zero, which is what software writes that does not know, and for the absurd."""
    try:
        return plausible(EPOCH + timedelta(seconds=seconds)) if seconds else None
    except (OverflowError, ValueError):  # ValueError: NaN
        return None


def plausible(time: datetime) -> datetime | None:
    """Give a time in UTC, or without a time zone as before; None where no photo can be of that year."""
    if time.year not in PLAUSIBLE_YEARS:
        return None
    return time if time.tzinfo is None else time.astimezone(UTC)
