"""The rows of `rejects.parquet` for photos that were listed and cannot be used. Used by build and query."""

import pyarrow as pa

from schemas.errors import PhotoError


def reject_row(images: pa.Table, row: int, stage: str, error: PhotoError) -> dict[str, object]:
    """Make the row of rejects for a photo that was listed but cannot be used; `stage` is encode or query."""
    uri, root, key = (images[name][row].as_py() for name in ("uri", "root", "photo_key"))
    return {"uri": uri, "root": root, "photo_key": key, "stage": stage, "reason": error.reason.value, "detail": error.detail}
