"""Which stored photos belong to the next version of a map, and which are still to be encoded.

Planning starts from what the store holds, never from fresh cuts: a photo whose key is stored under the same network is kept where
it lies, also when the run that encoded it was killed before it could publish.
"""

from collections.abc import Collection, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.commits import receipt_path
from infra.storage import Storage
from infra.tables import damaged, read_table
from pipelines.build.tombstones import Tombstones
from pipelines.engine.partition import Partition
from schemas import layout
from schemas.errors import DamagedError, ObjectMissing
from schemas.images import image_id
from schemas.manifest import Manifest, ObjectRef, Receipt, SegmentEntry, decode_receipt
from schemas.reasons import PASSING

Selection = dict[str, np.ndarray]
"""segment_id -> (rows,) bool: which of its photos are live."""

READ_THREADS: Final = 8
"""Segments whose names of photos are read at once; on S3 their waiting adds up otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSegment:
    """A finished segment of the store, published or not."""

    receipt: Receipt
    photo_keys: list[str]
    """Of its rows."""
    image_ids: list[str]
    rejected_keys: list[str]
    """Photos that were tried and cannot be used."""
    rejected_ids: list[str]
    """Their image ids."""
    passing_keys: list[str]
    """Those of them that are tried again, as their source may be back; the others are not."""


def read_stored(
    storage: Storage, model_fingerprint: str, *, known: Mapping[str, StoredSegment] = MappingProxyType({})
) -> dict[str, StoredSegment]:
    """Read what has been encoded with a network, by segment id, in its order.

    Args:
        storage: of the map.
        model_fingerprint: of the network.
        known: what an earlier call of this run returned; a finished segment never changes, so only others are read.

    Raises:
        DamagedError: a receipt or a table is missing or not what was written.
    """
    paths = (info.path for info in storage.list("receipts"))
    names = sorted(path.split("/")[1].removesuffix(".json") for path in paths if path.endswith(".json"))
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = pool.map(lambda name: known.get(name) or _read_finished(storage, name, model_fingerprint), names)
        return {segment.receipt.segment_id: segment for segment in found if segment}


def require_whole(storage: Storage, head: Manifest | None, model_fingerprint: str, stored: Mapping[str, StoredSegment]) -> None:
    """Refuse to go on from a version whose receipts are not all there: its photos would be lost without a word.

    Raises:
        DamagedError: one is missing, or not the one that was published.
    """
    if head is None or head.model.fingerprint != model_fingerprint:
        return
    for entry in head.segments:
        there = stored.get(entry.segment_id)
        if there is None or there.receipt.sha256 != entry.receipt_sha256:
            found = "nothing" if there is None else f"sha256 {there.receipt.sha256[:12]}..."
            raise damaged(storage, receipt_path(entry.segment_id), found, f"{entry.receipt_sha256[:12]}...")


def expected_segment(partition: Partition, model_fingerprint: str) -> StoredSegment:
    """Describe the segment that a partition becomes if every photo of it can be used."""
    receipt = Receipt(
        segment_id=partition.segment_id,
        attempt="",
        model_fingerprint=model_fingerprint,
        rows=len(partition.images),
        rejected=0,
        bbox=None,
        objects=[],
    )
    return StoredSegment(
        receipt=receipt,
        photo_keys=partition.images["photo_key"].to_pylist(),
        image_ids=partition.images["image_id"].to_pylist(),
        rejected_keys=[],
        rejected_ids=[],
        passing_keys=[],
    )


def without_taken_down(
    stored: Mapping[str, StoredSegment], head: Manifest | None, tombstones: Tombstones, *, planned: Collection[str] = ()
) -> dict[str, StoredSegment]:
    """Leave out the segments that hold photos which were taken down: a purge may remove them at any time.

    Args:
        stored: finished segments.
        head: the newest version; what it names stays, until a rebuild has copied the other photos.
        tombstones: of that version.
        planned: segments of a run that has a lease, which is why these stay too.
    """
    kept = {*planned, *(entry.segment_id for entry in (head.segments if head else []))}

    def holds(segment: StoredSegment) -> bool:
        return not tombstones.image_ids.isdisjoint([*segment.image_ids, *segment.rejected_ids])

    return {name: segment for name, segment in stored.items() if name in kept or not holds(segment)}


def select(
    stored: Mapping[str, StoredSegment],
    head: Manifest | None,
    *,
    wanted: Set[str],
    kept: Selection,
    planned: Collection[str] = (),
    replaced: Collection[str] = (),
) -> Selection:
    """Select the rows of the next version: those that stay, and one row for each name among the wanted photos.

    Where a photo is stored more than once, the same copy is chosen in every run: where the version before has it, where that
    version has it masked, what this run planned to make, and then the first segment by name.

    Args:
        stored: every finished segment.
        head: the version before, made with the same network; None: there is none.
        wanted: photo keys.
        kept: rows that stay whatever is wanted; no other photo of their name is selected.
        planned: the segments that this run set out to make.
        replaced: segments whose rows this run has copied into planned ones; used last.
    """
    selection = {segment: live.copy() for segment, live in kept.items()}
    claimed = {stored[segment].image_ids[row] for segment, live in kept.items() for row in np.flatnonzero(live).tolist()}
    for segment, candidates in _in_order_of_preference(stored, head, set(planned), set(replaced)):
        content = stored[segment]
        for row in np.flatnonzero(candidates).tolist():
            name = content.image_ids[row]
            if content.photo_keys[row] in wanted and name not in claimed:
                selection.setdefault(segment, np.zeros(content.receipt.rows, bool))[row] = True
                claimed.add(name)
    return {segment: live for segment, live in selection.items() if live.any()}


def live_selection(manifest: Manifest | None, stored: Mapping[str, StoredSegment]) -> Selection:
    """Give the rows of a version; those of another network's segments are not in `stored` and left out."""
    entries = [] if manifest is None else manifest.segments
    return {entry.segment_id: live_rows(entry) for entry in entries if entry.segment_id in stored}


