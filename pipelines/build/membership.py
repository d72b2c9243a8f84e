"""Which stored photos belong to the next version of a map, and which are still to be encoded.

Planning starts from what the store holds, never from fresh cuts: a photo whose key is stored under the same network is kept where
it lies, also when the run that encoded it was killed before it could publish.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from infra.commits import read_receipts
from infra.storage import Storage
from infra.tables import read_table
from schemas import layout
from schemas.manifest import Manifest, ObjectRef, Receipt, SegmentEntry

Selection = dict[str, np.ndarray]
"""segment_id -> (rows,) bool: which of its photos are live."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSegment:
    """A finished segment of the store, published or not."""

    receipt: Receipt
    photo_keys: list[str]
    """Of its rows."""
    image_ids: list[str]
    rejected_keys: list[str]
    """Photos that were tried and cannot be used; they are not tried again."""


def read_stored(
    storage: Storage, model_fingerprint: str, *, known: Mapping[str, StoredSegment] = MappingProxyType({})
) -> dict[str, StoredSegment]:
    """Read what has been encoded with a network, by segment id, in its order.

    Args:
        storage: of the map.
        model_fingerprint: of the network.
        known: what an earlier call returned; a finished segment never changes, so only others are read.
    """
    receipts = read_receipts(storage)
    return {
        name: known.get(name) or _read_segment(storage, receipts[name])
        for name in sorted(receipts)
        if receipts[name].model_fingerprint == model_fingerprint
    }


def select_exactly(stored: Mapping[str, StoredSegment], wanted: set[str]) -> Selection:
    """Select the stored photos whose keys are wanted; of two copies of a photo the one in the first segment."""
    return _claim(stored, {}, lambda key, _: key in wanted)


def select_added(stored: Mapping[str, StoredSegment], head: Manifest | None, wanted: set[str]) -> Selection:
    """Select what a version holds and, beside it, the wanted photos that it has no photo of that name for."""
    kept = {} if head is None else {entry.segment_id: live_rows(entry) for entry in head.segments}
    held = set() if head is None else live_names(head, stored)
    return _claim(stored, kept, lambda key, name: key in wanted and name not in held)


def still_to_encode(stored: Mapping[str, StoredSegment], wanted: Sequence[str]) -> np.ndarray:
    """Mark the wanted photos that were neither encoded nor rejected before: (wanted,) bool."""
    known = {key for segment in stored.values() for key in (*segment.photo_keys, *segment.rejected_keys)}
    return np.array([key not in known for key in wanted], bool)


def live_keys(manifest: Manifest, stored: Mapping[str, StoredSegment]) -> set[str]:
    """List the photo keys of a version; those of another network's segments are not in `stored` and left out."""
    return {stored[segment].photo_keys[row] for segment, row in _live(manifest, stored)}


def live_names(manifest: Manifest, stored: Mapping[str, StoredSegment]) -> set[str]:
    """List the image ids of a version, in the same way."""
    return {stored[segment].image_ids[row] for segment, row in _live(manifest, stored)}


def live_rows(entry: SegmentEntry) -> np.ndarray:
    """Expand a manifest's masked ranges: (rows,) bool, True where a photo is part of the version."""
    live = np.ones(entry.rows, bool)
    for start, stop in entry.masked_rows:
        live[start:stop] = False
    return live


def masked_ranges(live: np.ndarray) -> list[tuple[int, int]]:
    """The inverse of `live_rows`: ranges [start, stop) of False."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], live, [True]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def segment_object(receipt: Receipt, name: str) -> ObjectRef:
    """Find a file of a segment in its receipt."""
    path = f"{layout.segment_folder(receipt.segment_id, receipt.attempt)}/{name}"
    return next(ref for ref in receipt.objects if ref.path == path)


def _live(manifest: Manifest, stored: Mapping[str, StoredSegment]) -> Iterator[tuple[str, int]]:
    for entry in manifest.segments:
        if entry.segment_id in stored:
            yield from ((entry.segment_id, row) for row in np.flatnonzero(live_rows(entry)).tolist())


def _claim(stored: Mapping[str, StoredSegment], start: Selection, wants: Callable[[str, str], bool]) -> Selection:
    selection = dict(start)
    claimed: set[str] = set()
    for segment, content in stored.items():
        live = start[segment].copy() if segment in start else np.zeros(content.receipt.rows, bool)
        for row, (key, name) in enumerate(zip(content.photo_keys, content.image_ids, strict=True)):
            if name not in claimed and wants(key, name):
                live[row] = True
                claimed.add(name)
        if live.any():
            selection[segment] = live
    return selection


def _read_segment(storage: Storage, receipt: Receipt) -> StoredSegment:
    images, rejects = (
        read_table(storage, ref.path, kind=kind, columns=columns, expected=ref)
        for ref, kind, columns in (
            (segment_object(receipt, layout.IMAGES), "images", ["photo_key", "image_id"]),
            (segment_object(receipt, layout.REJECTS), "rejects", ["photo_key"]),
        )
    )
    return StoredSegment(
        receipt=receipt,
        photo_keys=images["photo_key"].to_pylist(),
        image_ids=images["image_id"].to_pylist(),
        rejected_keys=rejects["photo_key"].to_pylist(),
    )
