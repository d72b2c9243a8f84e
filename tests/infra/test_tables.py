"""Tables go out and come back unchanged, and no altered byte of one is believed."""

import hashlib
import io
import json

import duckdb
import geopandas
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.storage import Storage
from infra.tables import (
    DescriptorReader,
    descriptor_column,
    descriptor_matrix,
    get_object,
    put_object,
    read_descriptors,
    read_table,
    read_table_facts,
    write_table,
)
from schemas.descriptors import descriptors_schema
from schemas.errors import DamagedError, FormatError, MapError, ObjectMissing
from schemas.geoparquet import point_columns
from schemas.manifest import ObjectRef
from schemas.rejects import REJECTS

DIM = 8448


def rejects(rows: int = 3) -> pa.Table:
    names = [f"{row}.jpg" for row in range(rows)]
    none = pa.nulls(rows, pa.string())
    return pa.table([names, ["city"] * rows, none, ["encode"] * rows, ["truncated"] * rows, [""] * rows], schema=REJECTS)


def numbered_descriptors(rows: int, dim: int = DIM) -> np.ndarray:
    """Every number of row r is r (exact in float16 up to 2048)."""
    return np.repeat(np.arange(rows, dtype=np.float16)[:, None], dim, axis=1)


def descriptor_table(descriptors: np.ndarray) -> pa.Table:
    rows = len(descriptors)
    geometry, bbox = point_columns(np.linspace(13.0, 13.1, rows), np.linspace(55.6, 55.7, rows))
    names = [f"{row:032x}" for row in range(rows)]
    return pa.table([names, descriptor_column(descriptors), geometry, bbox], schema=descriptors_schema(descriptors.shape[1]))


def write_descriptors(storage: Storage, descriptors: np.ndarray) -> ObjectRef:
    return write_table(storage, "descriptors.parquet", descriptor_table(descriptors), kind="descriptors")


