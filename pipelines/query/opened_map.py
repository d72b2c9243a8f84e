"""One version of a map, opened for reading: its shards in memory, its segments on demand. Everything is checked before use."""

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Final, Generic, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float16, Float32, Int8

from infra.arrays import DescriptorCodesReader, LocalFeaturesReader
from infra.storage import Storage
from infra.tables import DescriptorReader, get_object, read_table
from pipelines.build.masking import checked_receipt
from pipelines.build.membership import live_rows
from pipelines.ivfpq import ShardSearcher
from pipelines.query.prior import Prior
from schemas import layout
from schemas.calibration import decode_calibration
from schemas.errors import DamagedError
from schemas.local_features import LocalFeatures
from schemas.manifest import Manifest, SegmentEntry, ShardEntry, ShardSegment
from schemas.versions import require_readable

POSITION_COLUMNS: Final = ["image_id", "uri", "root", "lat_deg", "lon_deg"]
IMAGE_COLUMNS: Final = [*POSITION_COLUMNS, "taken_at"]

CACHE_BYTES: Final = 12 * 1024 * 1024
"""Descriptors that are kept in memory between queries, and as much again of local features, those asked for last: the codes of
1,500 descriptors of 8,448 numbers, and of 375 photos' 640 features of 48 numbers."""

KEPT: Final = 100
"""Candidates of a query that `refined` in the manifest stands for."""

REQUESTS_AT_ONCE: Final = 32
"""Of all queries together. The threads stay: each new one may take memory from a new place, which then stays taken."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPhoto:
    """A photo of the map, by its segment and row."""

    segment_id: str
    row: int
    image_id: str


class OpenedSegment:
    """A segment of the map; reads descriptors and local features by row."""

    def __init__(self, storage: Storage, entry: SegmentEntry) -> None:
        receipt = checked_receipt(storage, entry)
        folder = layout.segment_folder(entry.segment_id, entry.attempt)
        self._refs = {ref.path.removeprefix(folder + "/"): ref for ref in receipt.objects}
        images = self._refs[layout.IMAGES]
        self.images = read_table(storage, images.path, kind="images", columns=IMAGE_COLUMNS, expected=images).combine_chunks()
        codes = f"{folder}/{layout.DESCRIPTOR_CODES}"
        self.descriptors: DescriptorCodesReader | DescriptorReader = (
            DescriptorCodesReader(storage, codes, expected=receipt.objects)
            if any(ref.path.startswith(f"{codes}/") for ref in receipt.objects)
            else DescriptorReader(storage, self._refs[layout.DESCRIPTORS])  # written before there were codes
        )
        self.local_features = LocalFeaturesReader(storage, f"{folder}/{layout.LOCAL_FEATURES}", expected=receipt.objects)

    def image_id(self, row: int) -> str:
        """Name a photo."""
        return str(self.images["image_id"][row])


class OpenedMap:
    """A version of a map. For any number of threads.

    Args:
        storage: of the map.
        manifest: the version.

    Raises:
        DamagedError: a shard or the quantizer is not what the manifest says.
        FormatError: they are in a format this Folio does not read.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.manifest = manifest
        self._storage = storage
        self._entries = {entry.segment_id: entry for entry in manifest.segments}
        self._segments: dict[str, OpenedSegment] = {}
        self.calibration = decode_calibration(manifest.calibration)
        """What was fitted to the map, if anything was."""
        self._matching: tuple[Prior, dict[int, Bool[np.ndarray, " ids"]]] | None = None
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        self._descriptors = _PhotoCache(self._threads, self._read_descriptor, lambda row: row.nbytes)
        self._features = _PhotoCache(self._threads, self._read_features, lambda found: found.size_bytes)
        index = manifest.index
        require_readable("quantizer", index.quantizer_format, where=storage.url)
        require_readable("shard", index.shard_format, where=storage.url)
        self._searcher = ShardSearcher(
            get_object(storage, index.quantizer) if index.quantizer else None,
            index.parameters.get("nprobe", 1),
            [get_object(storage, shard.file) for shard in index.shards],
            [self._live_ids(shard) for shard in index.shards],
        )

    def segment(self, segment_id: str) -> OpenedSegment:
        """Open a segment, once."""
        if segment_id not in self._segments:
            self._segments[segment_id] = OpenedSegment(self._storage, self._entries[segment_id])
        return self._segments[segment_id]

    def _open(self, segment_ids: Iterable[str]) -> None:
        """Open segments side by side."""
        missing = [segment_id for segment_id in dict.fromkeys(segment_ids) if segment_id not in self._segments]
        list(self._threads.map(self.segment, missing))

    def nearest(self, descriptor: Float32[np.ndarray, " D"], count: int, prior: Prior | None = None) -> list[StoredPhoto]:
        """Find the photos whose compressed descriptors are nearest, nearest first.

        Ties go to the smaller image id, so the answer does not depend on how photos were cut into segments and shards.

        Args:
            descriptor: of the query.
            count: how many.
            prior: which photos can match; None: all.
        """
        # A few more than asked for, so that photos with equal codes at the end of the list are all there to choose from.
        hits = self._searcher.search(descriptor[None], count + 64, None if prior is None else self.matching(prior))[0]
        members = [self._member(shard, number) for _, shard, number in hits]
        self._open(member.segment_id for member in members)
        photos = [(distance, self._photo(member, number)) for (distance, _, number), member in zip(hits, members, strict=True)]
        photos.sort(key=lambda pair: (pair[0], pair[1].image_id))
        return [photo for _, photo in photos[:count]]

    def matching(self, prior: Prior) -> dict[int, Bool[np.ndarray, " ids"]]:
        """Mark, by shard, the ids of photos that can match; shards without any are left out. Kept for the next query."""
        found = self._matching
        if found is None or found[0] != prior:
            found = self._matching = (prior, self._find_matching(prior))
        return found[1]

    def _find_matching(self, prior: Prior) -> dict[int, Bool[np.ndarray, " ids"]]:
        touched = {entry.segment_id for entry in self.manifest.segments if prior.touches(entry.bbox)}
        self._open(touched)
        marks: dict[int, Bool[np.ndarray, " ids"]] = {}
        for number, shard in enumerate(self.manifest.index.shards):
            members = [member for member in shard.segments if member.segment_id in touched]
            rows = [prior.matches(self.segment(member.segment_id).images) for member in members]
            if any(one.any() for one in rows):
                ids = np.zeros(max(member.first_id + len(one) for member, one in zip(members, rows, strict=True)), bool)
                for member, one in zip(members, rows, strict=True):
                    ids[member.first_id : member.first_id + len(one)] = one
                marks[number] = ids
        return marks

    def refined(self, kept: int) -> int:
        """Say how many photos the map wants compared exactly, so that the best `kept` are right; 0: it was not measured."""
        return int(self.manifest.index.parameters.get("refined", 0)) * kept // KEPT

    def descriptors_of(self, photos: Sequence[StoredPhoto]) -> list[Int8[np.ndarray, " D"] | Float16[np.ndarray, " D"]]:
        """Read descriptors of photos, in their order: codes, or, of segments without codes, the descriptors themselves."""
        return self._descriptors.get(photos)

    def local_features_of(self, photos: Sequence[StoredPhoto]) -> list[LocalFeatures]:
        """Read the local features of photos, in their order.

        Raises:
            DamagedError: those of a photo are missing or not what was written.
        """
        return self._features.get(photos)

    def local_features_where_whole(self, photos: Sequence[StoredPhoto]) -> list[LocalFeatures | None]:
        """The same photo by photo, without those that are missing or damaged, which are logged."""
        return [self._local_features_if_whole(photo) for photo in photos]

    def _local_features_if_whole(self, photo: StoredPhoto) -> LocalFeatures | None:
        try:
            return self._features.get([photo])[0]
        except DamagedError as error:
            _log.warning("%s Photo %s is ranked by its descriptor alone.", error, photo.image_id)
            return None

    def _read_descriptor(self, segment: str, row: int) -> np.ndarray:
        read: np.ndarray = self.segment(segment).descriptors.read([row])[0]
        return read.copy() if isinstance(self.segment(segment).descriptors, DescriptorReader) else read  # not its row group

    def _read_features(self, segment: str, row: int) -> LocalFeatures:
        return self.segment(segment).local_features.read([row])[0]

    def positions(self) -> pa.Table:
        """List the live photos of the version: columns `POSITION_COLUMNS`."""
        self._open(self._entries)
        parts = []
        for segment_id, entry in self._entries.items():
            images = self.segment(segment_id).images.select(POSITION_COLUMNS).replace_schema_metadata(None)
            parts.append(images.filter(pa.array(live_rows(entry))))
        return pa.concat_tables(parts)

    def _live_ids(self, shard: ShardEntry) -> np.ndarray | None:
        """Mark the ids of a shard that are part of this version: (ids,) bool. None: all that it holds."""
        rows = [live_rows(self._entries[member.segment_id]) for member in shard.segments]
        if shard.rows == sum(int(live.sum()) for live in rows):  # made without the masked rows
            return None
        live = np.zeros(max(member.first_id + len(one) for member, one in zip(shard.segments, rows, strict=True)), bool)
        for member, one in zip(shard.segments, rows, strict=True):
            live[member.first_id : member.first_id + len(one)] = one
        return live

    def _member(self, shard: int, number: int) -> ShardSegment:
        members = self.manifest.index.shards[shard].segments
        return members[bisect_right(members, number, key=lambda one: one.first_id) - 1]

    def _photo(self, member: ShardSegment, number: int) -> StoredPhoto:
        row = number - member.first_id
        return StoredPhoto(segment_id=member.segment_id, row=row, image_id=self.segment(member.segment_id).image_id(row))


