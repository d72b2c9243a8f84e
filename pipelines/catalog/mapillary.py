"""Mapillary image descriptions: the list that `mapillary_tools process` leaves of a folder's photos, as a table of photos.

Used by `listing`. Source of the form: mapillary/mapillary_tools, types.py; its times are in UTC.
"""

import posixpath
import re
from collections.abc import Set
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from pipelines.catalog.claims import Claim
from pipelines.catalog.photo_tables import TableRow, finite, read_heading
from pipelines.catalog.times import plausible
from schemas.errors import CatalogError

FILE_NAME: Final = "mapillary_image_description.json"
ENDING: Final = ".json"

MAX_BYTES: Final = 512 * 2**20
"""Of the file: about a million photos."""


JSON_ERRORS: Final = (msgspec.DecodeError, RecursionError, ValueError)
"""What msgspec raises; the last one for text that is not UTF-8."""


class _Compass(msgspec.Struct):
    TrueHeading: float | None = None


class _Entry(msgspec.Struct):
    filename: str
    filetype: str = "image"
    error: Any = None
    MAPLatitude: float | None = None
    MAPLongitude: float | None = None
    MAPAltitude: float | None = None
    MAPCaptureTime: str | None = None
    MAPCompassHeading: _Compass | None = None
    MAPSequenceUUID: str | None = None


def read_descriptions(data: bytes, *, name: str) -> tuple[list[TableRow], list[str]]:
    """Read image descriptions.

    A photo that mapillary_tools could not place is a row that says nothing of it: it is as good a photo as any.

    Args:
        data: the file.
        name: of the file, for messages.

    Returns:
        The rows, with file names as written, and notes for the user.

    Raises:
        CatalogError: it is no such list.
    """
    if len(data) > MAX_BYTES:
        raise _refused(name, f"more than {MAX_BYTES:,} bytes")
    try:
        entries = msgspec.json.decode(data, type=list[msgspec.Raw])
    except JSON_ERRORS as error:
        raise _refused(name, f"no list in JSON: {error}") from error
    rows: list[TableRow] = []
    without, videos, unread = 0, 0, 0
    for number, raw in enumerate(entries, start=1):
        try:
            entry = msgspec.json.decode(raw, type=_Entry)
        except JSON_ERRORS:
            unread += 1
            continue
        if entry.filetype != "image":
            videos += 1
        else:
            without += entry.error is not None
            rows.append(TableRow(uri=entry.filename, claim=_claim(entry, f"entry {number} of {name}")))
    if not rows:
        raise _refused(name, "no photo in it")
    counts = {
        f"{without} photos that mapillary_tools could not place are taken without what it says": without,
        f"{videos} entries are of videos and were left out": videos,
        f"{unread} entries cannot be read and were left out": unread,
    }
    return rows, [f"{name}: {said}" for said, count in counts.items() if count]


def find(filename: str, folder: str, paths: Set[str]) -> str | None:
    """Find a described photo among the files of a listing; None when it is not there.

    Names are relative to the description's folder or absolute where it was made. As archives move, of an absolute name the
    longest end counts that is a file below that folder.

    Args:
        filename: as the description writes it.
        folder: where the description lies, in the form of `paths`; empty for the top.
        paths: of all files.
    """
    is_windows = re.match(r"[A-Za-z]:\\", filename) is not None
    parts = (filename.replace("\\", "/") if is_windows else posixpath.normpath(filename)).split("/")
    starts = range(1, len(parts)) if is_windows or filename.startswith("/") else range(1)
    ends = (posixpath.join(folder, *parts[start:]) for start in starts)
    return next((path for path in ends if path in paths), None)


def _claim(entry: _Entry, source: str) -> Claim:
    if entry.error is not None:
        return Claim(source=source)
    compass = entry.MAPCompassHeading
    return Claim(
        source=source,
        lat_deg=entry.MAPLatitude,
        lon_deg=entry.MAPLongitude,
        altitude_m=finite(entry.MAPAltitude),
        heading_deg=read_heading(compass.TrueHeading) if compass else None,
        taken_at=_time(entry.MAPCaptureTime or ""),
        sequence_id=entry.MAPSequenceUUID or None,
    )


def _time(text: str) -> datetime | None:
    try:
        return plausible(datetime.strptime(text, "%Y_%m_%d_%H_%M_%S_%f").replace(tzinfo=UTC))
    except ValueError:
        return None


def _refused(name: str, found: str) -> CatalogError:
    return CatalogError(f"{name}: found {found}; needed a list of Mapillary image descriptions. Nothing was written.")
