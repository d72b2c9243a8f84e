"""One version of a map, opened for reading: its shards in memory, of its segments what was asked for last. Everything is checked
before use.

What is kept of segments does not grow with the map (`TABLE_BYTES`, `READER_BYTES`, `CACHE_BYTES`), and no thread waits for what
another reads.
"""

import logging
import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, chain, groupby
from threading import Lock
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float16, Float32, Int8

from infra.arrays import DescriptorCodesReader, LocalFeaturesReader
from infra.storage import Storage
from infra.tables import DescriptorReader, get_object, read_table
from pipelines.build.masking import checked_receipt
from pipelines.build.membership import live_rows
from pipelines.engine.threads import ahead
from pipelines.ivfpq import Among, ShardSearcher
from pipelines.query.prior import Prior
from schemas import layout
from schemas.calibration import decode_calibration
from schemas.errors import DamagedError
from schemas.local_features import LocalFeatures
from schemas.manifest import Manifest, ObjectRef, SegmentEntry, ShardEntry, ShardSegment
from schemas.versions import require_readable

POSITION_COLUMNS: Final = ["image_id", "uri", "root", "lat_deg", "lon_deg"]
IMAGE_COLUMNS: Final = [*POSITION_COLUMNS, "taken_at"]
PRIOR_COLUMNS: Final = ["lat_deg", "lon_deg", "taken_at"]

CACHE_BYTES: Final = 8 * 1024 * 1024
"""Descriptors that are kept in memory between queries, and as much again of local features, those asked for last: the codes of
1,000 descriptors of 8,448 numbers, and of 250 photos' 640 features of 48 numbers."""

KEPT: Final = 100
"""Candidates of a query that `refined` in the manifest stands for."""

TABLE_BYTES: Final = 16 * 1024 * 1024
"""Tables of photos that are kept in memory between queries, those asked for last: 0.25 MB a segment of 2,048."""

READER_BYTES: Final = 16 * 1024 * 1024
"""What reads codes and local features, likewise: 32 kB a segment, so that of a million photos all stay."""

PART_BYTES: Final = 4 * 1024
"""What a part takes beside its table or index, about."""

REQUESTS_AT_ONCE: Final = 32
"""Of all queries together. The threads stay: each new one may take memory from a new place, which then stays taken."""

SHARE_PHOTOS: Final = 32
"""Photos that one of these threads reads before it hands them over, at most: a megabyte of local features."""

