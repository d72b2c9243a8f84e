"""Where, when and in which direction one photo was taken, from the header of its file.

Reads EXIF, and XMP where EXIF has no usable position. Never decodes pixels. Broken metadata of whatever kind is no metadata.
Used by `sources` for each photo of a catalog. Tags: https://www.cipa.jp/std/documents/e/DC-X008-Translation-2019-E.pdf, XMP
coordinates: XMP specification part 2, section 1.2.7.4 ("GPSCoordinate").
"""

import math
import numbers
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, TypeAlias
from xml.etree.ElementTree import ParseError

from PIL import ExifTags, ImageFile

from pipelines.catalog.headers import open_header, quiet_pillow, read_exif, read_ifd
from pipelines.catalog.positions import position_problem
from schemas.reasons import RejectReason

Tags: TypeAlias = Mapping[int, Any]
"""One directory of an EXIF block; the values are as odd as cameras make them."""

BELOW_SEA_LEVEL: Final = (1, 3)
"""GPSAltitudeRef: 1 below sea level, 3 below the ellipsoid (EXIF 3.0)."""

PLAUSIBLE_YEARS: Final = range(1826, 2200)
"""From the first photograph to far beyond any clock that was set."""

XMP_ERRORS: Final = (ParseError, ValueError, AttributeError, TypeError, RecursionError)
"""What `getxmp` raises: not XML, forbidden entities (a ValueError), a TIFF tag that is no bytes, nesting without end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoFacts:
    """What the header of one photo says."""

    width_px: int
    """As stored, before the EXIF orientation is applied."""

    height_px: int

    lat_deg: float | None
    """None, like `lon_deg`, when there is no usable position."""

    lon_deg: float | None

    position_problem: RejectReason | None
    """Why there is no usable position: no-position, position-invalid or null-island."""

    altitude_m: float | None
    heading_deg: float | None
    """Clockwise from true north, 0 to 360. Magnetic headings are not used."""

    taken_at: datetime | None
    """In UTC. A local time without an offset is read as UTC."""


def photo_facts(data: bytes, *, max_pixels: int) -> PhotoFacts:
    """Read the facts of one photo.

    Args:
        data: the file. Of a JPEG its beginning up to the pixels is enough.
        max_pixels: width times height that the header may declare.

    Raises:
        PhotoError: no photo Folio reads. Missing or broken metadata is no error.
    """
    with quiet_pillow():
        image = open_header(data, max_pixels=max_pixels)
        exif = read_exif(image, data)
        gps, camera = read_ifd(exif, ExifTags.IFD.GPSInfo), read_ifd(exif, ExifTags.IFD.Exif)
        position = _exif_position(gps)
        if isinstance(position, RejectReason):
            position = _first_position(position, _xmp_positions(image))
    lat_deg, lon_deg = (None, None) if isinstance(position, RejectReason) else position
    return PhotoFacts(
        width_px=image.width,
        height_px=image.height,
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        position_problem=position if isinstance(position, RejectReason) else None,
        altitude_m=_altitude(gps),
        heading_deg=_heading(gps),
        taken_at=_gps_time(gps) or _camera_time(camera),
    )


def _checked(lat_deg: float, lon_deg: float) -> tuple[float, float] | RejectReason:
    return position_problem(lat_deg, lon_deg) or (lat_deg, lon_deg)


def _first_position(
    problem: RejectReason, others: Iterator[tuple[float, float] | RejectReason]
) -> tuple[float, float] | RejectReason:
    """Take the first usable position; without one the first problem that is more than absence."""
    for other in others:
        if not isinstance(other, RejectReason):
            return other
        if problem == RejectReason.NO_POSITION:
            problem = other
    return problem


def _exif_position(gps: Tags) -> tuple[float, float] | RejectReason:
    if ExifTags.GPS.GPSLatitude not in gps and ExifTags.GPS.GPSLongitude not in gps:
        return RejectReason.NO_POSITION
    lat_deg = _degrees(gps.get(ExifTags.GPS.GPSLatitude)) * _sign(gps.get(ExifTags.GPS.GPSLatitudeRef), "NS")
    lon_deg = _degrees(gps.get(ExifTags.GPS.GPSLongitude)) * _sign(gps.get(ExifTags.GPS.GPSLongitudeRef), "EW")
    return _checked(lat_deg, lon_deg)


def _degrees(value: Any) -> float:
    """Add up degrees, minutes and seconds; NaN when there are none. Seconds of 0/0 are a camera's way to write no seconds."""
    parts = [_number(part) for part in (value if isinstance(value, tuple) else (value,))]
    degrees, minutes, seconds = (*parts, 0.0, 0.0)[:3] if parts else (math.nan, 0.0, 0.0)
    return degrees + minutes / 60 + (0.0 if math.isnan(seconds) else seconds) / 3600


