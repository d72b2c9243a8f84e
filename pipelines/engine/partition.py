"""Cut photos into partitions, each of which becomes a segment."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import pyarrow as pa

from schemas.versions import FORMATS


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionConfig:
    """How many photos go into one segment."""

    max_photos: int = 2048
    """The most. At 8,448 float16 numbers: 35 MB of descriptors. More photos: fewer objects, more lost when a worker dies."""

    min_photos: int = 64
    """Cuts are not made finer than this. Fewer photos: finished work is kept in smaller steps, more objects to open."""

    pieces: int = 16
    """Cut small jobs into about this many, so that several workers share them and an interruption costs little."""

    def photos_per_segment(self, photos: int) -> int:
        """Choose the size of the segments of a job."""
        return min(self.max_photos, max(self.min_photos, -(-photos // self.pieces)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """Photos that are encoded together."""

    segment_id: str
    images: pa.Table
    """Rows in the schema of images, in Hilbert order."""

    tried_before: bool = False
    """Finished segments name all of these photos among those that could not be read."""


def cut(images: pa.Table, model_fingerprint: str, *, photos_per_segment: int) -> Iterator[Partition]:
    """Cut Hilbert-ordered photos into runs of nearly equal length.

    Args:
        images: rows in the schema of images, in Hilbert order.
        model_fingerprint: of the network that will encode them; other weights make other segments.
        photos_per_segment: the most; see `PartitionConfig.photos_per_segment`.
    """
    if not len(images):
        return
    count = -(-len(images) // photos_per_segment)
    edges = [len(images) * piece // count for piece in range(count + 1)]
    for start, stop in pairwise(edges):
        rows = images.slice(start, stop - start)
        yield Partition(segment_id=segment_id(rows["photo_key"].to_pylist(), model_fingerprint), images=rows)


def segment_id(photo_keys: list[str], model_fingerprint: str) -> str:
    """Name a segment by everything that decides its content: 24 hex digits.

    The fingerprint covers weights, preprocessing and mask; the format numbers what is written of it.
    """
    formats = [FORMATS[kind] for kind in ("images", "descriptors", "local_features", "rejects")]
    return hashlib.sha256(msgspec.json.encode([sorted(photo_keys), model_fingerprint, formats])).hexdigest()[:24]