TABLES_AT_ONCE: Final = 8
"""Tables of photos that are read at once: each thread that ever read one keeps 2 to 3 MB of Arrow's memory."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Hit: TypeAlias = tuple[float, int, int]
"""Of a search: distance, shard, id."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a photo of the map is stored: its segment and row."""

    segment_id: str
    row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPhoto(Place):
    """A photo of the map."""

    image_id: str
    image: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Its row of `IMAGE_COLUMNS`, for whoever asks once the version is gone."""


class OpenedSegment:
    """A segment of the map: a photo table, descriptors and local features by row, each read when it is first asked for.

    Nothing is held here but in `kept`, so that a map of any size takes the same memory. For any number of threads.
    """

    def __init__(self, storage: Storage, entry: SegmentEntry, kept: "_Parts") -> None:
        self._storage = storage
        self._entry = entry
        self._kept = kept
        self._folder = layout.segment_folder(entry.segment_id, entry.attempt)

    @property
    def images(self) -> pa.Table:
        """Columns `IMAGE_COLUMNS` of its photos, masked ones too."""
        return self._part(self._kept.tables, "images", lambda: self.read_images(IMAGE_COLUMNS), lambda table: table.nbytes)

    @property
    def descriptors(self) -> DescriptorCodesReader | DescriptorReader:
        """Reads rows of them."""
        return self._part(self._kept.readers, "descriptors", self._open_descriptors, lambda reader: reader.held_bytes)

    @property
    def local_features(self) -> LocalFeaturesReader:
        """Reads those of single photos."""
        return self._part(self._kept.readers, "local features", self._open_local_features, lambda reader: reader.held_bytes)

    def image_id(self, row: int) -> str:
        """Name a photo."""
        return str(self.images["image_id"][row])

    def read_images(self, columns: Sequence[str]) -> pa.Table:
        """Read columns of its table of photos, and do not keep them."""
        (ref,) = (ref for ref in self._objects if ref.path == f"{self._folder}/{layout.IMAGES}")
        return read_table(self._storage, ref.path, kind="images", columns=list(columns), expected=ref).combine_chunks()

    @property
    def _objects(self) -> Sequence[ObjectRef]:
        """What the receipt says of the objects that queries read."""
        return self._part(
            self._kept.readers, "objects", self._read_objects, lambda refs: 512 * sum(1 + len(ref.blocks) for ref in refs)
        )

    def _read_objects(self) -> Sequence[ObjectRef]:
        refs, codes = checked_receipt(self._storage, self._entry).objects, f"{self._folder}/{layout.DESCRIPTOR_CODES}/"
        unused = layout.DESCRIPTORS if any(ref.path.startswith(codes) for ref in refs) else layout.REJECTS
        return [ref for ref in refs if ref.path != f"{self._folder}/{unused}"]

    def _open_descriptors(self) -> DescriptorCodesReader | DescriptorReader:
        objects, codes = self._objects, f"{self._folder}/{layout.DESCRIPTOR_CODES}"
        if any(ref.path.startswith(f"{codes}/") for ref in objects):
            return DescriptorCodesReader(self._storage, codes, expected=objects)
        (ref,) = (ref for ref in objects if ref.path == f"{self._folder}/{layout.DESCRIPTORS}")
        return DescriptorReader(self._storage, ref)  # written before there were codes

    def _open_local_features(self) -> LocalFeaturesReader:
        return LocalFeaturesReader(self._storage, f"{self._folder}/{layout.LOCAL_FEATURES}", expected=self._objects)

    def _part(
        self,
        kept: "_LastAskedFor[tuple[str, str], Any]",
        name: str,
        read: Callable[[], T],
        size_bytes: Callable[[T], int],
    ) -> T:
        key = (self._entry.segment_id, name)
        if key in (found := kept.find([key])):
            return cast(T, found[key])
        part = read()  # two threads may read the same, none waits for another
        kept.keep({key: part}, lambda one: PART_BYTES + size_bytes(one))
        return part


class OpenedMap:
    """A version of a map. For any number of threads.

    Args:
        storage: of the map.
        manifest: the version.
        prior: what all queries will be limited to; None: nothing. All shards are opened here, or those that the prior touches, so
            that damage is found now and not by whoever asks first; others are opened, and checked, when they are searched.

    Raises:
        DamagedError: a shard or the quantizer is not what the manifest says.
        FormatError: they are in a format this Folio does not read.
    """

    def __init__(self, storage: Storage, manifest: Manifest, prior: Prior | None = None) -> None:
        self.manifest = manifest
        self._storage = storage
        self._entries = {entry.segment_id: entry for entry in manifest.segments}
        self._kept = _Parts()
        self.calibration = decode_calibration(manifest.calibration)
        """What was fitted to the map, if anything was."""
        self._matching: tuple[Prior, dict[int, Bool[np.ndarray, " ids"]]] | None = None
        self._among: tuple[Prior, Among] | None = None
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE)
        self._table_threads = ThreadPoolExecutor(TABLES_AT_ONCE)
        self._descriptors: _PhotoCache[np.ndarray] = _PhotoCache(
            self._threads, lambda segment: self.segment(segment).descriptors, lambda row: row.nbytes
        )
        self._features: _PhotoCache[LocalFeatures] = _PhotoCache(
            self._threads, lambda segment: self.segment(segment).local_features, lambda found: found.size_bytes
        )
        index = manifest.index
        require_readable("quantizer", index.quantizer_format, where=storage.url)
        require_readable("shard", index.shard_format, where=storage.url)
        self._searcher = ShardSearcher(
            get_object(storage, index.quantizer) if index.quantizer else None,
            index.parameters.get("nprobe", 1),
            [partial(get_object, storage, shard.file) for shard in index.shards],
            [self._live_ids(shard) for shard in index.shards],
            [f"{storage.url}/{ref.path}" if ref else "" for ref in (index.quantizer, *(shard.file for shard in index.shards))],
            [shard.rows for shard in index.shards],
        )
        if prior is None:
            self._searcher.open()
        else:
            self._photos_of(prior)

    def segment(self, segment_id: str) -> OpenedSegment:
        """Give a segment of the map; reads nothing yet."""
        return OpenedSegment(self._storage, self._entries[segment_id], self._kept)

    def nearest(self, descriptor: Float32[np.ndarray, " D"], count: int, prior: Prior | None = None) -> list[StoredPhoto]:
        """Find the photos whose compressed descriptors are nearest, nearest first.

        Ties go to the smaller image id, so the answer does not depend on how photos were cut into segments and shards.

        Args:
            descriptor: of the query.
            count: how many.
            prior: which photos can match; None: all.
        """
        ((places, distances),) = self._hits([descriptor], count, prior)
        ((photos, _),) = self.best([places], [distances], count)
        return photos

    def candidates(
        self, descriptors: Sequence[Float32[np.ndarray, " D"]], count: int, prior: Prior | None = None
    ) -> list[list[Place]]:
        """Find, for each query, the same photos as `nearest`, equally near ones in any order: their names cost a table a segment.

        What is found does not depend on which queries are asked together; the index is looked at for all of them in one go.

        Args:
            descriptors: of the queries.
            count: how many photos for each.
            prior: which photos can match; None: all.
        """
        hits = self._hits(descriptors, count, prior)
        return [[places[chosen] for chosen in self._smallest(places, distances, count)] for places, distances in hits]

    def best(
        self, places: Sequence[Sequence[Place]], costs: Sequence[Sequence[float]], count: int
    ) -> list[tuple[list[StoredPhoto], list[float]]]:
        """Name, for each query, those of some photos that cost least, with their costs; ties go to the smaller image id.

        Args:
            places: of the photos, for each query.
            costs: of each; the smaller the better.
            count: how many for each, at most.
        """
        chosen = [self._smallest(there, cost, count) for there, cost in zip(places, costs, strict=True)]
        wanted = dict.fromkeys(there[one] for there, ones in zip(places, chosen, strict=True) for one in ones)
        named = dict(zip(wanted, self._named(list(wanted)), strict=True))
        found = []
        for there, cost, ones in zip(places, costs, chosen, strict=True):
            pairs = sorted(((cost[one], named[there[one]]) for one in ones), key=lambda pair: (pair[0], pair[1].image_id))
            found.append(([photo for _, photo in pairs], [cost for cost, _ in pairs]))
        return found

    def _hits(
        self, descriptors: Sequence[Float32[np.ndarray, " D"]], count: int, prior: Prior | None
    ) -> list[tuple[list[Place], list[float]]]:
        """Find for each query `count` photos and all that are as near as the last of them, nearest first, with distances."""
        only = None if prior is None else self._photos_of(prior)
        wanted = count + 64  # a few more, so that those as near as the last are there as a rule
        found = self._searcher.search(np.stack(descriptors), wanted, only)
        return [
            self._placed(self._complete(descriptor, hits, wanted, count, only))
            for descriptor, hits in zip(descriptors, found, strict=True)
        ]

    def _complete(
        self, descriptor: Float32[np.ndarray, " D"], hits: list[Hit], wanted: int, count: int, only: Among | None
    ) -> list[Hit]:
        """Leave out what is farther than the last; look again where more than were found may be as near as that."""
        while True:
            if len(hits) > count:
                hits = hits[: bisect_right(hits, hits[count - 1][0], key=lambda hit: hit[0])]
            if len(hits) < wanted:
                return hits
            wanted *= 4  # there may be more of the last ones: photos with equal codes, by the thousand
            (hits,) = self._searcher.search(descriptor[None], wanted, only)

    def _placed(self, hits: list[Hit]) -> tuple[list[Place], list[float]]:
        members = [self._member(shard, number) for _, shard, number in hits]
        places = [
            Place(segment_id=member.segment_id, row=number - member.first_id)
            for (_, _, number), member in zip(hits, members, strict=True)
        ]
        return places, [distance for distance, _, _ in hits]

    def _smallest(self, places: Sequence[Place], costs: Sequence[float], count: int) -> list[int]:
        """Choose by cost, and by image id only where the last ones of the chosen cost the same as others."""
        if len(places) <= count:
            return list(range(len(places)))
        last = sorted(costs)[count - 1]
        chosen = [number for number, cost in enumerate(costs) if cost < last]
        equal = [number for number, cost in enumerate(costs) if cost == last]
        if len(chosen) + len(equal) > count:
            names = self._rows_of([places[number] for number in equal], ["image_id"])
            equal = [number for _, number in sorted(zip([row["image_id"] for row in names], equal, strict=True))]
        return [*chosen, *equal[: count - len(chosen)]]

    def _named(self, places: Sequence[Place]) -> list[StoredPhoto]:
        return [
            StoredPhoto(segment_id=place.segment_id, row=place.row, image_id=row["image_id"], image=row)
            for place, row in zip(places, self._rows_of(places, IMAGE_COLUMNS), strict=True)
        ]

    def _rows_of(self, places: Sequence[Place], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Read columns of the tables of photos, a segment at a time in each thread: no more tables are in memory at once."""
        numbers_of = _by_segment(places)

        def read(segment_id: str) -> list[dict[str, Any]]:
            images = self.segment(segment_id).images
            wanted = [(name, images[name]) for name in columns]
            rows = (places[number].row for number in numbers_of[segment_id])
            return [{name: column[row].as_py() for name, column in wanted} for row in rows]

        rows: list[dict[str, Any]] = [{}] * len(places)
        for numbers, found in zip(numbers_of.values(), self._table_threads.map(read, numbers_of), strict=True):
            for number, row in zip(numbers, found, strict=True):
                rows[number] = row
        return rows

    def matching(self, prior: Prior) -> dict[int, Bool[np.ndarray, " ids"]]:
        """Mark, by shard, the ids of photos that can match; shards without any are left out. Kept for the next query."""
        found = self._matching
        if found is None or found[0] != prior:
            found = self._matching = (prior, self._find_matching(prior))
        return found[1]

    def _photos_of(self, prior: Prior) -> Among:
        """Make ready to search the photos that can match. Kept for the next query."""
        found = self._among
        if found is None or found[0] != prior:
            found = self._among = (prior, self._searcher.among(self.matching(prior)))
        return found[1]

    def _find_matching(self, prior: Prior) -> dict[int, Bool[np.ndarray, " ids"]]:
        touched = [entry.segment_id for entry in self.manifest.segments if prior.touches(entry.bbox)]
        matches = self._table_threads.map(lambda one: prior.matches(self.segment(one).read_images(PRIOR_COLUMNS)), touched)
        rows_of = dict(zip(touched, matches, strict=True))
        marks: dict[int, Bool[np.ndarray, " ids"]] = {}
        for number, shard in enumerate(self.manifest.index.shards):
            members = [member for member in shard.segments if member.segment_id in rows_of]
            rows = [rows_of[member.segment_id] for member in members]
            if any(one.any() for one in rows):
                ids = np.zeros(max(member.first_id + len(one) for member, one in zip(members, rows, strict=True)), bool)
                for member, one in zip(members, rows, strict=True):
                    ids[member.first_id : member.first_id + len(one)] = one
                marks[number] = ids
        return marks

    def refined(self, kept: int) -> int:
        """Say how many photos the map wants compared exactly, so that the best `kept` are right; 0: it was not measured."""
        return int(self.manifest.index.parameters.get("refined", 0)) * kept // KEPT

    def descriptors_of(self, photos: Sequence[Place]) -> Iterator[tuple[int, Int8[np.ndarray, " D"] | Float16[np.ndarray, " D"]]]:
        """Read descriptors of photos, each with its number among these, segment by segment, a few ahead: codes, or, of segments
        without codes, the descriptors themselves.

        Raises:
            DamagedError: that of a photo is missing or not what was written.
        """
        return self._descriptors.each(photos)

    def local_features_of(self, photos: Sequence[Place]) -> list[LocalFeatures]:
        """Read the local features of photos, in their order.

        Raises:
            DamagedError: those of a photo are missing or not what was written.
        """
        found = dict(self._features.each(photos))
        return [found[number] for number in range(len(photos))]

    def local_features_where_whole(self, photos: Sequence[Place]) -> list[LocalFeatures | None]:
        """The same without those that are missing or damaged, which are logged.

        Raises:
            DamagedError: what describes all features of a segment is not what was written.
        """
        found: list[LocalFeatures | None] = [None] * len(photos)
        for segment_id, numbers in _by_segment(photos).items():
            _ = self.segment(segment_id).local_features
            there = [photos[number] for number in numbers]
            try:
                read: list[LocalFeatures | None] = [*self.local_features_of(there)]
            except DamagedError:
                read = [self._local_features_if_whole(photo) for photo in there]
            for number, one in zip(numbers, read, strict=True):
                found[number] = one
        return found

    def _local_features_if_whole(self, photo: Place) -> LocalFeatures | None:
        try:
            return self.local_features_of([photo])[0]
        except DamagedError as error:
            image_id = self.segment(photo.segment_id).image_id(photo.row)
            _log.warning("%s Photo %s is ranked by its descriptor alone.", error, image_id)
            return None

    def positions(self, step: int = 1) -> pa.Table:
        """List every so manieth live photo of the version, in the order of its segments: columns `POSITION_COLUMNS`."""
        live = [np.flatnonzero(live_rows(entry)) for entry in self._entries.values()]
        before = accumulate((len(rows) for rows in live[:-1]), initial=0)
        wanted = [rows[-first % step :: step] for rows, first in zip(live, before, strict=True)]

        def read(segment_id: str, rows: np.ndarray) -> pa.Table:
            table = self.segment(segment_id).read_images(POSITION_COLUMNS)
            return table.replace_schema_metadata(None).take(pa.array(rows, pa.int64()))

        return pa.concat_tables(self._table_threads.map(read, self._entries, wanted))

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


