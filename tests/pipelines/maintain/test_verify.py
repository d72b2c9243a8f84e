"""What verify finds in a map."""

import hashlib

import msgspec
import pytest

from infra.commits import publish
from infra.storage import Storage
from pipelines.maintain.verify import Problem, verify
from schemas.errors import MapMissing
from schemas.manifest import Manifest, decode_receipt, encode_json
from tests.pipelines.maintain.conftest import IMAGES, QUANTIZER, RECEIPT, SHARD
from tests.schemas import samples


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
