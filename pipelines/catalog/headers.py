"""Open a photo's header with Pillow, and nothing that Pillow could be fooled with.

Used by `photo_facts`, which never goes further, and by `decoder_process`, which then decodes. Only four parsers of Pillow ever
see the bytes; every other format is recognised by its first bytes and refused without being parsed.
"""

import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from PIL import ExifTags, Image, ImageFile

from schemas.errors import PhotoError
from schemas.reasons import RejectReason

READABLE: Final = ("JPEG", "PNG", "WEBP", "TIFF")
"""The formats Folio reads, by Pillow's names. Pillow opens an MPO as a JPEG; its first picture is the photo."""

SIGNATURES: Final = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "HEIC": rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "AVIF": rb"....ftypavi[fs]",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xffO\xffQ",
    "JPEG XL": rb"\0\0\0\x0cJXL |\xff\x0a",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM....\0\0\0\0",
    "ICO": rb"\0\0[\1\2]\0",
    "PPM": rb"P[1-7fFy]\s",
    "PSD": rb"8BPS",
}
"""How a file of each format begins."""

HEADER_ERRORS: Final = (OSError, SyntaxError, ValueError, struct.error, TypeError, IndexError, KeyError, OverflowError)
"""What Pillow raises on broken headers and metadata.

The first four came up in 300,000 random mutations of the test files, the others stand in the code on the same path.
"""

_one_at_a_time = threading.RLock()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's warnings and log lines about odd files from the user, who gets a reject with a reason instead.

    Warning filters belong to the whole process, so two threads that set and restore them would undo each other. Hence the lock;
    header parsing is pure Python and would not run in parallel anyway.
    """
    log = logging.getLogger("PIL")
    with _one_at_a_time, warnings.catch_warnings(action="ignore"):
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)


def open_header(data: bytes, *, max_pixels: int) -> ImageFile.ImageFile:
    """Open a photo without decoding it.

    Args:
        data: the file, or enough of its beginning.
        max_pixels: width times height that the header may declare.

    Raises:
        PhotoError: no photo Folio reads; the reason says why.
    """
    if not data:
        raise PhotoError(RejectReason.EMPTY_FILE, "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=READABLE)
    except Image.DecompressionBombError as error:
        raise PhotoError(RejectReason.TOO_MANY_PIXELS, str(error)) from error
    except HEADER_ERRORS as error:
        raise _refusal(data, error) from error
    width, height = image.size
    if width * height > max_pixels:
        detail = f"{width} x {height} = {width * height:,} pixels, the limit is {max_pixels:,}"
        raise PhotoError(RejectReason.TOO_MANY_PIXELS, detail)
    return image


def read_exif(image: ImageFile.ImageFile, data: bytes) -> Image.Exif:
    """Read the EXIF of an opened photo; empty where there is none or it is broken.

    Args:
        image: from `open_header`.
        data: the bytes it was opened from.
    """
    try:
        if image.format != "PNG" or {"exif", "Raw profile type exif"} & image.info.keys():
            return image.getexif()
        exif = Image.Exif()  # Pillow's own getexif would decode the pixels to look behind them
        exif.load(_png_exif(data))
        return exif
    except HEADER_ERRORS:
        return Image.Exif()


def read_ifd(exif: Image.Exif, ifd: ExifTags.IFD) -> Mapping[int, Any]:
    """Read one directory of the EXIF, such as GPS, by tag number; empty where there is none or it is broken."""
    try:
        return exif.get_ifd(ifd)
    except HEADER_ERRORS:
        return {}


def _refusal(data: bytes, error: Exception) -> PhotoError:
    looks_like = format_of(data)
    if looks_like is None:
        return PhotoError(RejectReason.NOT_AN_IMAGE, f"begins with {data[:8]!r}, which is no picture format known to Folio")
    if looks_like not in READABLE:
        return PhotoError(RejectReason.UNSUPPORTED_FORMAT, f"format {looks_like}; Folio reads JPEG, PNG, WebP and TIFF")
    if "truncated" in str(error).lower():
        return PhotoError(RejectReason.TRUNCATED, f"the {looks_like} file ends within its header")
    return PhotoError(RejectReason.DAMAGED, f"begins like a {looks_like} file, but its header cannot be read")


def format_of(data: bytes) -> str | None:
    """Name the format of a file by its first bytes; None when they fit no picture format in `SIGNATURES`."""
    for name, signature in SIGNATURES.items():
        if re.match(signature, data[:32], re.DOTALL):
            return name
    return None


def _png_exif(data: bytes) -> bytes:
    """Find the EXIF chunk of a PNG, which may stand behind the pixels; empty when there is none."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += length + 12  # length, kind, body, checksum
    return b""
