"""The Parquet tables of `schemas`, and any other object with a known sha256: written whole, checked before they are believed.

`put_object` and `get_object` carry any bytes, `write_table` and `read_table` a table, and `DescriptorReader` single rows of a
table of descriptors. Whoever holds an `ObjectRef` (from a manifest or receipt) has every byte checked: against the sha256 of the
object, or, where a part is read alone, against the crc32c of that part. Without one the table's own seal is checked.
"""

import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Final

import google_crc32c
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from infra.storage import Storage
from schemas.errors import DamagedError, ObjectMissing
from schemas.geoparquet import BLANK_SEAL, JsonValue, read_metadata, read_seal, with_metadata
from schemas.manifest import ObjectRef

READ_THREADS: Final = 8
"""Requests under way at once when photos are read; on S3 their waiting adds up otherwise."""

FOOTER_END_BYTES: Final = 8
"""After the footer of a Parquet file: its length and a magic number."""

ROW_GROUP_ROWS: Final = 65_536
"""Rows read at once from an ordinary table."""

DESCRIPTOR_GROUP_BYTES: Final = 256 * 1024
"""Size of a row group of descriptors: what is read to get one of them.

At 8448 numbers that is 15 rows. 100 descriptors from all over a segment of 2048 are then at most 26 MB and 0.2 s from local disk;
groups of 1 MB take 0.6 s. Smaller groups gain little and grow the footer, 100 kB now, that is read when a segment is opened.
"""


def put_object(storage: Storage, path: str, data: bytes) -> ObjectRef:
    """Write an object and say what its bytes are.

    Raises:
        StorageError: it could not be written.
    """
    storage.put(path, data)
    return ObjectRef(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def get_object(storage: Storage, expected: ObjectRef) -> bytes:
    """Read an object and check that its bytes are what they must be.

    Raises:
        DamagedError: it is missing, or has another size or sha256.
    """
    try:
        data = storage.get(expected.path)
    except ObjectMissing as error:
        raise damaged(storage, expected.path, "nothing", f"{expected.size_bytes} bytes") from error
    if len(data) != expected.size_bytes:
        raise damaged(storage, expected.path, f"{len(data)} bytes", f"{expected.size_bytes} bytes")
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != expected.sha256:
        raise damaged(storage, expected.path, f"sha256 {sha256[:12]}...", f"{expected.sha256[:12]}...")
    return data


def damaged(storage: Storage, path: str, found: str, needed: str) -> DamagedError:
    """Word the error for an object that is not what was once written."""
    return DamagedError(
        f"{storage.url}/{path}: found {found}, needed {needed}. Nothing was changed, and nothing of it was used. "
        f"Put a copy back, or, of a map: folio verify {storage.url} --repair"
    )


def write_table(
    storage: Storage, path: str, table: pa.Table, *, kind: str, facts: Mapping[str, JsonValue] | None = None
) -> ObjectRef:
    """Write a table as Parquet (GeoParquet where it has a geometry). Equal tables give equal bytes.

    Args:
        storage: where to.
        path: of the object.
        table: rows in the schema of `kind`.
        kind: one of `schemas.versions.FORMATS`.
        facts: what else a reader of this file should know; plain JSON values.

    Raises:
        StorageError: it could not be written.
    """
    table = with_metadata(table.combine_chunks(), kind, facts)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=_rows_per_group(table, kind),
        use_dictionary=[field.name for field in table.schema if pa.types.is_string(field.type)],
        write_page_checksum=True,
    )
    blank = buffer.getvalue()
    data = _with_seal(blank, BLANK_SEAL, hashlib.sha256(blank).hexdigest())
    ref = put_object(storage, path, data)
    return msgspec.structs.replace(ref, blocks=row_group_blocks(data)) if kind == "descriptors" else ref


