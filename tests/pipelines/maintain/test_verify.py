"""What verify finds in a map, of a few bytes here; damage of a real one: `tests/faults/test_damage.py`."""

import hashlib

import msgspec
import pytest

from infra.commits import create_tag, list_versions, manifest_path, publish, retire, retired_path, tag_path, write_receipt
from infra.storage import Storage
from infra.tables import put_object, write_table
from pipelines.maintain.verify import Problem, verify
from schemas.errors import MapMissing
from schemas.manifest import Lease, Manifest, decode_receipt, encode_json
from tests.pipelines.maintain.conftest import IMAGES, QUANTIZER, RECEIPT, SHARD, publish_another
from tests.schemas import samples

OTHER_SEGMENT = "00000000000000000000beef"
ATTEMPT = IMAGES.rpartition("/")[0]


def sha(data: bytes) -> str:
    return f"sha256 {hashlib.sha256(data).hexdigest()}"


def seal(receipt: bytes) -> str:
    return f"sha256 {decode_receipt(receipt, where='here').sha256}"


def named(storage: Storage) -> list[tuple[str, str]]:
    return [(problem.path, problem.problem) for problem in verify(storage).problems]


def spoil(storage: Storage, path: str) -> None:
    data = storage.get(path)
    storage.put(path, data[:20] + bytes([data[20] ^ 1]) + data[21:])


def test_a_sound_map_has_no_problems_and_every_object_was_read(storage: Storage, first: Manifest):
    found = verify(storage)

    assert found.problems == []
    assert (found.version, found.versions, found.objects, found.orphans) == (1, 1, 6, 0)  # manifest, mark, receipt and three
    assert found.size_bytes == len(b"a quantizer" + b"a shard" + b"images")


@pytest.mark.parametrize("path", [QUANTIZER, SHARD, IMAGES])
def test_a_missing_object_is_named(storage: Storage, first: Manifest, path: str):
    size = len(storage.get(path))
    storage.delete(path)

    assert verify(storage).problems == [Problem(path=path, problem="missing", found="nothing", needed=f"{size} bytes")]


@pytest.mark.parametrize("path", [QUANTIZER, SHARD, IMAGES])
def test_a_truncated_object_is_named_with_both_sizes(storage: Storage, first: Manifest, path: str):
    data = storage.get(path)
    storage.put(path, data[:-1])

    found, needed = f"{len(data) - 1} bytes", f"{len(data)} bytes"
    assert verify(storage).problems == [Problem(path=path, problem="truncated", found=found, needed=needed)]


@pytest.mark.parametrize("path", [QUANTIZER, SHARD, IMAGES])
def test_an_altered_object_of_the_right_size_is_named(storage: Storage, first: Manifest, path: str):
    data = storage.get(path)
    altered = b"X" + data[1:]
    storage.put(path, altered)

    assert verify(storage).problems == [Problem(path=path, problem="altered", found=sha(altered), needed=sha(data))]


def test_an_altered_receipt_is_named_and_not_believed(storage: Storage, first: Manifest):
    """It is sealed, and says that the segment's one object may be missing, and it is missing."""
    data = storage.get(RECEIPT)
    altered = encode_json(msgspec.structs.replace(samples.receipt(), objects=[]))
    storage.put(RECEIPT, altered)
    storage.delete(IMAGES)

    assert verify(storage).problems == [Problem(path=RECEIPT, problem="altered", found=seal(altered), needed=seal(data))]


def test_a_missing_receipt_is_named_and_what_it_listed_is_not_called_foreign(storage: Storage, first: Manifest):
    needed = seal(storage.get(RECEIPT))
    storage.delete(RECEIPT)

    found = verify(storage)

    assert found.problems == [Problem(path=RECEIPT, problem="missing", found="nothing", needed=needed)]
    assert found.orphans == 0


def test_a_receipt_that_is_no_json_any_more_is_named_too(storage: Storage, first: Manifest):
    storage.put(RECEIPT, b"\0" * 10)

    assert named(storage) == [(RECEIPT, "altered")]


