"""Files that users have are opened by today's readers, and hold what was once written into them (`samples.py`)."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from infra.arrays import DescriptorCodesReader, LocalFeaturesReader
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import descriptor_matrix, read_table_facts
from pipelines.build.plan import decode_plan
from pipelines.build.progress import decode_progress
from pipelines.ivfpq import ShardSearcher, make_shard
from schemas import versions
from schemas.errors import FormatError, MapError
from schemas.local_features import LocalFeatures
from schemas.manifest import (
    decode_index_receipt,
    decode_lease,
    decode_manifest,
    decode_receipt,
    decode_retired,
    decode_tag,
    encode_json,
)
from schemas.versions import FORMATS, require_readable
from tests.schemas import samples
from tests.schemas.make_golden import GOLDEN, golden_name, write_sample

TABLE_VERSIONS = [(kind, version) for kind in samples.TABLES for version in range(1, FORMATS[kind] + 1)]


DECODERS = {
    "receipt": decode_receipt,
    "manifest": decode_manifest,
    "tag": decode_tag,
    "lease": decode_lease,
    "retired": decode_retired,
    "plan": decode_plan,
    "progress": decode_progress,
    "index_receipt": decode_index_receipt,
}
"""Of the sealed documents."""

SEALED = [(kind, version) for kind in DECODERS for version in range(1, FORMATS[kind] + 1)]


def read_document(kind: str, data: bytes) -> msgspec.Struct:
    return DECODERS[kind](data, where="here")


@pytest.fixture
def golden() -> Storage:
    return open_storage(str(GOLDEN), Settings(threads=1))


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path), Settings(threads=1))


def test_every_format_that_was_ever_written_has_a_golden_sample_and_nothing_else_lies_there():
    expected = {golden_name(kind, version) for kind, newest in FORMATS.items() for version in range(1, newest + 1)}

    assert {path.name for path in GOLDEN.iterdir()} == expected


def test_the_golden_samples_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 200_000


@pytest.mark.parametrize(("kind", "version"), TABLE_VERSIONS)
def test_a_golden_table_opens_and_holds_what_was_written(golden: Storage, kind: str, version: int):
    make, facts = samples.TABLES[kind]

    table, found = read_table_facts(golden, golden_name(kind, version), kind=kind)

    assert table.replace_schema_metadata(None).equals(make().select(table.column_names))
    assert table.column_names == make().column_names or version < FORMATS[kind]
    assert found == {**facts, "kind": kind, "version": version}


def test_golden_descriptors_are_the_numbers_that_were_written(golden: Storage):
    table, _ = read_table_facts(golden, "descriptors-1.parquet", kind="descriptors")

    assert np.array_equal(descriptor_matrix(table["descriptor"]), samples.descriptor_numbers())


@pytest.mark.parametrize(("kind", "version"), SEALED)
def test_a_golden_document_opens_and_holds_what_was_written(golden: Storage, kind: str, version: int):
    """Manifests of format 1 do not say what published them, receipts of format 1 know no blocks; all else is the same."""
    found = read_document(kind, golden.get(golden_name(kind, version)))

    expected = msgspec.structs.replace(samples.DOCUMENTS[kind](), format_version=version, sha256=found.sha256)
    if (kind, version) == ("manifest", 1):
        expected = msgspec.structs.replace(expected, action="unknown")
    if (kind, version) == ("receipt", 1):
        expected = msgspec.structs.replace(expected, objects=expected.objects[:1])
    assert found == expected


def test_an_unsealed_receipt_is_known_by_the_sha256_of_its_file():
    data = (GOLDEN / "receipt-1.json").read_bytes()

    assert decode_receipt(data, where="here").sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", DECODERS)
def test_every_bit_of_a_sealed_document_counts(kind: str):
    """Each bit flipped, and each length it may be cut to: never taken for a document."""
    whole = (GOLDEN / golden_name(kind, FORMATS[kind])).read_bytes()
    flipped = (
        whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :] for place in range(len(whole)) for bit in range(8)
    )
    short = (whole[:length] for length in range(len(whole)))

    for damaged in (*flipped, *short):
        with pytest.raises(MapError):
            DECODERS[kind](damaged, where="here")


def same(one: LocalFeatures, other: LocalFeatures) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("features", "patch", "reliability"))


@pytest.mark.parametrize(("version", "expected"), [(1, samples.local_features()), (2, samples.local_codes())])
def test_golden_local_features_open_photo_by_photo(golden: Storage, version: int, expected: list[LocalFeatures]):
    reader = LocalFeaturesReader(golden, f"local_features-{version}.zarr")

    found = reader.read([2, 1, 0])

    assert [len(photo) for photo in found] == [1, 0, 3]
    assert all(same(one, other) for one, other in zip(reversed(found), expected, strict=True))


@pytest.mark.parametrize("from_golden", [True, False])
def test_descriptor_codes_point_where_the_descriptors_do(store: Storage, golden: Storage, from_golden: bool):
    if not from_golden:
        write_sample(store, "descriptor_codes", "descriptor_codes-1.zarr")
    expected = samples.descriptor_numbers().astype(np.float32)

    found = DescriptorCodesReader(golden if from_golden else store, "descriptor_codes-1.zarr").read(range(len(expected)))

    for codes, descriptor in zip(found, expected, strict=True):
        assert np.abs(codes).max() == 127
        np.testing.assert_allclose(codes / 127 * np.abs(descriptor).max(), descriptor, atol=np.abs(descriptor).max() / 254 + 1e-6)


@pytest.mark.parametrize(("version", "expected"), [(1, [0.2063, 0.1297, 0.1765]), (2, [-0.6685, -0.4753, -0.4572])])
def test_each_photo_of_the_golden_shard_is_found_by_its_descriptor(version: int, expected: list[float]):
    """Coded in one byte and yet nearer to itself than to the others; in format 1 these lie 2 apart, squared, in format 2 at 0."""
    quantizer, shard = ((GOLDEN / f"{kind}-{version}.faiss").read_bytes() for kind in ("quantizer", "shard"))
    searcher = ShardSearcher(quantizer, samples.PARAMETERS.nprobe, [shard])

    found = searcher.search(samples.descriptor_numbers().astype(np.float32), 3)

    assert [sorted(number for _, _, number in hits) for hits in found] == [samples.SHARD_IDS] * 3
    assert [hits[0][2] for hits in found] == samples.SHARD_IDS
    np.testing.assert_allclose([hits[0][0] for hits in found], expected, atol=1e-3)


def test_photos_are_added_to_an_old_quantizer_as_they_were_then():
    """A backfill keeps the quantizer of a map, and what it codes must be found among what was coded before."""
    block = (samples.descriptor_numbers().astype(np.float32), np.array(samples.SHARD_IDS))

    shard = make_shard((GOLDEN / "quantizer-1.faiss").read_bytes(), samples.DIM, [block])

    assert shard == (GOLDEN / "shard-1.faiss").read_bytes()


@pytest.mark.parametrize("kind", samples.TABLES)
def test_a_table_written_today_reads_as_the_golden_one(store: Storage, golden: Storage, kind: str):
    name = golden_name(kind, FORMATS[kind])

    write_sample(store, kind, name)

    table, facts = read_table_facts(store, name, kind=kind)
    old_table, old_facts = read_table_facts(golden, name, kind=kind)
    assert table.equals(old_table)
    assert facts == old_facts


@pytest.mark.parametrize("kind", samples.DOCUMENTS)
def test_a_document_written_today_is_read_back_today(store: Storage, kind: str):
    write_sample(store, kind, "document.json")

    written = store.get("document.json")
    assert encode_json(read_document(kind, written)) == written
    assert read_document(kind, written) == read_document(kind, encode_json(samples.DOCUMENTS[kind]()))


def test_local_features_written_today_are_read_back_today(store: Storage):
    write_sample(store, "local_features", "group.zarr")

    found = LocalFeaturesReader(store, "group.zarr").read([0, 1, 2])

    assert all(same(one, other) for one, other in zip(found, samples.local_codes(), strict=True))


def test_an_index_written_today_finds_each_photo_today(store: Storage):
    write_sample(store, "quantizer", "quantizer")
    write_sample(store, "shard", "shard")
    searcher = ShardSearcher(store.get("quantizer"), samples.PARAMETERS.nprobe, [store.get("shard")])

    found = searcher.search(samples.descriptor_numbers().astype(np.float32), 1)

    assert [hits[0][2] for hits in found] == samples.SHARD_IDS


@pytest.mark.parametrize("kind", FORMATS)
def test_a_newer_format_is_refused_with_both_numbers_and_a_remedy(kind: str):
    newest = FORMATS[kind]

    require_readable(kind, newest, where="here")
    with pytest.raises(FormatError, match=rf"^here: {kind} format {newest + 1} was found.*formats 1 to {newest}\..*pip install"):
        require_readable(kind, newest + 1, where="here")
    with pytest.raises(FormatError, match="format 0 was found"):
        require_readable(kind, 0, where="here")


@pytest.fixture
def from_the_future(store: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A folder with the samples as a Folio writes them whose every format number is higher by one."""
    with monkeypatch.context() as patch:
        for kind, newest in FORMATS.items():
            patch.setitem(versions.FORMATS, kind, newest + 1)
        for kind in [*samples.TABLES, "local_features"]:
            write_sample(store, kind, kind)
    for kind in DECODERS:
        newer = {**msgspec.to_builtins(samples.DOCUMENTS[kind]()), "format_version": FORMATS[kind] + 1, "new_field": 1}
        store.put(kind, msgspec.json.encode(newer))
    return store


