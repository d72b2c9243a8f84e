"""One row of a catalog: load its photo, or make its row of `rejects.parquet`. Used by build and query."""

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.reading import PhotoReader
from schemas.errors import PhotoError


def load_photo(
    images: pa.Table, row: int, reader: PhotoReader, decoder: PhotoDecoder, *, min_side: int | None
) -> UInt8[np.ndarray, "H W 3"]:
    """Fetch a listed photo, check that it is still the same, and decode it upright.

    Args:
        images: the catalog, in the schema of images.
        row: of the photo.
        reader: fetches it.
        decoder: decodes it.
        min_side: a JPEG may be decoded smaller, with sides of at least this many pixels; None: in full.

    Raises:
        PhotoError: it is gone, changed or does not decode.
        StorageError: its store does not answer.
    """
    uri, root, size_bytes, checksum = (images[name][row].as_py() for name in ("uri", "root", "size_bytes", "checksum"))
    return decoder.decode(reader.read(uri, root, size_bytes=size_bytes, checksum=checksum), min_side=min_side)


def reject_row(images: pa.Table, row: int, stage: str, error: PhotoError) -> dict[str, object]:
    """Make the row of rejects for a photo that was listed but cannot be used; `stage` is encode or query."""
    uri, root, key = (images[name][row].as_py() for name in ("uri", "root", "photo_key"))
    return {"uri": uri, "root": root, "photo_key": key, "stage": stage, "reason": error.reason.value, "detail": error.detail}
