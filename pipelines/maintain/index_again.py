"""segments ▶ a damaged quantizer or shard made again, exactly as the version that first named it made it.

Training and coding are deterministic, so with the same FAISS on the same kind of machine the bytes are the same; whoever asks
compares their sha256.
"""

from collections.abc import Iterator
from dataclasses import fields
from itertools import chain

import numpy as np
from jaxtyping import Float16, Float32, Int64

from infra.storage import Storage
from infra.tables import get_object, read_descriptors, read_table
from pipelines import ivfpq
from pipelines.build.masking import checked_receipt
from pipelines.build.membership import live_rows, segment_object
from pipelines.ivfpq import IndexConfig, IvfPqParameters
from schemas import layout
from schemas.manifest import Manifest, SegmentEntry, ShardEntry


def train_again(storage: Storage, manifest: Manifest) -> bytes:
    """Train the quantizer of the version that trained it.

    Raises:
        DamagedError: a table that is needed for it is damaged as well.
    """
    photos = sorted(
        (image_id, place, row) for place, entry in enumerate(manifest.segments) for image_id, row in _live_photos(storage, entry)
    )[: manifest.index.trained_on]
    sample: np.ndarray | None = None
    for place in sorted({place for _, place, _ in photos}):
        numbers, rows = np.array([(number, row) for number, (_, where, row) in enumerate(photos) if where == place]).T
        descriptors = _descriptors(storage, manifest.segments[place])
        if sample is None:
            sample = np.empty((len(photos), descriptors.shape[1]), descriptors.dtype)
        sample[numbers] = descriptors[rows]
    assert sample is not None, "a quantizer was trained on photos"
    parameters = {each.name: manifest.index.parameters[each.name] for each in fields(IvfPqParameters)}
    return ivfpq.train_quantizer(sample, IvfPqParameters(**parameters), index_config(manifest))


def shard_again(storage: Storage, manifest: Manifest, shard: ShardEntry) -> bytes:
    """Code the photos of a shard of the version that made it.

    Raises:
        DamagedError: the quantizer or a table that is needed for it is damaged as well.
    """
    entries = {entry.segment_id: entry for entry in manifest.segments}
    quantizer = get_object(storage, manifest.index.quantizer) if manifest.index.quantizer else None

    def blocks() -> Iterator[tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"]]]:
        for member in shard.segments:
            rows = np.flatnonzero(live_rows(entries[member.segment_id]))
            yield _descriptors(storage, entries[member.segment_id])[rows].astype(np.float32), rows + member.first_id

    made = blocks()
    first = next(made)
    return ivfpq.make_shard(quantizer, first[0].shape[1], chain([first], made))


def index_config(manifest: Manifest) -> IndexConfig:
    """Give the settings of the index that a version was built with; those that came later as they are by default."""
    known = {each.name for each in fields(IndexConfig)}
    return IndexConfig(**{name: value for name, value in manifest.configuration["index"].items() if name in known})


def _descriptors(storage: Storage, entry: SegmentEntry) -> Float16[np.ndarray, "n D"]:
    return read_descriptors(storage, segment_object(checked_receipt(storage, entry), layout.DESCRIPTORS))


def _live_photos(storage: Storage, entry: SegmentEntry) -> list[tuple[str, int]]:
    """List image id and row of the live photos of a segment."""
    ref = segment_object(checked_receipt(storage, entry), layout.IMAGES)
    names = read_table(storage, ref.path, kind="images", columns=["image_id"], expected=ref)["image_id"].to_pylist()
    return [(names[row], row) for row in np.flatnonzero(live_rows(entry)).tolist()]