def test_files_of_a_newer_folio_are_refused_by_number_not_by_what_is_odd_in_them(from_the_future: Storage):
    for kind in samples.TABLES:
        with pytest.raises(FormatError, match=f"{kind}: {kind} format {FORMATS[kind] + 1} was found"):
            read_table_facts(from_the_future, kind, kind=kind)
    with pytest.raises(FormatError, match="local_features format 3 was found"):
        LocalFeaturesReader(from_the_future, "local_features")
    for kind, decode in DECODERS.items():
        with pytest.raises(FormatError, match=f"here: {kind} format {FORMATS[kind] + 1} was found"):
            decode(from_the_future.get(kind), where="here")


def test_a_document_with_an_unknown_field_of_a_known_format_is_no_receipt():
    odd = {**msgspec.to_builtins(samples.receipt()), "format_version": 1, "password": "secret"}

    with pytest.raises(FormatError, match=r"here: expected a receipt, found Object contains unknown field `password`"):
        decode_receipt(msgspec.json.encode(odd), where="here")


def test_a_golden_table_is_not_taken_for_another_kind(golden: Storage):
    with pytest.raises(FormatError, match="expected a Folio table of kind results, found geotags"):
        read_table_facts(golden, "geotags-1.parquet", kind="results")


def test_times_and_text_survive_as_they_are(golden: Storage):
    """Microseconds, UTC, and a letter beyond ASCII."""
    table, _ = read_table_facts(golden, "images-1.parquet", kind="images")

    assert table["taken_at"].to_pylist() == [samples.TAKEN_AT, samples.TAKEN_AT, None]
    assert table.schema.field("taken_at").type == pa.timestamp("us", tz="UTC")
    assert table["uri"][2].as_py() == "lund/ö 2.jpg"
