"""The Zarr v3 arrays of a segment (`schemas/{local_features,descriptor_codes}.py`), written and read through `Storage`.

Workers append photo by photo and hold one shard in memory; queries read single photos as small ranges. Anyone with Zarr opens the
array without this file. What Zarr by itself would pass over is an error here: it reads what is missing as zeros.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import google_crc32c
import numpy as np
import zarr
from jaxtyping import Int8, UInt32
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from infra.storage import Storage
from infra.tables import READ_THREADS, damaged, get_object, put_object
from schemas.errors import DamagedError, FormatError, ObjectMissing
from schemas.local_features import LocalFeatures, Precision, bytes_per_feature, pack, unpack
from schemas.manifest import ObjectRef
from schemas.versions import FORMATS, require_readable

AnyArray = zarr.Array[Any]
T = TypeVar("T")

SHARD_BYTES: Final = 32 * 1024 * 1024
"""Features in one shard object, about, and in the writer's memory."""

SHARD_PHOTOS: Final = 2048
"""The most photos in one: its index takes 16 bytes for each, also for those that are not there."""

RUN_GAP_BYTES: Final = 64 * 1024
"""What may lie between two photos that are read with one request: from a disk it is read faster than another file is opened, from
a bucket far faster than another request is answered."""

RUN_BYTES: Final = 1024 * 1024
"""Of one such request, at most, unless a photo alone takes more."""

INDEX_ENTRY_BYTES: Final = 16
CRC_BYTES: Final = 4

NO_CHUNK: Final = 2**32 - 1
"""Where a chunk starts that is not in its shard object; those end long before."""