def read_table(
    storage: Storage, path: str, *, kind: str, columns: list[str] | None = None, expected: ObjectRef | None = None
) -> pa.Table:
    """Read a table.

    Args:
        storage: where from.
        path: of the object.
        kind: what it must be.
        columns: those wanted; None: all.
        expected: what a manifest or receipt says of it; None: its own seal is checked, or, where it is of a Folio that set
            none, the checksums of its pages.

    Raises:
        ObjectMissing: it is not there, and `expected` was not given.
        FormatError: another kind, or a format this Folio does not read.
        DamagedError: it is not what was written.
    """
    data = storage.get(path) if expected is None else get_object(storage, expected)
    with _opened(storage, path, pa.BufferReader(data), check_pages=expected is None) as file:
        read_metadata(file.schema_arrow, kind, where=f"{storage.url}/{path}")
        seal = None if expected else read_seal(file.metadata.metadata)
        if seal is not None and hashlib.sha256(_with_seal(data, seal, BLANK_SEAL)).hexdigest() != seal:
            raise damaged(storage, path, "a table whose own sha256 does not match", "it as it was written")
        return file.read(columns=columns)


def read_table_facts(storage: Storage, path: str, *, kind: str) -> tuple[pa.Table, dict[str, JsonValue]]:
    """Read a table and the facts it was written with, which include its `kind` and `version`.

    Raises:
        As `read_table`.
    """
    table = read_table(storage, path, kind=kind)
    return table, read_metadata(table.schema, kind, where=f"{storage.url}/{path}")


def descriptor_column(descriptors: Float16[np.ndarray, "n D"]) -> pa.Array:
    """Make the `descriptor` column of n photos, without a loop over them."""
    item = pa.field("item", pa.float16(), nullable=False)
    flat = pa.array(np.ascontiguousarray(descriptors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, descriptors.shape[1]))


def descriptor_matrix(column: pa.ChunkedArray) -> Float16[np.ndarray, "n D"]:
    """The inverse of `descriptor_column`."""
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(column), column.type.list_size)


def read_descriptors(storage: Storage, expected: ObjectRef) -> Float16[np.ndarray, "n D"]:
    """Read all descriptors of a segment.

    Raises:
        As `read_table`.
    """
    table = read_table(storage, expected.path, kind="descriptors", columns=["descriptor"], expected=expected)
    return descriptor_matrix(table["descriptor"])


class DescriptorReader:
    """Reads single descriptors of a segment: only the row groups they are in. For any number of threads.

    Not a byte is believed that was not checked: the footer and each row group are blocks with a crc32c of their own in the
    receipt. A receipt without them (format 1) costs reading the whole file once, against its sha256.

    Args:
        storage: where from.
        expected: what the receipt says of `descriptors.parquet`.

    Raises:
        DamagedError: it is missing, or its footer is not what was written.
        FormatError: another kind, or a format this Folio does not read.
    """

    def __init__(self, storage: Storage, expected: ObjectRef) -> None:
        self._storage = storage
        self._expected = expected
        self._blocks = expected.blocks or row_group_blocks(get_object(storage, expected))
        self._starts = [0, *accumulate(size for size, _ in self._blocks)]
        with self._opened(io.BytesIO(self._fetch(len(self._blocks) - 1))) as file:
            read_metadata(file.schema_arrow, "descriptors", where=f"{storage.url}/{expected.path}")
            self._metadata = file.metadata
        groups = range(self._metadata.num_row_groups)
        self._ends = np.cumsum([self._metadata.row_group(group).num_rows for group in groups])

    @property
    def held_bytes(self) -> int:
        """What its footer takes in memory, about."""
        return 3 * self._blocks[-1][0] + 128 * len(self._blocks)

    def read(self, rows: Sequence[int]) -> Float16[np.ndarray, "n D"]:
        """Read the descriptors of at least one photo, in the order asked for.

        Raises:
            DamagedError: a row group is missing or not what was written.
            IndexError: there is no such row.
        """
        wanted = np.asarray(rows, np.int64)
        if wanted.min() < 0 or wanted.max() >= self._metadata.num_rows:
            raise IndexError(f"rows go from 0 to {self._metadata.num_rows - 1}, got {wanted.min()} to {wanted.max()}")
        group_of = np.searchsorted(self._ends, wanted, side="right")
        groups, place = np.unique(group_of, return_inverse=True)
        with ThreadPoolExecutor(READ_THREADS) as pool:
            fetched = dict(zip((self._starts[group] for group in groups), pool.map(self._fetch, groups.tolist()), strict=True))
        with self._opened(_Fetched(fetched)) as file:
            read = file.read_row_groups(groups.tolist(), columns=["descriptor"])["descriptor"]
        sizes = np.diff(self._ends, prepend=0)[groups]
        first_row, first_read = self._ends[groups] - sizes, np.cumsum(sizes) - sizes
        chosen: np.ndarray = descriptor_matrix(read)[first_read[place] + wanted - first_row[place]]
        return chosen

    def runs(self, rows: Sequence[int]) -> list[list[int]]:
        """Cut rows, ascending, into runs that `read_run` takes: those of one row group."""
        groups = np.searchsorted(self._ends, np.asarray(rows, np.int64), side="right")
        return [run.tolist() for run in np.split(np.asarray(rows, np.int64), np.flatnonzero(np.diff(groups)) + 1)]

    def read_run(self, rows: Sequence[int]) -> list[Float16[np.ndarray, " D"]]:
        """Read a run with one request; nothing but these rows stays in memory.

        Raises:
            DamagedError: the row group is missing or not what was written.
        """
        return [row.copy() for row in self.read(rows)]

    def _fetch(self, block: int) -> bytes:
        """Read a block: that of a row group has the group's number, the footer is the last."""
        (size, crc32c), start, path = self._blocks[block], self._starts[block], self._expected.path
        needed = f"{size} bytes from {start} on"
        try:
            data = self._storage.get(path, start=start, stop=start + size)
        except ObjectMissing as error:
            raise damaged(self._storage, path, "nothing", f"{self._expected.size_bytes} bytes") from error
        if len(data) != size:
            raise damaged(self._storage, path, f"{len(data)} bytes from {start} on", needed)
        if google_crc32c.value(data) != crc32c:
            raise damaged(self._storage, path, f"a wrong crc32c of the {needed}", "the one once written")
        return data

    @contextmanager
    def _opened(self, source: "io.BytesIO | _Fetched") -> Iterator[pq.ParquetFile]:
        metadata = self._metadata if isinstance(source, _Fetched) else None
        with _opened(self._storage, self._expected.path, source, metadata=metadata, check_pages=False) as file:
            yield file