def flip(storage: Storage, path: str, bit: int) -> None:
    data = bytearray(storage.get(path))
    data[bit // 8] ^= 1 << bit % 8
    storage.put(path, bytes(data))


def test_a_table_comes_back_with_its_facts_and_is_what_its_reference_says(storage: Storage):
    ref = write_table(storage, "a/rejects.parquet", rejects(), kind="rejects", facts={"run_id": "r1"})

    table, facts = read_table_facts(storage, "a/rejects.parquet", kind="rejects")

    assert table.replace_schema_metadata(None).equals(rejects())
    assert facts == {"kind": "rejects", "version": 1, "run_id": "r1"}
    data = storage.get("a/rejects.parquet")
    assert ref == ObjectRef(path="a/rejects.parquet", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert read_table(storage, ref.path, kind="rejects", columns=["uri"], expected=ref).column_names == ["uri"]


def test_a_table_without_rows_comes_back(local: Storage):
    ref = write_table(local, "rejects.parquet", rejects(0), kind="rejects")

    assert read_table(local, ref.path, kind="rejects", expected=ref).num_rows == 0


def test_equal_tables_give_equal_bytes_however_they_are_chunked(local: Storage):
    halves = pa.concat_tables([rejects(1000).slice(0, 300), rejects(1000).slice(300)])

    first = write_table(local, "1", rejects(1000), kind="rejects", facts={"a": 1, "b": 2})
    second = write_table(local, "2", halves, kind="rejects", facts={"b": 2, "a": 1})

    assert first.sha256 == second.sha256


def test_another_kind_of_table_is_refused(local: Storage):
    write_table(local, "rejects.parquet", rejects(), kind="rejects")

    with pytest.raises(FormatError, match=r"expected a Folio table of kind images, found rejects"):
        read_table(local, "rejects.parquet", kind="images")


def test_a_table_that_is_not_there_is_missing_or_where_one_was_promised_damage(local: Storage):
    with pytest.raises(ObjectMissing):
        read_table(local, "gone", kind="images")
    with pytest.raises(DamagedError, match=r"map/gone: found nothing, needed 5 bytes.*folio verify"):
        read_table(local, "gone", kind="images", expected=ObjectRef(path="gone", size_bytes=5, sha256=""))


def test_an_object_of_another_size_or_content_than_promised_is_damage(storage: Storage):
    ref = put_object(storage, "shard.faiss", b"0123456789")
    assert get_object(storage, ref) == b"0123456789"

    storage.put("shard.faiss", b"012345678")
    with pytest.raises(DamagedError, match=r"shard\.faiss: found 9 bytes, needed 10 bytes"):
        get_object(storage, ref)
    storage.put("shard.faiss", b"0123456780")
    with pytest.raises(DamagedError, match=r"shard\.faiss: found sha256 [0-9a-f]{12}"):
        get_object(storage, ref)


def test_descriptors_come_back_bit_for_bit(local: Storage):
    descriptors = np.random.default_rng(0).normal(size=(40, 24)).astype(np.float16)

    assert np.array_equal(descriptor_matrix(pa.chunked_array([descriptor_column(descriptors)])), descriptors)
    assert np.array_equal(read_descriptors(local, write_descriptors(local, descriptors)), descriptors)


def test_single_descriptors_come_in_the_order_asked_for_also_twice(storage: Storage):
    reader = DescriptorReader(storage, write_descriptors(storage, numbered_descriptors(70)))

    found = reader.read([69, 0, 15, 14, 0, 30])

    assert found.shape == (6, DIM)
    assert found[:, 0].tolist() == found[:, -1].tolist() == [69, 0, 15, 14, 0, 30]
    with pytest.raises(IndexError, match="0 to 69"):
        reader.read([3, 70])


class Counting:
    """A storage that counts the bytes it hands out."""

    def __init__(self, inner: Storage) -> None:
        self.inner, self.read_bytes = inner, 0

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        data = self.inner.get(path, start=start, stop=stop)
        self.read_bytes += len(data)
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_one_descriptor_costs_one_row_group_not_the_file(local: Storage):
    noise = np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float16)  # does not compress
    counting = Counting(local)
    reader = DescriptorReader(counting, write_descriptors(local, noise))
    counting.read_bytes = 0

    reader.read([150])

    assert 15 * DIM < counting.read_bytes < 300_000  # 15 rows of 16.9 kB; the file has 5 MB


def test_any_flipped_bit_of_a_table_is_noticed(local: Storage):
    ref = write_table(local, "rejects.parquet", rejects(200), kind="rejects")
    for bit in np.random.default_rng(7).integers(0, 8 * ref.size_bytes, 50).tolist():
        flip(local, ref.path, bit)
        with pytest.raises(DamagedError, match=r"rejects\.parquet: found sha256"):
            read_table(local, ref.path, kind="rejects", expected=ref)
        flip(local, ref.path, bit)


def test_any_flipped_bit_of_a_table_is_noticed_also_by_its_own_seal(local: Storage):
    """Also in the footer, which no page's checksum covers; every bit of the name that the seal stands under."""
    ref = write_table(local, "rejects.parquet", rejects(200), kind="rejects", facts={"run_id": "r1"})
    name = 8 * local.get(ref.path).rindex(b"folio\x18")
    footer_bytes = pq.read_metadata(io.BytesIO(local.get(ref.path))).serialized_size + 8
    random = np.random.default_rng(7)
    in_footer = 8 * ref.size_bytes - random.integers(1, 8 * footer_bytes, 80)
    for bit in [*random.integers(0, 8 * ref.size_bytes, 50).tolist(), *in_footer.tolist(), *range(name - 8, name + 48)]:
        flip(local, ref.path, bit)
        with pytest.raises(MapError, match=r"rejects\.parquet"):
            read_table(local, ref.path, kind="rejects")
        flip(local, ref.path, bit)


@pytest.mark.parametrize("blocks_known", [True, False], ids=["blocks in the receipt", "a receipt of format 1"])
def test_any_flipped_bit_of_descriptors_is_noticed_wherever_it_is(local: Storage, blocks_known: bool):
    """Also in page headers, statistics and the footer, which the checksums of Parquet's pages leave out."""
    descriptors = np.random.default_rng(1).normal(size=(60, 512)).astype(np.float16)
    ref = write_descriptors(local, descriptors)
    ref = ref if blocks_known else msgspec.structs.replace(ref, blocks=())
    assert np.array_equal(DescriptorReader(local, ref).read(range(60)), descriptors)
    for bit in np.random.default_rng(8).integers(0, 8 * ref.size_bytes, 100).tolist():
        flip(local, ref.path, bit)
        with pytest.raises(DamagedError, match=r"descriptors\.parquet"):
            DescriptorReader(local, ref).read(range(60))
        flip(local, ref.path, bit)


def test_a_row_group_damaged_after_opening_is_noticed_and_others_are_read(local: Storage):
    ref = write_descriptors(local, numbered_descriptors(60))
    reader = DescriptorReader(local, ref)
    flip(local, ref.path, 8 * (ref.blocks[0][0] + 10))  # in the second group: rows 15 to 29

    assert reader.read([14, 30])[:, 0].tolist() == [14, 30]
    with pytest.raises(DamagedError, match="found a wrong crc32c"):
        reader.read([14, 15])


def test_a_file_of_descriptors_is_cut_into_its_row_groups_and_its_footer(local: Storage):
    ref = write_descriptors(local, numbered_descriptors(40))
    metadata = pq.read_metadata(io.BytesIO(local.get(ref.path)))

    assert metadata.num_row_groups == 3  # of 15 rows
    assert len(ref.blocks) == 4
    assert sum(size for size, _ in ref.blocks) == ref.size_bytes
    assert ref.blocks[-1][0] == metadata.serialized_size + 8


def test_a_truncated_table_is_noticed(local: Storage):
    ref = write_descriptors(local, numbered_descriptors(20))
    local.put(ref.path, local.get(ref.path)[:-100])

    with pytest.raises(DamagedError, match=r"found \d+ bytes from \d+ on, needed \d+ bytes"):
        DescriptorReader(local, ref)
    with pytest.raises(DamagedError, match="cannot be read"):
        read_table(local, ref.path, kind="descriptors")


def test_others_open_a_table_without_us(local: Storage):
    ref = write_descriptors(local, numbered_descriptors(20, dim=4))
    data = local.get(ref.path)

    table = pq.read_table(io.BytesIO(data))
    assert json.loads(table.schema.metadata[b"folio"])["kind"] == "descriptors"
    assert table["descriptor"][7].as_py() == [7, 7, 7, 7]
    points = geopandas.read_parquet(io.BytesIO(data)).geometry
    assert (points.x[0], points.y[0], points.crs.to_string()) == (13.0, 55.6, "OGC:CRS84")
    file = f"{local.url}/{ref.path}"
    assert duckdb.sql(f"select descriptor[1] from '{file}' where image_id = '{7:032x}'").fetchall() == [(7.0,)]
