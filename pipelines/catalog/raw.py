"""RAW photos by LibRaw, in the decoder's process: the preview that the camera put into the file, or its pixels at half size.

EXIF is read where the file is built like a TIFF (DNG, NEF, ARW, CR2, PEF and others, not CR3, RAF, ORF and RW2). Used by
`photo_facts` and `decoder_process`.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from PIL import Image

from pipelines.catalog.headers import HEADER_ERRORS, open_header, require_pixels, require_reader
from schemas.errors import PhotoError
from schemas.reasons import RejectReason

if TYPE_CHECKING:
    from rawpy import RawPy

ORIENTATIONS: Final = {0: 1, 3: 3, 5: 8, 6: 6}
"""LibRaw's flip to EXIF's orientation."""

XMP: Final = 700


@contextmanager
def opened_raw(data: bytes, *, max_pixels: int) -> "Iterator[RawPy]":
    """Open a RAW file; its pixels are not read yet.

    Raises:
        PhotoError: it is too large, or LibRaw cannot read it or, in the block, not its pixels.
    """
    require_reader("RAW")
    from rawpy import LibRawError, LibRawFileUnsupportedError, LibRawUnsufficientMemoryError, NotSupportedError, imread

    try:
        with imread(io.BytesIO(data)) as raw:
            require_pixels(raw.sizes.raw_width, raw.sizes.raw_height, max_pixels=max_pixels)
            yield raw
    except (LibRawFileUnsupportedError, NotSupportedError) as error:
        raise PhotoError(RejectReason.UNSUPPORTED_FORMAT, f"a RAW file that LibRaw does not read: {_said(error)}") from error
    except (LibRawUnsufficientMemoryError, MemoryError) as error:
        raise PhotoError(RejectReason.DECODER_CRASHED, "decoding it needs more memory than the limit") from error
    except (LibRawError, ValueError) as error:
        raise PhotoError(RejectReason.DAMAGED, f"LibRaw cannot read it: {_said(error)}") from error


def raw_header(data: bytes, *, max_pixels: int) -> tuple[tuple[int, int], Image.Exif, object]:
    """Read width and height, EXIF and XMP of a RAW file.

    Raises:
        PhotoError: it is too large, or LibRaw cannot read it.
    """
    with opened_raw(data, max_pixels=max_pixels) as raw:
        size = raw.sizes.width, raw.sizes.height
    exif = Image.Exif()
    try:
        exif.load(data)
        return size, exif, exif.get(XMP)
    except HEADER_ERRORS:
        return size, Image.Exif(), None


def decode_raw(data: bytes, *, max_pixels: int, min_side: int) -> tuple[Image.Image, int]:
    """Decode a RAW file: its preview, if no side of that falls below half the sensor's or `min_side`, else the sensor's pixels.

    Returns:
        The picture as RGB, and the EXIF orientation that is still to be applied.

    Raises:
        PhotoError: it cannot be decoded.
    """
    with opened_raw(data, max_pixels=max_pixels) as raw:
        orientation = ORIENTATIONS.get(raw.sizes.flip, 1)
        enough = min_side or min(raw.sizes.width, raw.sizes.height) // 2
        preview = _preview(raw, max_pixels)
        if preview is not None and min(preview.size) >= enough:
            return preview, orientation
        return Image.fromarray(raw.postprocess(half_size=True, use_camera_wb=True, user_flip=0)), orientation


def _preview(raw: "RawPy", max_pixels: int) -> Image.Image | None:
    from rawpy import LibRawNoThumbnailError, LibRawUnsupportedThumbnailError, NotSupportedError, ThumbFormat

    try:
        preview = raw.extract_thumb()
        if preview.format != ThumbFormat.JPEG:
            return None
        image = open_header(bytes(preview.data), max_pixels=max_pixels)
        image.load()
    except (LibRawNoThumbnailError, LibRawUnsupportedThumbnailError, NotSupportedError, PhotoError, *HEADER_ERRORS):
        return None
    return image


def _said(error: Exception) -> str:
    said = error.args[0] if error.args else type(error).__name__
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
