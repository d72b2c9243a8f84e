"""Photos with the same bytes under several names: one of them is looked for, and the others have its answer."""

import pyarrow as pa


def duplicates_of(images: pa.Table) -> dict[str, str]:
    """Find photos with the same bytes as one before them, and name that one, both by image id.

    Args:
        images: the catalog, in the schema of images. Photos of a bucket, whose bytes were not read, have no known copies.
    """
    first: dict[tuple[str, int], str] = {}
    names, checksums, sizes = (images[column].to_pylist() for column in ("image_id", "checksum", "size_bytes"))
    same = (
        (name, first.setdefault((checksum, size), name))
        for name, checksum, size in zip(names, checksums, sizes, strict=True)
        if checksum.startswith("sha256:")
    )
    return {name: other for name, other in same if name != other}
