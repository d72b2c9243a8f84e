"""segments ▶ fewer segments: copy photos out of small, mostly masked or purged segments into fresh ones, without the network.

A rebuild does this between encoding and publishing. A copied segment has the name and the bytes it would have if its photos were
encoded anew, so a run that is killed finds its finished copies by their receipts. Rejects are carried along, so that no photo
that cannot be used is tried again. What was copied stays where it is for the versions before; `folio gc` removes it one day.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fol_model.inference import Encoder, as_stored
from infra.arrays import LocalFeaturesReader, LocalFeaturesWriter
from infra.storage import Storage
from infra.tables import DescriptorReader, read_table
from pipelines.build.encode import finish_segment
from pipelines.build.masking import read_photos
from pipelines.build.membership import Selection, StoredSegment, segment_object
from pipelines.build.tombstones import Tombstones
from pipelines.engine.partition import Partition, PartitionConfig, cut, segment_id
from schemas import layout
from schemas.local_features import LocalFeatures
from schemas.manifest import Manifest, Receipt

SMALL: Final = 1 / 4
"""Of the photos that a segment of a map of this size would have today: a segment with fewer is small."""

FEW: Final = 4
"""Small segments are merged once there are this many; each costs a reader some requests, and merging them some copying."""

MASKED: Final = 1 / 2
"""A segment with a larger share of masked rows is copied without them."""

BLOCK_PHOTOS: Final = 64
"""Photos whose local features are in memory at once. At 103 features of 128 numbers: 2 MB."""

Place = tuple[str, int]
"""A stored photo: segment and row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewriting:
    """What a rebuild copies."""

    replaced: frozenset[str]
    """Segments that the next version has no use for."""
    partitions: list[Partition]
    """What stands in for them."""
    places: Mapping[str, Place]
    """photo_key -> where its row is now; the other photos of the partitions are rejects."""

    @property
    def photos(self) -> int:
        """How many rows are copied."""
        return len(self.places)


NOTHING: Final = Rewriting(replaced=frozenset(), partitions=[], places={})


def plan_rewriting(
    stored: Mapping[str, StoredSegment],
    selection: Selection,
    images: pa.Table,
    *,
    purged: Collection[str],
    model_fingerprint: str,
    config: PartitionConfig,
) -> Rewriting:
    """Choose which segments of a version are copied, and into which.

    Small ones are, when there are a few; those that are mostly masked or hold photos that were taken down are in any case, and
    then the small ones with them. What comes out is neither, so that the next rebuild finds nothing to do.

    Args:
        stored: every segment that `selection` names.
        selection: the photos of the version.
        images: its photos as rows in the schema of images, in Hilbert order; also those that were tried and rejected.
        purged: segments that hold photos that were taken down.
        model_fingerprint: of the network.
        config: sizes.
    """
    live = {name: int(rows.sum()) for name, rows in selection.items()}
    size = config.photos_per_segment(sum(live.values()))
    small = {name for name, photos in live.items() if photos < SMALL * size}
    bad = {name for name, photos in live.items() if name in purged or photos < (1 - MASKED) * stored[name].receipt.rows}
    if not bad and len(small) < FEW:
        return NOTHING
    replaced = small | bad
    places = {
        stored[name].photo_keys[row]: (name, row) for name in sorted(replaced) for row in np.flatnonzero(selection[name]).tolist()
    }
    staying = {key for name in selection if name not in replaced for key in stored[name].photo_keys}
    rejected = {key for name in replaced for key in stored[name].rejected_keys} - staying
    rows = images.filter(pc.is_in(images["photo_key"], pa.array([*places, *rejected], pa.string())))
    cuts = cut(rows, model_fingerprint, photos_per_segment=size)
    return Rewriting(
        replaced=frozenset(replaced),
        partitions=[_with_a_free_name(partition, stored, places.keys(), model_fingerprint) for partition in cuts],
        places=places,
    )


def segments_to_purge(storage: Storage, head: Manifest, stored: Mapping[str, StoredSegment], tombstones: Tombstones) -> set[str]:
    """Find the segments of a version that hold photos which were taken down, be it as a row or as a reject.

    Raises:
        DamagedError: a receipt or a table is missing or not what was written.
    """
    entries = [entry for entry in head.segments if entry.segment_id in stored] if tombstones else []
    tables = read_photos(storage, entries, ["image_id", "checksum"])
    return {
        entry.segment_id
        for entry, photos in zip(entries, tables, strict=True)
        if tombstones.cover(photos["image_id"], photos["checksum"]).any()
        or not tombstones.image_ids.isdisjoint(stored[entry.segment_id].rejected_ids)
        or not tombstones.photo_keys.isdisjoint(stored[entry.segment_id].rejected_keys)
    }


