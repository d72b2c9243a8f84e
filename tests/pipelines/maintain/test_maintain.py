"""Looking after a map of one segment and one shard, whose objects are a few bytes each."""

import hashlib
from uuid import uuid4

import msgspec
import pytest

from infra.commits import list_versions, publish, read_head, receipt_path, write_receipt
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import put_object
from pipelines.maintain.maintain import Problem, rollback, verify, versions
from schemas.errors import MapMissing
from schemas.manifest import Manifest, decode_receipt, encode_json
from tests.schemas import samples

SEGMENT = "0123456789abcdef01234567"
RECEIPT = receipt_path(SEGMENT)
IMAGES = f"segments/{SEGMENT}/a1b2c3d4e5f6/images.parquet"
QUANTIZER = "indexes/i/a/quantizer.faiss"
SHARD = "indexes/i/a/shard-00000.faiss"


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


@pytest.fixture
def first(storage: Storage) -> Manifest:
    """Version 1, written in full: the sample manifest with objects that are there."""
    receipt = write_receipt(storage, msgspec.structs.replace(samples.receipt(), objects=[put_object(storage, IMAGES, b"images")]))
    entry = msgspec.structs.replace(samples.manifest().segments[0], receipt_sha256=receipt.sha256)
    shard = msgspec.structs.replace(samples.manifest().index.shards[0], file=put_object(storage, SHARD, b"a shard"))
    index = msgspec.structs.replace(
        samples.manifest().index, quantizer=put_object(storage, QUANTIZER, b"a quantizer"), shards=[shard]
    )
    draft = msgspec.structs.replace(
        samples.manifest(), content_id="first", segments=[entry], index=index, tombstones=[], calibration=None
    )
    return publish(storage, lambda head: draft)


def publish_another(storage: Storage, content_id: str) -> Manifest:
    return publish(storage, lambda head: head and msgspec.structs.replace(head, content_id=content_id))


def sha(data: bytes) -> str:
    return f"sha256 {hashlib.sha256(data).hexdigest()}"


def seal(receipt: bytes) -> str:
    return f"sha256 {decode_receipt(receipt, where='here').sha256}"


def test_a_sound_map_has_no_problems_and_every_object_was_read(storage: Storage, first: Manifest):
    found = verify(storage)

    assert found.problems == []
    assert (found.version, found.objects) == (1, 4)  # quantizer, shard, receipt, images
    assert found.size_bytes == len(b"a quantizer" + b"a shard" + b"images")


@pytest.mark.parametrize("path", [QUANTIZER, SHARD, IMAGES])
def test_a_missing_object_is_named(storage: Storage, first: Manifest, path: str):
    size = len(storage.get(path))
    storage.delete(path)

    assert verify(storage).problems == [Problem(path=path, found="nothing", needed=f"{size} bytes")]


@pytest.mark.parametrize("path", [QUANTIZER, SHARD, IMAGES])
def test_a_truncated_object_is_named_with_both_sizes(storage: Storage, first: Manifest, path: str):
    data = storage.get(path)
    storage.put(path, data[:-1])

    assert verify(storage).problems == [Problem(path=path, found=f"{len(data) - 1} bytes", needed=f"{len(data)} bytes")]


@pytest.mark.parametrize("path", [QUANTIZER, SHARD, IMAGES])
def test_an_altered_object_of_the_right_size_is_named(storage: Storage, first: Manifest, path: str):
    data = storage.get(path)
    altered = b"X" + data[1:]
    storage.put(path, altered)

    assert verify(storage).problems == [Problem(path=path, found=sha(altered), needed=sha(data))]


def test_an_altered_receipt_is_named_and_not_believed(storage: Storage, first: Manifest):
    """It says that the segment's one object may be missing, and it is missing."""
    data = storage.get(RECEIPT)
    altered = encode_json(msgspec.structs.replace(samples.receipt(), objects=[]))
    storage.put(RECEIPT, altered)
    storage.delete(IMAGES)

    assert verify(storage).problems == [Problem(path=RECEIPT, found=seal(altered), needed=seal(data))]


def test_a_missing_receipt_is_named(storage: Storage, first: Manifest):
    needed = seal(storage.get(RECEIPT))
    storage.delete(RECEIPT)

    assert verify(storage).problems == [Problem(path=RECEIPT, found="nothing", needed=needed)]


def test_a_receipt_that_is_no_json_any_more_is_named_too(storage: Storage, first: Manifest):
    storage.put(RECEIPT, b"\0" * 10)

    assert [problem.path for problem in verify(storage).problems] == [RECEIPT]


def test_every_problem_is_named_not_only_the_first(storage: Storage, first: Manifest):
    storage.delete(QUANTIZER)
    storage.put(SHARD, b"")
    storage.delete(IMAGES)

    assert [problem.path for problem in verify(storage).problems] == [QUANTIZER, SHARD, IMAGES]


def test_verify_changes_nothing(storage: Storage, first: Manifest):
    storage.delete(IMAGES)
    before = {info.path: storage.get(info.path) for info in storage.list()}

    verify(storage)

    assert {info.path: storage.get(info.path) for info in storage.list()} == before


def test_an_older_version_can_be_verified_by_its_number(storage: Storage, first: Manifest):
    without_quantizer = msgspec.structs.replace(first.index, quantizer=None)
    publish(storage, lambda head: msgspec.structs.replace(first, content_id="second", index=without_quantizer))
    storage.delete(QUANTIZER)

    assert verify(storage).problems == []
    assert [problem.path for problem in verify(storage, version=1).problems] == [QUANTIZER]
    with pytest.raises(MapMissing, match="no version 3 here"):
        verify(storage, version=3)


def test_where_there_is_no_map_there_is_nothing_to_verify(storage: Storage):
    with pytest.raises(MapMissing, match="no map here"):
        verify(storage)


def test_versions_are_listed_oldest_first(storage: Storage, first: Manifest):
    publish_another(storage, "second")

    lines = versions(storage)

    assert [(line.version, line.content_id) for line in lines] == [(1, "first"), (2, "second")]
    assert (lines[0].photos, lines[0].segments, lines[0].shards, lines[0].index) == (3, 1, 1, "ivfpq")
    assert (lines[0].recipe, lines[0].trained) == ("tiny", False)


def test_a_map_without_versions_lists_none(storage: Storage):
    assert versions(storage) == []


def test_rollback_publishes_the_old_content_as_a_new_version(storage: Storage, first: Manifest):
    publish_another(storage, "second")

    back = rollback(storage, 1)

    assert (back.version, back.parent, back.content_id) == (3, 2, "first")
    assert back.segments == first.segments
    assert read_head(storage) == back
    assert list_versions(storage) == [1, 2, 3]


def test_rollback_to_what_the_newest_version_already_is_publishes_nothing(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    back = rollback(storage, 1)

    assert rollback(storage, 1) == back
    assert rollback(storage, 3) == back
    assert list_versions(storage) == [1, 2, 3]


def test_rollback_to_no_version_is_refused(storage: Storage, first: Manifest):
    with pytest.raises(MapMissing, match="no version 9 here"):
        rollback(storage, 9)

    assert list_versions(storage) == [1]
