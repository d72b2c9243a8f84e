"""The child process of `decoding`: decodes one photo after the other until its standard input ends.

Whatever a photo does to a C decoder, it does it here, under a memory limit and under the eyes of a parent that may kill this
process at any time. So it holds nothing worth keeping, and imports only Pillow to start fast.

Once started it writes `READY`.
Request: `REQUEST` (b"P" for pixels or b"F" for facts, bytes to follow, pixel limit, least side or 0 for an exact decode) and
the bytes. Reply: `REPLY` (b"P", height, width) and height x width x 3 bytes, (b"F", length, 0) and `PhotoFacts` as JSON, or
(b"E", length, 0) and JSON {"reason", "detail"}.
"""

import json
import os
import resource
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from PIL import ExifTags, Image, ImageFile

from infra.machine import keep_freed_memory
from pipelines.catalog.headers import HEADER_ERRORS, format_of, open_header, read_exif
from schemas.errors import PhotoError
from schemas.reasons import RejectReason

REQUEST: Final = struct.Struct("<cQQI")
REPLY: Final = struct.Struct("<cII")

READY: Final = b"ready"

STRIP_BYTES: Final = 4 * 2**20
"""Pixels are converted, turned and sent in strips of about this size, so that the whole photo is in memory only once."""

TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what makes the picture upright. The values from 5 swap width and height."""


def decode(data: bytes, *, max_pixels: int, min_side: int) -> tuple[Image.Image, int]:
    """Decode one photo as it is stored.

    Args:
        data: the file.
        max_pixels: width times height that the header may declare.
        min_side: a JPEG may come out smaller, but no side below this; 0 for an exact decode.

    Returns:
        The picture in its own mode, and the EXIF orientation that is still to be applied.

    Raises:
        PhotoError: it cannot be decoded.
    """
    if format_of(data) == "RAW":
        from pipelines.catalog.raw import decode_raw

        return decode_raw(data, max_pixels=max_pixels, min_side=min_side)
    image = open_header(data, max_pixels=max_pixels, isolated=True)
    try:
        if min_side:
            image.draft(None, (min_side, min_side))
        image.load()
    except MemoryError as error:
        raise PhotoError(RejectReason.DECODER_CRASHED, "decoding it needs more memory than the limit") from error
    except (*HEADER_ERRORS, EOFError, RuntimeError) as error:  # the last two by libheif
        ends_early = "truncated" in str(error).lower()
        raise PhotoError(RejectReason.TRUNCATED if ends_early else RejectReason.DAMAGED, str(error)) from error
    if image.mode in ("I", "F", "LAB"):
        raise PhotoError(RejectReason.UNSUPPORTED_FORMAT, f"pixels of mode {image.mode}; Folio reads 8 and 16 bits a channel")
    return image, _orientation(image, data)


def upright_strips(image: Image.Image, orientation: int) -> Iterator[bytes]:
    """Give the upright picture as 8-bit RGB, a few rows at a time from the top."""
    height, width = upright_size(image, orientation)
    rows = max(1, STRIP_BYTES // (4 * width))
    for top in range(0, height, rows):
        strip = image if rows >= height else image.crop(_source_box(image, orientation, top, min(top + rows, height)))
        if orientation in TURNS:
            strip = strip.transpose(TURNS[orientation])
        yield _rgb(strip).tobytes()


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Height and width of the picture once it is upright."""
    return (image.width, image.height) if orientation >= 5 else (image.height, image.width)


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF while loading it
    orientation = read_exif(image, data).get(ExifTags.Base.Orientation)
    return orientation if isinstance(orientation, int) and orientation in TURNS else 1


def _source_box(image: Image.Image, orientation: int, top: int, bottom: int) -> tuple[int, int, int, int]:
    """Where the rows from `top` to `bottom` of the upright picture lie in the stored one."""
    if orientation >= 5:
        left, right = (top, bottom) if orientation in (5, 6) else (image.width - bottom, image.width - top)
        return left, 0, right, image.height
    upper, lower = (top, bottom) if orientation in (1, 2) else (image.height - bottom, image.height - top)
    return 0, upper, image.width, lower


def _rgb(strip: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: 16 bits divided by 257, transparency over white, colour profiles ignored."""
    if strip.mode.startswith("I;16"):
        strip = strip.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if strip.has_transparency_data:
        white = Image.new("RGBA", strip.size, "white")
        strip = Image.alpha_composite(white, strip.convert("RGBA"))
    return strip if strip.mode == "RGB" else strip.convert("RGB")


def _limit_memory(limit_bytes: int) -> None:
    """Let this process grow to `limit_bytes` of resident memory. Linux only; elsewhere the pixel limit has to do."""
    if sys.platform != "linux":
        return
    pages, resident_pages = (int(field) for field in Path("/proc/self/statm").read_text().split()[:2])
    address_space = (pages - resident_pages) * resource.getpagesize() + limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    replies.write(READY)
    replies.flush()
    while head := requests.read(REQUEST.size):
        kind, size_bytes, max_pixels, min_side = REQUEST.unpack(head)
        _answer(kind, requests.read(size_bytes), max_pixels, min_side, replies)
        replies.flush()


def _answer(kind: bytes, data: bytes, max_pixels: int, min_side: int, replies: BinaryIO) -> None:
    """Answer one request. A function of its own, so that the photo is forgotten before the next one is read."""
    try:
        if kind == b"F":
            body = _facts(data, max_pixels)
            replies.write(REPLY.pack(b"F", len(body), 0) + body)
            return
        image, orientation = decode(data, max_pixels=max_pixels, min_side=min_side)
    except PhotoError as error:
        body = json.dumps({"reason": error.reason, "detail": error.detail}).encode()
        replies.write(REPLY.pack(b"E", len(body), 0) + body)
        return
    replies.write(REPLY.pack(b"P", *upright_size(image, orientation)))
    replies.writelines(upright_strips(image, orientation))


def _facts(data: bytes, max_pixels: int) -> bytes:
    """Read a header and give what it says as JSON. Imports here, as most decoders only decode."""
    import msgspec

    from pipelines.catalog.photo_facts import photo_facts

    return msgspec.json.encode(photo_facts(data, max_pixels=max_pixels, isolated=True))


def main() -> None:
    """Serve the parent process. The only argument is the memory limit in bytes."""
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a C library prints must not end up among the pixels
    Image.preinit()
    keep_freed_memory(pools=1)
    _limit_memory(int(sys.argv[1]))
    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