class SegmentCopier:
    """Copies partitions of a rewriting, one at a time; a worker for `engine.run`."""

    def __init__(self, storage: Storage, stored: Mapping[str, StoredSegment], rewriting: Rewriting, encoder: Encoder) -> None:
        self._storage = storage
        self._stored = stored
        self._rewriting = rewriting
        self._encoder = encoder

    def run(self, task: Partition, on_photo: Callable[[], None]) -> Receipt:
        """Copy a partition. Doing it twice changes nothing: the first receipt stands."""
        return copy_partition(task, self._storage, self._stored, self._rewriting, self._encoder, on_photo)

    def close(self) -> None:
        """Nothing is held open."""


def copy_partition(
    partition: Partition,
    storage: Storage,
    stored: Mapping[str, StoredSegment],
    rewriting: Rewriting,
    encoder: Encoder,
    on_photo: Callable[[], None],
) -> Receipt:
    """Make a segment of rows of others.

    Returns:
        The receipt that stands for this segment: ours, or that of an attempt that finished first.

    Raises:
        DamagedError: what is to be copied is missing or not what was written.
        StorageError: the store does not answer; nothing of this attempt counts.
    """
    folder = layout.segment_folder(partition.segment_id, uuid4().hex[:12])
    keys = partition.images["photo_key"].to_pylist()
    kept = [row for row, key in enumerate(keys) if key in rewriting.places]
    places = [rewriting.places[keys[row]] for row in kept]
    writer = LocalFeaturesWriter(
        storage,
        f"{folder}/{layout.LOCAL_FEATURES}",
        features_per_photo=encoder.max_local_features,
        dim=encoder.local_dim,
        precision=encoder.local_precision,
    )
    for photo in _local_features(storage, stored, places):
        features = as_stored(photo.features, encoder.local_precision)
        writer.append(LocalFeatures(features=features, patch=photo.patch, reliability=photo.reliability))
        on_photo()
    return finish_segment(
        storage,
        partition.segment_id,
        folder,
        images=partition.images.take(pa.array(kept, pa.int64())),
        descriptors=_descriptors(storage, stored, places, encoder.descriptor_dim),
        rejects=_rejects(storage, stored, rewriting.replaced, [key for key in keys if key not in rewriting.places]),
        local_features=writer.close(),
        model_fingerprint=encoder.fingerprint,
    )


def _descriptors(storage: Storage, stored: Mapping[str, StoredSegment], places: Sequence[Place], dim: int) -> np.ndarray:
    """Read the descriptors of photos in their order, row group by row group: (photos, D) float16."""
    copied = np.empty((len(places), dim), np.float16)
    for segment, pairs in _by_segment(places).items():
        reader = DescriptorReader(storage, segment_object(stored[segment].receipt, layout.DESCRIPTORS))
        targets, rows = zip(*pairs, strict=True)
        copied[list(targets)] = reader.read(rows)
    return copied


def _local_features(storage: Storage, stored: Mapping[str, StoredSegment], places: Sequence[Place]) -> Iterator[LocalFeatures]:
    """Read the local features of photos in their order, a bounded number at a time."""
    readers: dict[str, LocalFeaturesReader] = {}
    for start in range(0, len(places), BLOCK_PHOTOS):
        block = places[start : start + BLOCK_PHOTOS]
        found: list[LocalFeatures | None] = [None] * len(block)
        for segment, pairs in _by_segment(block).items():
            if segment not in readers:
                receipt = stored[segment].receipt
                path = f"{layout.segment_folder(segment, receipt.attempt)}/{layout.LOCAL_FEATURES}"
                readers[segment] = LocalFeaturesReader(storage, path, expected=receipt.objects)
            for (target, _), photo in zip(pairs, readers[segment].read([row for _, row in pairs]), strict=True):
                found[target] = photo
        yield from (photo for photo in found if photo is not None)


def _with_a_free_name(
    partition: Partition, stored: Mapping[str, StoredSegment], copied: Set[str], model_fingerprint: str
) -> Partition:
    """Name a partition anew when a segment of these photos is there already that could not read some of them at the time."""
    keys = set(partition.images["photo_key"].to_pylist())
    name, taken = partition.segment_id, list[str]()
    while name in stored and not (keys & copied).issubset(stored[name].photo_keys):
        taken.append(f"instead of {name}")
        name = segment_id([*keys, *taken], model_fingerprint)
    return replace(partition, segment_id=name)


def _by_segment(places: Sequence[Place]) -> dict[str, list[tuple[int, int]]]:
    """Sort places by segment: number in the sequence, and row."""
    found: dict[str, list[tuple[int, int]]] = {}
    for number, (segment, row) in enumerate(places):
        found.setdefault(segment, []).append((number, row))
    return found


def _rejects(
    storage: Storage, stored: Mapping[str, StoredSegment], segments: Collection[str], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Find the rows of rejects of photos, in their order."""
    wanted, found = set(keys), dict[str, dict[str, Any]]()
    for name in sorted(segments):
        if not wanted.isdisjoint(stored[name].rejected_keys):
            ref = segment_object(stored[name].receipt, layout.REJECTS)
            for row in read_table(storage, ref.path, kind="rejects", expected=ref).to_pylist():
                found.setdefault(row["photo_key"], row)
    return [found[key] for key in keys]