class _PhotoCache(Generic[T]):
    """What was read of the photos asked for last; reads the others side by side. For any number of threads."""

    def __init__(self, threads: ThreadPoolExecutor, read: Callable[[str, int], T], size_bytes: Callable[[T], int]) -> None:
        self._threads = threads
        self._read = read
        self._size_bytes = size_bytes
        self._held_bytes = 0
        self._kept: OrderedDict[tuple[str, int], T] = OrderedDict()
        self._lock = Lock()

    def get(self, photos: Sequence[StoredPhoto]) -> list[T]:
        keys = [(photo.segment_id, photo.row) for photo in photos]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        # Not under the lock: two threads may read the same, none waits for another's.
        shares = [missing[start::REQUESTS_AT_ONCE] for start in range(min(REQUESTS_AT_ONCE, len(missing)))]
        for share, read in zip(shares, self._threads.map(self._read_share, shares), strict=True):
            found.update(zip(share, read, strict=True))
        with self._lock:
            for key in keys:
                if key not in self._kept:
                    self._held_bytes += self._size_bytes(found[key])
                    self._kept[key] = found[key]
                self._kept.move_to_end(key)
            while self._held_bytes > CACHE_BYTES:
                self._held_bytes -= self._size_bytes(self._kept.popitem(last=False)[1])
        return [found[key] for key in keys]

    def _read_share(self, keys: list[tuple[str, int]]) -> list[T]:
        """Read what one thread is to read: handing over single photos would take longer than reading them from a disk."""
        return [self._read(*key) for key in keys]
