"""Why a photo cannot be used: the codes of `rejects.parquet`, each with its meaning."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class RejectReason(StrEnum):
    """Why a photo cannot be used. The values are part of the format: add new ones, never change one."""

    NO_POSITION = "no-position"
    """Neither EXIF, XMP, file name nor table says where it was taken."""
    POSITION_INVALID = "position-invalid"
    """A position is given, but not one on Earth: NaN, 0/0, latitude beyond 90, longitude beyond 180."""
    NULL_ISLAND = "null-island"
    """The position is exactly 0, 0: the camera had no fix."""
    MISSING = "missing"
    """The catalog names a file that is not there."""
    UNREADABLE = "unreadable"
    """The file is there, but the system or the store refuses to read it."""
    EMPTY_FILE = "empty-file"
    """The file has no bytes."""
    NOT_AN_IMAGE = "not-an-image"
    """The bytes are no picture that can be recognised."""
    UNSUPPORTED_FORMAT = "unsupported-format"
    """A picture in a format Folio does not read, or not here. It reads JPEG, PNG, WebP, TIFF and AVIF, with its extra `archive`
    also HEIC and RAW."""
    TOO_MANY_PIXELS = "too-many-pixels"
    """The header declares more pixels than the limit; it was not decoded."""
    TOO_MANY_BYTES = "too-many-bytes"
    """The file is larger than the limit; it was not read."""
    TRUNCATED = "truncated"
    """The picture ends before its end."""
    DAMAGED = "damaged"
    """The picture does not decode."""
    DECODER_TIMEOUT = "decoder-timeout"
    """Decoding took longer than the limit and was stopped."""
    DECODER_CRASHED = "decoder-crashed"
    """The decoder died of this photo, or asked for more memory than the limit."""
    NO_DESCRIPTOR = "no-descriptor"
    """It decodes, but the network gives zeros or NaN for it, also when asked again. The other photos of its segment are fine."""
    CHANGED = "changed"
    """The file changed between being listed and being encoded. Run the build again."""
    DUPLICATE_NAME = "duplicate-name"
    """Another photo of the same catalog has the same name but is a different file."""
    OUTSIDE_ROOT = "outside-root"
    """The name leads out of the folder it was given for (`..`, an absolute path, a forbidden URL)."""
    TAKEN_DOWN = "taken-down"
    """The photo, or one with the same bytes, was taken down from this map (`folio takedown`). Counted, but in no table: a list
    of what was taken down would itself keep it."""
    GAVE_UP = "gave-up"
    """The workers that held it were lost too often; the other photos of its partition are set aside with it."""


PASSING: Final = frozenset({RejectReason.MISSING, RejectReason.UNREADABLE, RejectReason.CHANGED})
"""Reasons that lie in where a photo was kept and not in its bytes: a disk that went away comes back, so it is tried again."""


def in_words(reasons: Mapping[str, int]) -> str:
    """Say counts by reason in one phrase."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