def _sign(ref: Any, letters: str) -> float:
    """+1 for the first letter, -1 for the second, NaN for anything else: a position without its hemisphere is none."""
    letter = _text(ref).upper()[:1]
    return {letters[0]: 1.0, letters[1]: -1.0}.get(letter, math.nan)


def _altitude(gps: Tags) -> float | None:
    altitude_m = _number(gps.get(ExifTags.GPS.GPSAltitude))
    if not math.isfinite(altitude_m):
        return None
    ref = gps.get(ExifTags.GPS.GPSAltitudeRef)
    below = (ref[:1] in (b"\1", b"\3")) if isinstance(ref, bytes) else ref in BELOW_SEA_LEVEL
    return -altitude_m if below else altitude_m


def _heading(gps: Tags) -> float | None:
    """Where the camera looked, else where it went, unless that is from magnetic north."""
    for value, ref in (
        (ExifTags.GPS.GPSImgDirection, ExifTags.GPS.GPSImgDirectionRef),
        (ExifTags.GPS.GPSTrack, ExifTags.GPS.GPSTrackRef),
    ):
        heading_deg = _number(gps.get(value))
        if 0 <= heading_deg <= 360 and _text(gps.get(ref)).upper()[:1] != "M":
            return heading_deg % 360
    return None


def _gps_time(gps: Tags) -> datetime | None:
    clock = gps.get(ExifTags.GPS.GPSTimeStamp)
    day = _datetime(_text(gps.get(ExifTags.GPS.GPSDateStamp)), "%Y:%m:%d")
    if day is None or not isinstance(clock, tuple) or len(clock) != 3:
        return None
    hours, minutes, seconds = (_number(part) for part in clock)
    if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds < 61):
        return None
    return day.replace(tzinfo=UTC) + timedelta(hours=hours, minutes=minutes, seconds=seconds)


def _camera_time(camera: Tags) -> datetime | None:
    local = _datetime(_text(camera.get(ExifTags.Base.DateTimeOriginal)), "%Y:%m:%d %H:%M:%S")
    if local is None:
        return None
    offset = re.fullmatch(r"([+-])(\d\d):(\d\d)", _text(camera.get(ExifTags.Base.OffsetTimeOriginal)))
    if offset is None or int(offset[2]) > 14:
        return local.replace(tzinfo=UTC)
    ahead = timedelta(hours=int(offset[2]), minutes=int(offset[3])) * (-1 if offset[1] == "-" else 1)
    return local.replace(tzinfo=timezone(ahead)).astimezone(UTC)


def _datetime(text: str, form: str) -> datetime | None:
    try:
        moment = datetime.strptime(text, form)
    except ValueError:
        return None
    return moment if moment.year in PLAUSIBLE_YEARS else None


def _xmp_positions(image: ImageFile.ImageFile) -> Iterator[tuple[float, float] | RejectReason]:
    """Each position among the XMP descriptions of a photo, usable or not."""
    for description in _xmp_descriptions(image):
        lat, lon = description.get("GPSLatitude"), description.get("GPSLongitude")
        if lat is not None or lon is not None:
            yield _checked(_xmp_degrees(lat, "NS"), _xmp_degrees(lon, "EW"))


def _xmp_descriptions(image: ImageFile.ImageFile) -> list[Mapping[str, Any]]:
    try:
        found = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    except (KeyError, *XMP_ERRORS):
        return []
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)]


def _xmp_degrees(value: Any, letters: str) -> float:
    """Read "35,0.73104N", "35,0,43.8N" or a signed decimal number; NaN for anything else."""
    text = _text(value).upper()
    if text[-1:] and text[-1] in letters:
        return _degrees(tuple(_decimal(part) for part in text[:-1].split(","))) * _sign(text[-1], letters)
    return _decimal(text)


def _decimal(text: str) -> float:
    return float(text) if re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", text, re.ASCII) else math.nan


def _number(value: Any) -> float:
    """A number as float; NaN for 0/0 and for anything that is no number."""
    return float(value) if isinstance(value, numbers.Real) else math.nan


def _text(value: Any) -> str:
    """A string without the NULs and blanks that cameras pad it with; empty for anything that is no string."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value.strip("\0 ") if isinstance(value, str) else ""