class _LastAskedFor(Generic[K, T]):
    """Things that were asked for last, up to so many bytes. For any number of threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._things: OrderedDict[K, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def find(self, keys: Iterable[K]) -> dict[K, T]:
        """Give those that are here."""
        with self._lock:
            found = {key: self._things[key][0] for key in keys if key in self._things}
            for key in found:
                self._things.move_to_end(key)
            return found

    def keep(self, things: Mapping[K, T], size_bytes: Callable[[T], int]) -> None:
        """Add things, and let go of those not asked for longest."""
        with self._lock:
            for key, thing in things.items():
                if key not in self._things:
                    size = size_bytes(thing)
                    self._held_bytes += size
                    self._things[key] = thing, size
            while self._held_bytes > self._limit_bytes:
                self._held_bytes -= self._things.popitem(last=False)[1][1]


class _Parts:
    """Parts of segments that were asked for last, by segment and name."""

    def __init__(self) -> None:
        self.tables: _LastAskedFor[tuple[str, str], pa.Table] = _LastAskedFor(TABLE_BYTES)
        self.readers: _LastAskedFor[tuple[str, str], Any] = _LastAskedFor(READER_BYTES)


class _Reader(Protocol[T_co]):
    """Reads photos of one segment."""

    def runs(self, rows: Sequence[int]) -> list[list[int]]: ...

    def read_run(self, rows: Sequence[int]) -> Sequence[T_co]: ...


class _PhotoCache(Generic[T]):
    """What was read of the photos asked for last; reads the others side by side, neighbours together. For any number of threads.

    Args:
        threads: that read.
        reader_of: gives what reads a segment.
        size_bytes: of what was read.
    """

    def __init__(
        self, threads: ThreadPoolExecutor, reader_of: Callable[[str], _Reader[T]], size_bytes: Callable[[T], int]
    ) -> None:
        self._threads = threads
        self._reader_of = reader_of
        self._size_bytes = size_bytes
        self._kept: _LastAskedFor[tuple[str, int], T] = _LastAskedFor(CACHE_BYTES)

    def each(self, photos: Sequence[Place]) -> Iterator[tuple[int, T]]:
        """Give what there is of each photo, with its number: of those that are here first, then segment by segment."""
        numbers: dict[tuple[str, int], list[int]] = {}
        for number, photo in enumerate(photos):
            numbers.setdefault((photo.segment_id, photo.row), []).append(number)
        found = self._kept.find(numbers)
        missing = sorted(key for key in numbers if key not in found)
        for things in chain([found], ahead(self._threads, self._read, self._shares(missing), REQUESTS_AT_ONCE)):
            self._kept.keep(things, self._size_bytes)
            for key, thing in things.items():
                yield from ((number, thing) for number in numbers[key])

    def _shares(self, missing: Sequence[tuple[str, int]]) -> Iterator[list[tuple[str, list[int]]]]:
        """Share out photos, as handing over single ones would take longer than reading them from a disk; by runs of a segment."""
        rows_of = {segment: [row for _, row in several] for segment, several in groupby(missing, key=lambda key: key[0])}
        runs_of = self._threads.map(lambda segment: self._reader_of(segment).runs(rows_of[segment]), rows_of)
        size = min(SHARE_PHOTOS, math.ceil(len(missing) / REQUESTS_AT_ONCE))
        share: list[tuple[str, list[int]]] = []
        for segment, runs in zip(rows_of, runs_of, strict=True):
            for run in runs:
                share.append((segment, run))
                if sum(len(rows) for _, rows in share) >= size:
                    yield share
                    share = []
        if share:
            yield share

    def _read(self, share: list[tuple[str, list[int]]]) -> dict[tuple[str, int], T]:
        read: dict[tuple[str, int], T] = {}
        for segment, rows in share:
            read.update(zip(((segment, row) for row in rows), self._reader_of(segment).read_run(rows), strict=True))
        return read


def _by_segment(places: Sequence[Place]) -> dict[str, list[int]]:
    """Give the numbers of places by their segment."""
    numbers_of: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        numbers_of.setdefault(place.segment_id, []).append(number)
    return numbers_of
