"""Open a photo's header with Pillow, and nothing that Pillow could be fooled with.

Used by `photo_facts`, which never goes further, and by `decoder_process`, which then decodes. Only four parsers of Pillow ever
see the bytes; every other format is recognised by its first bytes and refused without being parsed. HEIC, AVIF and RAW, whose
headers only C libraries read, are opened in the decoder's process alone.
"""

import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from PIL import ExifTags, Image, ImageFile, features

from schemas.errors import PhotoError
from schemas.reasons import RejectReason

READABLE: Final = ("JPEG", "PNG", "WEBP", "TIFF")
"""The formats Folio reads, by Pillow's names. Pillow opens an MPO as a JPEG; its first picture is the photo."""

ISOLATED: Final = {"HEIC": "pillow_heif", "AVIF": "PIL", "RAW": "rawpy"}
"""Formats that are opened in the decoder's process alone, and what reads them there."""

EXTRA: Final = "archive"
"""Of the package: installs what reads HEIC and RAW."""

SIGNATURES: Final = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "RAW": rb"II\*\0....CR|....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb",
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
"""How a file of each format begins. Most RAW begins as TIFF does; `format_of` looks further."""

SENSOR_PIXELS: Final = (32_803, 34_892)
"""PhotometricInterpretation of RAW: a colour filter array, and linear raw."""

PHOTOMETRIC, SUB_DIRECTORIES, DNG_VERSION = 262, 330, 50_706

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


def open_header(data: bytes, *, max_pixels: int, isolated: bool = False) -> ImageFile.ImageFile:
    """Open a photo without decoding it. RAW is opened by `raw`.

    Args:
        data: the file, or enough of its beginning.
        max_pixels: width times height that the header may declare.
        isolated: this process may crash, so HEIC and AVIF are opened too.

    Raises:
        PhotoError: no photo Folio reads; the reason says why.
    """
    if not data:
        raise PhotoError(RejectReason.EMPTY_FILE, "0 bytes")
    parsers = _parsers(data, isolated=isolated)
    try:
        image = Image.open(io.BytesIO(data), formats=parsers)
    except Image.DecompressionBombError as error:
        raise PhotoError(RejectReason.TOO_MANY_PIXELS, str(error)) from error
    except HEADER_ERRORS as error:
        raise _refusal(data, error) from error
    require_pixels(*image.size, max_pixels=max_pixels)
    return image


def require_pixels(width: int, height: int, *, max_pixels: int) -> None:
    """Refuse a picture that is too large.

    Raises:
        PhotoError: so it is.
    """
    if width * height > max_pixels:
        detail = f"{width} x {height} = {width * height:,} pixels, the limit is {max_pixels:,}"
        raise PhotoError(RejectReason.TOO_MANY_PIXELS, detail)


def is_readable(kind: str) -> bool:
    """Whether something installed here reads a format of `ISOLATED`."""
    return find_spec(ISOLATED[kind]) is not None and (kind != "AVIF" or bool(features.check("avif")))


def require_reader(kind: str) -> None:
    """Refuse a format of `ISOLATED` that nothing installed here reads.

    Raises:
        PhotoError: so it is; it names what to install.
    """
    if is_readable(kind):
        return
    advice = f"Folio reads it with its extra `{EXTRA}`: pip install 'folio-vpr[{EXTRA}]'"
    advice = "this Pillow was built without it; install one from PyPI" if kind == "AVIF" else advice
    raise PhotoError(RejectReason.UNSUPPORTED_FORMAT, f"format {kind}; {advice}")


def _parsers(data: bytes, *, isolated: bool) -> tuple[str, ...]:
    """Name the parsers of Pillow for some bytes, and make sure they are there."""
    kind = format_of(data)
    if kind not in ISOLATED:
        return READABLE
    require_reader(kind)
    if not isolated:
        raise PhotoError(RejectReason.UNSUPPORTED_FORMAT, f"format {kind}; it is opened in the decoder's process alone")
    if kind == "AVIF":
        return ("AVIF",)
    from pillow_heif import register_heif_opener  # here, as the decoder is to start fast

    register_heif_opener(DECODE_THREADS=1)
    return ("HEIF",)


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
    if looks_like not in (*READABLE, *ISOLATED):
        return PhotoError(
            RejectReason.UNSUPPORTED_FORMAT, f"format {looks_like}; Folio reads JPEG, PNG, WebP, TIFF, AVIF, HEIC and RAW"
        )
    if "truncated" in str(error).lower():
        return PhotoError(RejectReason.TRUNCATED, f"the {looks_like} file ends within its header")
    return PhotoError(RejectReason.DAMAGED, f"begins like a {looks_like} file, but its header cannot be read")


def format_of(data: bytes) -> str | None:
    """Name the format of a file by its first bytes; None when they fit no picture format in `SIGNATURES`.

    What begins as TIFF is RAW if it holds pixels of a sensor, as far as `data` goes.
    """
    for name, signature in SIGNATURES.items():
        if re.match(signature, data[:32], re.DOTALL):
            return "RAW" if name == "TIFF" and _holds_sensor_pixels(data) else name
    return None


def _holds_sensor_pixels(tiff: bytes) -> bool:
    """Whether the first directory of a TIFF, or one below it, is of RAW. Reads a few numbers and trusts none."""
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        first = _tiff_numbers(tiff, order, struct.unpack_from(f"{order}I", tiff, 4)[0])
        below = [_tiff_numbers(tiff, order, at) for at in first.get(SUB_DIRECTORIES, ())]
    except struct.error:  # it ends before
        return False
    directories = [first, *below]
    return DNG_VERSION in first or any(SENSOR_PIXELS.count(each.get(PHOTOMETRIC, (0,))[0]) for each in directories)


def _tiff_numbers(tiff: bytes, order: str, at: int) -> dict[int, tuple[int, ...]]:
    """Read those numbers of a TIFF directory that `_holds_sensor_pixels` looks at.

    Raises:
        struct.error: the file ends before.
    """
    found: dict[int, tuple[int, ...]] = {}
    for entry in range(struct.unpack_from(f"{order}H", tiff, at)[0]):
        tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, at + 2 + 12 * entry)
        if tag not in (PHOTOMETRIC, SUB_DIRECTORIES, DNG_VERSION) or kind not in (1, 3, 4, 13):
            continue
        letter, size = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 13: ("I", 4)}[kind]
        count = min(count, 8)
        place = at + 10 + 12 * entry
        start = place if count * size <= 4 else struct.unpack_from(f"{order}I", tiff, place)[0]
        found[tag] = struct.unpack_from(f"{order}{count}{letter}", tiff, start) or (0,)
    return found


def _png_exif(data: bytes) -> bytes:
    """Find the EXIF chunk of a PNG, which may stand behind the pixels; empty when there is none."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            return data[at + 8 : at + 8 + length]
        at += length + 12  # length, kind, body, checksum
    return b""