def test_every_problem_is_named_by_path_and_once_for_all_versions(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    publish_another(storage, "third")
    storage.delete(QUANTIZER)
    storage.put(SHARD, b"")
    storage.delete(IMAGES)

    assert named(storage) == [(QUANTIZER, "missing"), (SHARD, "truncated"), (IMAGES, "missing")]
    assert verify(storage).versions == 3


def test_verify_changes_nothing(storage: Storage, first: Manifest):
    storage.delete(IMAGES)
    before = {info.path: storage.get(info.path) for info in storage.list()}

    verify(storage)

    assert {info.path: storage.get(info.path) for info in storage.list()} == before


def test_one_version_alone_can_be_verified_by_number_or_tag(storage: Storage, first: Manifest):
    without_quantizer = msgspec.structs.replace(first.index, quantizer=None)
    publish(storage, lambda head: msgspec.structs.replace(first, content_id="second", index=without_quantizer))
    create_tag(storage, "old", 1)
    storage.delete(QUANTIZER)

    assert verify(storage, version=2).problems == []
    assert [problem.path for problem in verify(storage, version=1).problems] == [QUANTIZER]
    assert verify(storage, version="old") == verify(storage, version=1)
    assert named(storage) == [(QUANTIZER, "missing")]
    with pytest.raises(MapMissing, match="no version 3 here"):
        verify(storage, version=3)


def test_where_there_is_no_map_there_is_nothing_to_verify(storage: Storage):
    with pytest.raises(MapMissing, match="no map here"):
        verify(storage)


def test_a_manifest_that_is_gone_from_the_middle_is_named(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    publish_another(storage, "third")
    storage.delete(manifest_path(2))

    assert named(storage) == [(manifest_path(2), "missing")]


def test_a_newest_manifest_that_is_gone_is_named_where_a_tag_knew_it(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    create_tag(storage, "good", 2)
    storage.delete(manifest_path(2))

    assert named(storage) == [(manifest_path(2), "missing")]


def test_a_manifest_under_the_number_of_another_is_named(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    storage.put(manifest_path(2), storage.get(manifest_path(1)))

    [problem] = verify(storage).problems
    assert (problem.path, problem.problem) == (manifest_path(2), "altered")
    assert problem.found == "the manifest of version 1 on top of None"


def test_a_damaged_newest_manifest_does_not_stop_the_search(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    spoil(storage, manifest_path(2))
    storage.delete(IMAGES)

    assert named(storage) == [(manifest_path(2), "altered"), (IMAGES, "missing")]
    assert verify(storage).version is None


def test_what_a_retired_version_has_lost_is_no_damage(storage: Storage, first: Manifest):
    kept = msgspec.structs.replace(first.index, quantizer=None)
    publish(storage, lambda head: msgspec.structs.replace(first, content_id="second", index=kept))
    retire(storage, [1], reason="gc")
    storage.delete(QUANTIZER)

    assert named(storage) == []
    assert verify(storage).versions == 1


def test_a_finished_segment_that_no_version_has_yet_is_read_too(storage: Storage, first: Manifest):
    path = f"segments/{OTHER_SEGMENT}/a1/images.parquet"
    objects = [put_object(storage, path, b"images")]
    write_receipt(storage, msgspec.structs.replace(samples.receipt(), segment_id=OTHER_SEGMENT, attempt="a1", objects=objects))
    assert named(storage) == []

    storage.put(path, b"imagos")

    assert named(storage) == [(path, "altered")]


def test_attempts_that_never_counted_are_orphans_and_no_damage(storage: Storage, first: Manifest):
    storage.put(f"segments/{OTHER_SEGMENT}/a1/images.parquet", b"12345")
    storage.put(f"segments/{samples.receipt().segment_id}/ffff/local_features.zarr/c/0", b"67")
    storage.put("indexes/89abcdef/b0/shard-00000.faiss", b"89")

    found = verify(storage)

    assert (found.problems, found.orphans, found.orphan_bytes) == ([], 3, 9)


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "manifests/1.json",
        f"{ATTEMPT}/images (copy).parquet",
        f"{ATTEMPT}/local_features.zarr/c/9/0/0",  # a chunk that its receipt does not know
        f"segments/{OTHER_SEGMENT}/a1/thumbs.db",
        "indexes/i/a/shard-00007.faiss",  # beside one that a manifest names
        "tombstones/notes.csv",
        "runs/1/core",
    ],
)
def test_an_object_that_nothing_explains_is_foreign(storage: Storage, first: Manifest, path: str):
    storage.put(path, b"?")

    assert named(storage) == [(path, "foreign")]


def test_tags_leases_plans_marks_of_retirement_and_rejects_are_read_and_named(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    create_tag(storage, "good", 2)
    retire(storage, [1], reason="gc")
    storage.put("runs/1/lease-0a.json", encode_json(Lease(run_id="1", action="build")))
    storage.put("runs/1/plan.json", encode_json(samples.plan()))
    write_table(storage, "runs/1/rejects.parquet", samples.rejects(), kind="rejects")
    assert named(storage) == []

    paths = [retired_path(1), "runs/1/lease-0a.json", "runs/1/plan.json", "runs/1/rejects.parquet", tag_path("good")]
    for path in paths:
        spoil(storage, path)

    assert named(storage) == [(path, "altered") for path in paths]


def test_tombstones_are_read(storage: Storage, first: Manifest):
    ref = write_table(storage, "tombstones/0a.parquet", samples.tombstones(), kind="tombstones")
    publish(storage, lambda head: msgspec.structs.replace(first, content_id="second", tombstones=[ref]))
    assert named(storage) == []

    storage.put("tombstones/0a.parquet", b"")

    assert named(storage) == [("tombstones/0a.parquet", "truncated")]
    assert list_versions(storage) == [1, 2]