def selected_keys(selection: Selection, stored: Mapping[str, StoredSegment]) -> set[str]:
    """List the photo keys of a selection."""
    return {stored[name].photo_keys[row] for name, live in selection.items() for row in np.flatnonzero(live).tolist()}


def live_keys(manifest: Manifest, stored: Mapping[str, StoredSegment]) -> set[str]:
    """List the photo keys of a version; those of another network's segments are left out."""
    return selected_keys(live_selection(manifest, stored), stored)


def live_names(manifest: Manifest, stored: Mapping[str, StoredSegment]) -> set[str]:
    """List the image ids of a version, in the same way."""
    live = live_selection(manifest, stored)
    return {stored[segment].image_ids[row] for segment, rows in live.items() for row in np.flatnonzero(rows).tolist()}


def tried_keys(stored: Mapping[str, StoredSegment], segments: Collection[str]) -> set[str]:
    """List the photos that these segments hold or have found unusable."""
    found = (stored[segment] for segment in segments if segment in stored)
    return {key for segment in found for key in (*segment.photo_keys, *segment.rejected_keys)}


def to_try_again(stored: Mapping[str, StoredSegment]) -> dict[str, list[str]]:
    """Find the photos of which no more is known than that they could not be read: photo key to the segments that tried them."""
    tried_in: dict[str, list[str]] = {}
    for name in sorted(stored):
        for key in stored[name].passing_keys:
            tried_in.setdefault(key, []).append(name)
    if tried_in:  # else there is no need to go through all photos
        for segment in stored.values():
            for key in {*segment.photo_keys, *segment.rejected_keys}.difference(segment.passing_keys):
                tried_in.pop(key, None)
    return tried_in


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


def _in_order_of_preference(
    stored: Mapping[str, StoredSegment], head: Manifest | None, planned: Set[str], replaced: Set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Go through all stored rows, the preferred copies first."""
    last = replaced - planned
    placed = {name: live for name, live in live_selection(head, stored).items() if name not in last}
    yield from placed.items()
    yield from ((name, ~live) for name, live in placed.items())
    others = [name for name in sorted(stored) if name not in placed]
    others.sort(key=lambda name: (name in last, name not in planned))  # stable: by name where these are equal
    yield from ((name, np.ones(stored[name].receipt.rows, bool)) for name in others)


def _read_finished(storage: Storage, name: str, model_fingerprint: str) -> StoredSegment | None:
    """Read a segment; None: it is another network's, or a purge beside this run has just removed it."""
    path = receipt_path(name)
    try:
        receipt = decode_receipt(storage.get(path), where=f"{storage.url}/{path}")
    except ObjectMissing:
        return None
    if receipt.model_fingerprint != model_fingerprint:
        return None
    try:
        return read_segment(storage, receipt)
    except DamagedError:
        with suppress(ObjectMissing):
            storage.info(path)  # a receipt goes before its segment
            raise
        return None


def read_segment(storage: Storage, receipt: Receipt) -> StoredSegment:
    """Read which photos a finished segment holds.

    Raises:
        DamagedError: a table of it is not what was written.
    """
    images, rejects = (
        read_table(storage, ref.path, kind=kind, columns=columns, expected=ref)
        for ref, kind, columns in (
            (segment_object(receipt, layout.IMAGES), "images", ["photo_key", "image_id"]),
            (segment_object(receipt, layout.REJECTS), "rejects", ["photo_key", "uri", "reason"]),
        )
    )
    return StoredSegment(
        receipt=receipt,
        photo_keys=images["photo_key"].to_pylist(),
        image_ids=images["image_id"].to_pylist(),
        rejected_keys=rejects["photo_key"].to_pylist(),
        rejected_ids=[image_id(uri) for uri in rejects["uri"].to_pylist()],
        passing_keys=rejects.filter(pc.is_in(rejects["reason"], pa.array(sorted(PASSING))))["photo_key"].to_pylist(),
    )
