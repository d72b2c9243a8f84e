"""Where, when and in which direction one photo was taken, from the header of its file.

Reads EXIF, and XMP where EXIF has no usable position. Never decodes pixels. Broken metadata of whatever kind is no metadata.
Used by `sources` for each photo of a catalog. Tags: https://www.cipa.jp/std/documents/e/DC-X008-Translation-2019-E.pdf
"""

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, TypeAlias

from PIL import ExifTags

from pipelines.catalog.headers import format_of, open_header, quiet_pillow, read_exif, read_ifd
from pipelines.catalog.positions import is_own_estimate, position_problem
from pipelines.catalog.raw import raw_header
from pipelines.catalog.times import plausible
from pipelines.catalog.xmp import first_position, read_xmp
from schemas.reasons import RejectReason

Tags: TypeAlias = Mapping[int, Any]
"""One directory of an EXIF block; the values are as odd as cameras make them."""

BELOW_SEA_LEVEL: Final = (1, 3)
"""GPSAltitudeRef: 1 below sea level, 3 below the ellipsoid (EXIF 3.0)."""


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
    """By satellite, else by the camera: in UTC, or without a time zone where the camera gives no offset."""


def photo_facts(data: bytes, *, max_pixels: int, isolated: bool = False) -> PhotoFacts:
    """Read the facts of one photo.

    Args:
        data: the file. Of a JPEG its beginning up to the pixels is enough.
        max_pixels: width times height that the header may declare.
        isolated: this process may crash, so that HEIC, AVIF and RAW are read too; else see `PhotoDecoder.facts`.

    Raises:
        PhotoError: no photo Folio reads. Missing or broken metadata is no error.
    """
    with quiet_pillow():
        if isolated and format_of(data) == "RAW":
            size, exif, packet = raw_header(data, max_pixels=max_pixels)
        else:
            image = open_header(data, max_pixels=max_pixels, isolated=isolated)
            size, exif, packet = image.size, read_exif(image, data), image.info.get("xmp")
        gps, camera = read_ifd(exif, ExifTags.IFD.GPSInfo), read_ifd(exif, ExifTags.IFD.Exif)
        position = _exif_position(gps)
        if isinstance(position, RejectReason):
            position = first_position(iter((position, _xmp_position(packet))))
    lat_deg, lon_deg = (None, None) if isinstance(position, RejectReason) else position
    return PhotoFacts(
        width_px=size[0],
        height_px=size[1],
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        position_problem=position if isinstance(position, RejectReason) else None,
        altitude_m=_altitude(gps),
        heading_deg=_heading(gps),
        taken_at=_gps_time(gps) or _camera_time(camera),
    )


def _exif_position(gps: Tags) -> tuple[float, float] | RejectReason:
    absent = ExifTags.GPS.GPSLatitude not in gps and ExifTags.GPS.GPSLongitude not in gps
    if absent or is_own_estimate(_comment(gps.get(ExifTags.GPS.GPSProcessingMethod))):
        return RejectReason.NO_POSITION
    lat_deg = _degrees(gps.get(ExifTags.GPS.GPSLatitude)) * _sign(gps.get(ExifTags.GPS.GPSLatitudeRef), "NS")
    lon_deg = _degrees(gps.get(ExifTags.GPS.GPSLongitude)) * _sign(gps.get(ExifTags.GPS.GPSLongitudeRef), "EW")
    return position_problem(lat_deg, lon_deg) or (lat_deg, lon_deg)


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
    fraction = re.match(r"\d{1,6}", _text(camera.get(ExifTags.Base.SubsecTimeOriginal)), re.ASCII)
    local = local.replace(microsecond=int(fraction[0].ljust(6, "0")) if fraction else 0)
    offset = re.fullmatch(r"([+-])(\d\d):(\d\d)", _text(camera.get(ExifTags.Base.OffsetTimeOriginal)))
    if offset is None or int(offset[2]) > 14:
        return local
    ahead = timedelta(hours=int(offset[2]), minutes=int(offset[3])) * (-1 if offset[1] == "-" else 1)
    return local.replace(tzinfo=timezone(ahead)).astimezone(UTC)


def _datetime(text: str, form: str) -> datetime | None:
    try:
        return plausible(datetime.strptime(text, form))
    except ValueError:
        return None


def _xmp_position(packet: object) -> tuple[float, float] | RejectReason:
    try:
        return read_xmp(packet).position if isinstance(packet, bytes) else RejectReason.NO_POSITION
    except ValueError:
        return RejectReason.NO_POSITION


def _number(value: Any) -> float:
    """A number as float; NaN for 0/0 and for anything that is no number."""
    return float(value) if isinstance(value, numbers.Real) else math.nan


def _comment(value: Any) -> str:
    """Text that EXIF leads by eight bytes for its character set."""
    return _text(value[8:]) if isinstance(value, bytes) else _text(value)


def _text(value: Any) -> str:
    """A string without the NULs and blanks that cameras pad it with; empty for anything that is no string."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value.strip("\0 ") if isinstance(value, str) else ""