class LocalFeaturesWriter:
    """Writes the local features of a segment, photo by photo. Equal photos give equal bytes.

    Args:
        storage: where to.
        path: of the array, where nothing is yet.
        features_per_photo: K, the most features a photo can have; fewer are padded with zeros.
        dim: numbers in a feature.
        precision: how they are stored.
    """

    def __init__(self, storage: Storage, path: str, *, features_per_photo: int, dim: int, precision: Precision) -> None:
        self._store = _StorageStore(storage, path, read_only=False)
        self._features_per_photo = features_per_photo
        self._precision: Precision = precision
        row = (features_per_photo, bytes_per_feature(dim, precision))
        self._shard_photos = max(1, min(SHARD_PHOTOS, SHARD_BYTES // max(1, math.prod(row))))
        self._array = _create_rows(
            self._store,
            (0, *row),
            np.dtype(np.uint8),
            shard_rows=self._shard_photos,
            attributes={"kind": "local_features", "dim": dim, "precision": precision},
        )
        self._waiting: list[np.ndarray] = []

    def append(self, photo: LocalFeatures) -> None:
        """Add the next photo.

        Raises:
            ValueError: it has more than K features, or they are not of the array's precision.
            StorageError: a shard could not be written.
        """
        self._waiting.append(pack(photo, self._features_per_photo, self._precision))
        if len(self._waiting) == self._shard_photos:
            self._flush()

    def close(self) -> list[ObjectRef]:
        """Write what is left and say what was written, by path.

        Raises:
            StorageError: it could not be written.
        """
        if self._waiting:
            self._flush()
        return [self._store.written[path] for path in sorted(self._store.written)]

    def _flush(self) -> None:
        self._array.append(np.stack(self._waiting))
        self._waiting = []


class LocalFeaturesReader:
    """Reads the local features of single photos of a segment. For any number of threads.

    Args:
        storage: where from.
        path: of the array, or of a group of format 1.
        expected: what the receipt says of the objects. Those read whole (the metadata) are checked against it; of all others
            only ranges are read, and of each range the crc32c is checked.

    Raises:
        DamagedError: the metadata is missing or not what was written.
        FormatError: something else, or a format this Folio does not read.
    """

    def __init__(self, storage: Storage, path: str, *, expected: Sequence[ObjectRef] = ()) -> None:
        store = _StorageStore(storage, path, read_only=True, expected={ref.path: ref for ref in expected})
        with _metadata_of(storage, path):
            opened = zarr.open(store, mode="r", zarr_format=3, use_consolidated=False)
            _require_kind(dict(opened.attrs), "local_features", where=f"{storage.url}/{path}")
            self._rows: _PackedRows | _Format1Rows = (
                _Format1Rows(storage, path, opened) if isinstance(opened, zarr.Group) else _PackedRows(storage, path, opened)
            )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def held_bytes(self) -> int:
        """What its indexes take in memory once every photo has been read."""
        return self._rows.held_bytes

    def read(self, rows: Sequence[int]) -> list[LocalFeatures]:
        """Read photos, in the order asked for.

        Raises:
            DamagedError: a chunk is missing or not what was written.
            IndexError: there is no such row.
        """
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            raise IndexError(f"rows go from 0 to {len(self) - 1}, got {min(rows)} to {max(rows)}")
        return _read_each(self._rows.read, rows)

    def runs(self, rows: Sequence[int]) -> list[list[int]]:
        """Cut photos, ascending, into runs that `read_run` takes: those that lie near each other, up to `RUN_BYTES`.

        Raises:
            DamagedError: a shard's index is missing or not what was written.
        """
        return self._rows.runs(rows)

    def read_run(self, rows: Sequence[int]) -> list[LocalFeatures]:
        """Read a run with one request, or, of format 1, photo by photo.

        Raises:
            DamagedError: one of its chunks is missing or not what was written.
        """
        return self._rows.read_run(rows)


def write_descriptor_codes(storage: Storage, path: str, codes: Int8[np.ndarray, "n D"]) -> list[ObjectRef]:
    """Write the codes of a segment's descriptors and say what was written, by path. Equal codes give equal bytes.

    Raises:
        StorageError: it could not be written.
    """
    store = _StorageStore(storage, path, read_only=False)
    shard_rows = max(1, min(SHARD_PHOTOS, len(codes)))
    _create_rows(store, codes.shape, codes.dtype, shard_rows=shard_rows, attributes={"kind": "descriptor_codes"})[:] = codes
    return [store.written[path] for path in sorted(store.written)]


class DescriptorCodesReader:
    """Reads single rows of a segment's descriptor codes. For any number of threads.

    Args:
        storage: where from.
        path: of the array.
        expected: what the receipt says of the objects; see `LocalFeaturesReader`.

    Raises:
        DamagedError: the metadata is missing or not what was written.
        FormatError: something else, or a format this Folio does not read.
    """

    def __init__(self, storage: Storage, path: str, *, expected: Sequence[ObjectRef] = ()) -> None:
        store = _StorageStore(storage, path, read_only=True, expected={ref.path: ref for ref in expected})
        with _metadata_of(storage, path):
            array = zarr.open_array(store, mode="r", zarr_format=3)
            _require_kind(dict(array.attrs), "descriptor_codes", where=f"{storage.url}/{path}")
            self._rows = _ShardedRows(storage, path, array)

    @property
    def held_bytes(self) -> int:
        """What its indexes take in memory once every row has been read."""
        return self._rows.held_bytes

    def read(self, rows: Sequence[int]) -> list[Int8[np.ndarray, " D"]]:
        """Read rows, in the order asked for.

        Raises:
            DamagedError: a row is missing or not what was written.
        """
        return _read_each(self._rows.read, rows)

    def runs(self, rows: Sequence[int]) -> list[list[int]]:
        """Cut rows, ascending, into runs that `read_run` takes: see `LocalFeaturesReader.runs`."""
        return self._rows.runs(rows)

    def read_run(self, rows: Sequence[int]) -> list[Int8[np.ndarray, " D"]]:
        """Read a run with one request.

        Raises:
            DamagedError: one of its rows is missing or not what was written.
        """
        return self._rows.read_run(rows)


class _PackedRows:
    """Format 2: a photo is one chunk of bytes."""

    def __init__(self, storage: Storage, path: str, array: AnyArray) -> None:
        attributes = dict(array.attrs)
        self._dim, self._precision = int(attributes["dim"]), cast(Precision, attributes["precision"])  # type: ignore[arg-type]
        if array.ndim != 3 or array.dtype != np.uint8 or array.shape[2] != bytes_per_feature(self._dim, self._precision):
            raise ValueError(f"an array of {array.dtype} {array.shape} for features of {self._dim} numbers in {self._precision}")
        self._length = array.shape[0]
        self._bytes = _ShardedRows(storage, path, array)

    def __len__(self) -> int:
        return self._length

    @property
    def held_bytes(self) -> int:
        return self._bytes.held_bytes

    def read(self, row: int) -> LocalFeatures:
        return self._unpacked(row, self._bytes.read(row))

    def runs(self, rows: Sequence[int]) -> list[list[int]]:
        return self._bytes.runs(rows)

    def read_run(self, rows: Sequence[int]) -> list[LocalFeatures]:
        return [self._unpacked(row, packed) for row, packed in zip(rows, self._bytes.read_run(rows), strict=True)]

    def _unpacked(self, row: int, packed: np.ndarray) -> LocalFeatures:
        try:
            return unpack(packed, self._dim, self._precision)
        except ValueError as error:
            raise self._bytes.damaged(row, str(error), "features") from error


class _Format1Rows:
    """Format 1: a photo is a chunk in each of three arrays, and a number in a fourth."""

    def __init__(self, storage: Storage, path: str, group: zarr.Group) -> None:
        self._count: list[int] = np.asarray(_array(group, "count")[:]).tolist()
        self._features, self._patch, self._reliability = (
            _ShardedRows(storage, f"{path}/{name}", _array(group, name)) for name in ("features", "patch", "reliability")
        )

    def __len__(self) -> int:
        return len(self._count)

    @property
    def held_bytes(self) -> int:
        return 8 * len(self._count) + sum(rows.held_bytes for rows in (self._features, self._patch, self._reliability))

    def read(self, row: int) -> LocalFeatures:
        count = self._count[row]  # what follows is padding; a copy lets go of it
        return LocalFeatures(
            features=self._features.read(row)[:count].copy(),
            patch=self._patch.read(row)[:count].copy(),
            reliability=self._reliability.read(row)[:count].copy(),
        )

    def runs(self, rows: Sequence[int]) -> list[list[int]]:
        return [[row] for row in rows]

    def read_run(self, rows: Sequence[int]) -> list[LocalFeatures]:
        return [self.read(row) for row in rows]


class _ShardedRows:
    """Reads single rows of a sharded Zarr array whose chunks are one row each, without compression and with a crc32c.

    Zarr reads them too, but takes 4 ms of CPU a row, spent on index arithmetic, and fetches the shard's index every time; this
    takes 0.1 ms. A shard is its chunks and then, for each, offset and length as uint64; the index has a crc32c of its own.

    Source: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
    """

    def __init__(self, storage: Storage, path: str, array: AnyArray) -> None:
        if array.shards is None:
            raise TypeError(f"{path} is not sharded")
        self._storage = storage
        self._path = path
        self._shard_rows = array.shards[0]
        self._row_shape = array.shape[1:]
        self._dtype = array.dtype
        self._row_bytes = math.prod(self._row_shape) * self._dtype.itemsize
        self._starts: dict[int, UInt32[np.ndarray, " rows"]] = {}  # shard -> where each chunk of it starts
        self.held_bytes = 4 * self._shard_rows * math.ceil(array.shape[0] / self._shard_rows)

    def read(self, row: int) -> np.ndarray:
        """Read one row; the array is read-only."""
        (found,) = self.read_run([row])
        return found

    def runs(self, rows: Sequence[int]) -> list[list[int]]:
        """Cut rows, ascending, into runs that lie near each other in one shard. A row that has no chunk is a run of its own."""
        runs: list[list[int]] = []
        first, last = 0, -1
        for row in rows:
            start, shard = self._start(row), row // self._shard_rows
            follows = runs and runs[-1][-1] // self._shard_rows == shard and last <= start <= last + RUN_GAP_BYTES
            if follows and start + self._row_bytes + CRC_BYTES - first <= RUN_BYTES and start != NO_CHUNK:
                runs[-1].append(row)
            else:
                runs.append([row])
                first = start
            last = start + self._row_bytes + CRC_BYTES
        return runs

    def read_run(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Read one row, or what `runs` gave; the arrays are read-only."""
        shard, length = rows[0] // self._shard_rows, self._row_bytes + CRC_BYTES
        starts = [self._start(row) for row in rows]
        if NO_CHUNK in starts:
            row = rows[starts.index(NO_CHUNK)]
            raise self._damaged(shard, f"no chunk of {self._row_bytes} bytes for photo {row}", "one")
        data = self._get(shard, start=starts[0], stop=starts[-1] + length)
        chunks = [data[start - starts[0] : start - starts[0] + length] for start in starts]
        contents = [self._checked(shard, chunk, length, start) for chunk, start in zip(chunks, starts, strict=True)]
        return [np.frombuffer(content, self._dtype).reshape(self._row_shape) for content in contents]

    def _start(self, row: int) -> int:
        """Say where a row's chunk starts in its shard."""
        shard, place = divmod(row, self._shard_rows)
        if shard not in self._starts:
            index_bytes = INDEX_ENTRY_BYTES * self._shard_rows + CRC_BYTES
            data = self._checked(shard, self._get(shard, start=-index_bytes), index_bytes, -index_bytes)
            index = np.frombuffer(data, "<u8").reshape(-1, 2)
            there = index[:, 1] == self._row_bytes + CRC_BYTES  # 2**64 - 1 where Zarr left the chunk out
            self._starts[shard] = np.where(there, index[:, 0], NO_CHUNK).astype(np.uint32)
        return int(self._starts[shard][place])

    def damaged(self, row: int, found: str, needed: str) -> DamagedError:
        """Make the error for a row whose bytes are those written and yet make no sense."""
        return self._damaged(row // self._shard_rows, f"in photo {row} {found}", needed)

    def _get(self, shard: int, *, start: int, stop: int | None = None) -> bytes:
        try:
            return self._storage.get(self._object(shard), start=start, stop=stop)
        except ObjectMissing as error:
            raise self._damaged(shard, "nothing", "a part of an array") from error

    def _checked(self, shard: int, data: bytes, size_bytes: int, start: int) -> bytes:
        """Give what was written of bytes that begin at `start` and end with their crc32c."""
        if len(data) != size_bytes:
            raise self._damaged(shard, f"{len(data)} bytes from {start} on", f"{size_bytes} bytes")
        content, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
        if google_crc32c.value(content) != int.from_bytes(crc, "little"):
            raise self._damaged(shard, f"a wrong crc32c of the {size_bytes} bytes from {start} on", "the one once written")
        return content

    def _damaged(self, shard: int, found: str, needed: str) -> DamagedError:
        return damaged(self._storage, self._object(shard), found, needed)

    def _object(self, shard: int) -> str:
        return "/".join([self._path, "c", str(shard), *["0"] * len(self._row_shape)])


class _StorageStore(Store):
    """Zarr's view of a folder of a `Storage`. It keeps account of what was written, and does not let chunks be missing.

    The storage is asked in a thread, because all writers of a process share the one event loop of Zarr.
    """

    supports_writes = True
    supports_deletes = False
    supports_listing = False

    def __init__(self, storage: Storage, path: str, *, read_only: bool, expected: Mapping[str, ObjectRef] | None = None) -> None:
        super().__init__(read_only=read_only)
        self._storage = storage
        self._path = path
        self._expected = expected or {}
        self.written: dict[str, ObjectRef] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        assert byte_range is None, "only metadata and count are read through Zarr, and those whole"
        path = f"{self._path}/{key}"
        if not self.read_only and path not in self.written:
            return None  # a writer's folder is new, so what it did not write is not there
        if self._expected and path not in self._expected:
            return None  # nor is what the receipt does not list
        try:
            data = await asyncio.to_thread(self._fetch, path)
        except ObjectMissing as error:
            if "/c/" in key:
                raise damaged(self._storage, path, "nothing", "a part of an array") from error
            return None
        return prototype.buffer.from_bytes(data)

    async def set(self, key: str, value: Buffer) -> None:
        path = f"{self._path}/{key}"
        self.written[path] = await asyncio.to_thread(put_object, self._storage, path, value.to_bytes())

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return (await self.get(key, default_buffer_prototype())) is not None

    async def delete(self, key: str) -> None:
        raise NotImplementedError("a segment is never changed")

    def list(self) -> AsyncIterator[str]:
        raise NotImplementedError("Zarr lists nothing here: the members of the group are known")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self.list()

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self.list()

    def _fetch(self, path: str) -> bytes:
        return get_object(self._storage, self._expected[path]) if self._expected else self._storage.get(path)


def _array(group: zarr.Group, name: str) -> AnyArray:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} is no array")
    return array


def _read_each(read: Callable[[int], T], rows: Sequence[int]) -> list[T]:
    """Read rows side by side."""
    if len(rows) < 2:
        return [read(row) for row in rows]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, rows))


def _create_rows(
    store: "_StorageStore", shape: tuple[int, ...], dtype: np.dtype[Any], *, shard_rows: int, attributes: Mapping[str, Any]
) -> AnyArray:
    """Create an array whose chunks are one row each, many in a shard object."""
    return zarr.create_array(
        store,
        shape=shape,
        dtype=dtype,
        chunks=(1, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        zarr_format=3,
        compressors=[Crc32cCodec()],  # codes do not compress; without the checksum a flipped bit is read as it is
        attributes={**attributes, "version": FORMATS[attributes["kind"]]},
        config={"write_empty_chunks": True},  # so that a chunk that is not there is never right
    )


@contextmanager
def _metadata_of(storage: Storage, path: str) -> Iterator[None]:
    """Tell damage of an array's metadata as ours."""
    try:
        yield
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:  # whatever Zarr makes of damaged metadata
        raise damaged(storage, path, f"Zarr metadata that cannot be read ({error})", "what was written") from error


def _require_kind(attributes: Mapping[str, Any], kind: str, *, where: str) -> None:
    if attributes.get("kind") != kind:
        raise FormatError(
            f"{where}: expected a Zarr array of kind {kind}, found {attributes.get('kind', 'no kind')}. "
            "Nothing was changed. Check the path."
        )
    require_readable(kind, int(attributes["version"]), where=where)
