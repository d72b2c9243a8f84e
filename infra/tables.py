"""The Parquet tables of `schemas`, and any other object with a known sha256: written whole, checked before they are believed.

`put_object` and `get_object` carry any bytes, `write_table` and `read_table` a table, and `DescriptorReader` single rows of a
table of descriptors. Every page carries a checksum; whoever holds an `ObjectRef` (from a manifest or receipt) has size and
sha256 checked as well.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from infra.storage import Storage
from schemas.errors import DamagedError, ObjectMissing
from schemas.geoparquet import JsonValue, read_metadata, with_metadata
from schemas.manifest import ObjectRef

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
        "Put a copy back or build the map again; see what else is damaged: folio verify"
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
    return put_object(storage, path, buffer.getvalue())


def read_table(
    storage: Storage, path: str, *, kind: str, columns: list[str] | None = None, expected: ObjectRef | None = None
) -> pa.Table:
    """Read a table.

    Args:
        storage: where from.
        path: of the object.
        kind: what it must be.
        columns: those wanted; None: all.
        expected: what a manifest or receipt says of it; None: only the checksums of its pages are checked.

    Raises:
        ObjectMissing: it is not there, and `expected` was not given.
        FormatError: another kind, or a format this Folio does not read.
        DamagedError: it is not what was written.
    """
    data = storage.get(path) if expected is None else get_object(storage, expected)
    with _opened(storage, path, io.BytesIO(data)) as file:
        read_metadata(file.schema_arrow, kind, where=f"{storage.url}/{path}")
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
    """Reads single descriptors of a segment: only the row groups they are in, of which it checks the page checksums.

    Args:
        storage: where from.
        expected: what the receipt says of `descriptors.parquet`; its size is compared, not its sha256.

    Raises:
        DamagedError: it is missing, shorter or longer, or not Parquet.
        FormatError: another kind, or a format this Folio does not read.
    """

    def __init__(self, storage: Storage, expected: ObjectRef) -> None:
        self._storage = storage
        self._expected = expected
        needed = f"{expected.size_bytes} bytes"
        try:
            found = f"{storage.info(expected.path).size_bytes} bytes"
        except ObjectMissing:
            found = "nothing"
        if found != needed:
            raise damaged(storage, expected.path, found, needed)
        with self._open(None) as file:
            read_metadata(file.schema_arrow, "descriptors", where=f"{storage.url}/{expected.path}")
            self._metadata = file.metadata
        groups = range(self._metadata.num_row_groups)
        self._ends = np.cumsum([self._metadata.row_group(group).num_rows for group in groups])

    def read(self, rows: Sequence[int]) -> Float16[np.ndarray, "n D"]:
        """Read the descriptors of at least one photo, in the order asked for.

        Raises:
            DamagedError: a page is not what was written.
            IndexError: there is no such row.
        """
        wanted = np.asarray(rows, np.int64)
        if wanted.min() < 0 or wanted.max() >= self._metadata.num_rows:
            raise IndexError(f"rows go from 0 to {self._metadata.num_rows - 1}, got {wanted.min()} to {wanted.max()}")
        group_of = np.searchsorted(self._ends, wanted, side="right")
        groups, place = np.unique(group_of, return_inverse=True)
        with self._open(self._metadata) as file:
            read = file.read_row_groups(groups.tolist(), columns=["descriptor"])["descriptor"]
        sizes = np.diff(self._ends, prepend=0)[groups]
        first_row, first_read = self._ends[groups] - sizes, np.cumsum(sizes) - sizes
        chosen: np.ndarray = descriptor_matrix(read)[first_read[place] + wanted - first_row[place]]
        return chosen

    @contextmanager
    def _open(self, metadata: pq.FileMetaData | None) -> Iterator[pq.ParquetFile]:
        source = _ObjectFile(self._storage, self._expected)
        with _opened(self._storage, self._expected.path, source, metadata) as file:
            yield file


class _ObjectFile(io.RawIOBase):
    """A stored object as a file to read from here and there; the read-only half of what Python asks of a file."""

    def __init__(self, storage: Storage, expected: ObjectRef) -> None:
        self._storage = storage
        self._path = expected.path
        self._size = expected.size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants any writable buffer
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._storage.get(self._path, start=self._position, stop=stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@contextmanager
def _opened(
    storage: Storage, path: str, source: io.BytesIO | _ObjectFile, metadata: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file and tell damage, in it or in what is then read from it, as ours."""
    try:
        yield pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:  # a damaged footer may be bad Thrift, UTF-8 or JSON
        raise damaged(storage, path, f"a Parquet file that cannot be read ({error})", "one as it was written") from error


def _rows_per_group(table: pa.Table, kind: str) -> int:
    if kind != "descriptors":
        return ROW_GROUP_ROWS
    bytes_per_row: int = 2 * table.schema.field("descriptor").type.list_size
    return max(1, DESCRIPTOR_GROUP_BYTES // bytes_per_row)