class _Fetched(io.RawIOBase):
    """Blocks of an object, by where they start, as a file; the read-only half of what Python asks of a file."""

    def __init__(self, blocks: Mapping[int, bytes]) -> None:
        self._blocks = blocks
        self._starts = sorted(blocks)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._starts[-1] + len(self._blocks[self._starts[-1]])
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants any writable buffer
        start = self._starts[bisect_right(self._starts, self._position) - 1]
        data = memoryview(self._blocks[start])[self._position - start :][: len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def row_group_blocks(data: bytes) -> tuple[tuple[int, int], ...]:
    """Cut a Parquet file into what `DescriptorReader` fetches, its row groups and its footer: size and crc32c of each."""
    metadata = pq.read_metadata(io.BytesIO(data))
    first_columns = [metadata.row_group(group).column(0) for group in range(metadata.num_row_groups)]
    starts = [
        first.data_page_offset if first.dictionary_page_offset is None else first.dictionary_page_offset
        for first in first_columns
    ]
    edges = [0, *starts[1:], len(data) - metadata.serialized_size - FOOTER_END_BYTES, len(data)]
    parts = [data[start:stop] for start, stop in pairwise(edges)]
    return tuple((len(part), google_crc32c.value(part)) for part in parts)


@contextmanager
def _opened(
    storage: Storage,
    path: str,
    source: io.BytesIO | pa.BufferReader | _Fetched,
    *,
    metadata: pq.FileMetaData | None = None,
    check_pages: bool,
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file and tell damage, in it or in what is then read from it, as ours.

    Without `pre_buffer`, which would read across what lies between two row groups; the bytes are in memory already.
    """
    try:
        yield pq.ParquetFile(source, metadata=metadata, page_checksum_verification=check_pages, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:  # a damaged footer may be bad Thrift, UTF-8 or JSON
        raise damaged(storage, path, f"a Parquet file that cannot be read ({error})", "one as it was written") from error


def _with_seal(data: bytes, old: str, new: str) -> bytes:
    """Exchange the seal of a Parquet file, which stands in its footer as the last text of that kind."""
    before, mark, after = data.rpartition(f'"sha256": "{old}"'.encode())
    return before + mark.replace(old.encode(), new.encode()) + after if old else data


def _rows_per_group(table: pa.Table, kind: str) -> int:
    if kind != "descriptors":
        return ROW_GROUP_ROWS
    bytes_per_row: int = 2 * table.schema.field("descriptor").type.list_size
    return max(1, DESCRIPTOR_GROUP_BYTES // bytes_per_row)
