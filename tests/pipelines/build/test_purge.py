"""After a rebuild nothing that holds a photo taken down stays in the store, and nothing else goes."""

from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest

from infra import commits
from infra.commits import list_retired, publish, read_head, read_manifest, receipt_path
from infra.leases import lease
from infra.settings import Settings
from infra.storage import TEMPORARY_SUFFIX, Storage, open_storage
from infra.tables import read_table, write_table
from pipelines.build.masking import without
from pipelines.build.purge import Purged, purge
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.verify import verify
from pipelines.maintain.verify_deleted import verify_deleted
from schemas.errors import StorageError
from schemas.manifest import Manifest, Receipt
from schemas.rejects import REJECTS
from tests.pipelines.maintain.photo_maps import images, name, publish_map, uri, write_segment


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


@pytest.fixture(params=["memory", "disk", "s3"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        return open_storage(f"s3://maps/{uuid4().hex}", Settings(threads=1, s3_endpoint_url=endpoint))
    return open_storage(f"memory://{uuid4().hex}" if request.param == "memory" else str(tmp_path / "map"), Settings(threads=1))


@pytest.fixture
def receipts(storage: Storage) -> list[Receipt]:
    """Version 1 has photos 0 to 4 and 5 to 9, in segments of their own and one shard; in version 2, photo 3 is taken down."""
    return take_one_down(storage)


def take_one_down(storage: Storage) -> list[Receipt]:
    found = [write_segment(storage, images(range(5))), write_segment(storage, images(range(5, 10)))]
    publish_map(storage, found)
    takedown(storage, TakedownRequest(image_ids=frozenset({name(3)})))
    return found


def rebuild(storage: Storage, receipts: list[Receipt]) -> Manifest:
    """Version 3 has photos 0, 1, 2 and 4 in a new segment, and the other one as it was."""
    new = write_segment(storage, images([0, 1, 2, 4]))
    return publish_map(storage, [new, receipts[1]], keep=read_head(storage))


def run_purge(storage: Storage) -> Purged:
    with lease(storage, run_id="build", action="build") as held:
        return purge(storage, own_run="build", check=held.require)


def paths(storage: Storage) -> set[str]:
    return {info.path for info in storage.list()}


def test_a_purge_removes_what_holds_the_photo_and_nothing_else(any_storage: Storage):
    storage = any_storage
    receipts = take_one_down(storage)
    old = {ref.path for ref in receipts[0].objects} | {
        receipt_path(receipts[0].segment_id),
        read_head(storage).index.shards[0].file.path,
    }
    rebuild(storage, receipts)
    before = paths(storage)
    assert not verify_deleted(storage).proved

    done = run_purge(storage)

    assert before - paths(storage) == old
    assert (done.objects, done.retired, done.waiting) == (len(old), [1, 2], [])
    assert list_retired(storage) == {1, 2}
    assert verify(storage).problems == []
    assert verify_deleted(storage).proved


def test_versions_without_the_photo_stay_as_they_are(storage: Storage, receipts: list[Receipt]):
    """Version 3 is of the other segment alone."""
    publish_map(storage, [receipts[1]], keep=read_head(storage))
    rebuild(storage, receipts)

    assert run_purge(storage).retired == [1, 2]


def test_what_the_newest_version_still_names_stays_until_the_next_rebuild(storage: Storage, receipts: list[Receipt]):
    before = paths(storage)

    assert run_purge(storage) == Purged()
    assert {path for path in paths(storage) if not path.startswith("runs/")} == before


def test_a_map_without_tombstones_is_left_alone(storage: Storage):
    publish_map(storage, [write_segment(storage, images(range(5)))])
    publish_map(storage, [write_segment(storage, images(range(3)))])

    assert run_purge(storage) == Purged()


def test_a_purge_stopped_after_any_deletion_is_finished_by_the_next(receipts: list[Receipt], storage: Storage):
    rebuild(storage, receipts)
    whole = {info.path: storage.get(info.path) for info in storage.list()}
    deletions = run_purge(storage).objects
    end = paths(storage)

    for stop in range(deletions):
        for path in paths(storage):
            storage.delete(path)
        for path, data in whole.items():
            storage.put(path, data)
        with pytest.raises(StorageError, match="stopped"):
            run_purge(_Stopping(storage, stop))
        assert verify(storage).problems == []

        run_purge(storage)

        assert paths(storage) == end


class _Stopping:
    """A store that after so many deletions does not answer any more."""

    def __init__(self, storage: Storage, deletions: int) -> None:
        self._storage = storage
        self._left = deletions
        self.url = storage.url

    def __getattr__(self, method: str) -> object:
        return getattr(self._storage, method)

    def delete(self, path: str) -> None:
        if path.startswith("runs/"):  # leases and the clock
            return self._storage.delete(path)
        if not self._left:
            raise StorageError("stopped")
        self._left -= 1
        return self._storage.delete(path)


def test_a_killed_attempt_goes_too_and_one_that_may_be_at_work_is_named(storage: Storage, receipts: list[Receipt]):
    """Somebody was encoding photo 3 once more, and got as far as the tables."""
    orphan = write_segment(storage, images([3, 20]), finished=False)
    rebuild(storage, receipts)

    with lease(storage, run_id="other", action="backfill"):
        waiting = run_purge(storage)
    after = run_purge(storage)

    assert waiting.waiting == [f"segments/{orphan.segment_id}/{orphan.attempt}"]
    assert (after.waiting, after.objects) == ([], len(orphan.objects))
    assert verify_deleted(storage).proved


def test_a_version_that_a_rollback_is_about_to_publish_stays_whole_until_the_next_build(
    storage: Storage, receipts: list[Receipt]
):
    """It has looked whether version 1 is retired just before this purge retires it."""
    rebuild(storage, receipts)

    with lease(storage, run_id="other", action="rollback", pins=[1]):
        done = run_purge(storage)
        assert (done.objects, done.waiting) == (0, ["version 1"])
        publish(storage, lambda head: head and without(storage, read_manifest(storage, 1), head.tombstones))
    assert verify(storage).problems == []
    rebuild(storage, receipts)

    assert run_purge(storage).objects
    assert verify_deleted(storage).proved


def test_a_finished_segment_that_no_version_names_waits_for_the_run_that_may_publish_it(
    storage: Storage, receipts: list[Receipt]
):
    """That run began before photo 3 was taken down."""
    unpublished = write_segment(storage, images([3, 20]))
    rebuild(storage, receipts)

    with lease(storage, run_id="other", action="backfill"):
        waiting = run_purge(storage)
    assert storage.info(receipt_path(unpublished.segment_id))
    after = run_purge(storage)

    assert waiting.waiting == [f"segments/{unpublished.segment_id}/{unpublished.attempt}"]
    assert after.objects == len(unpublished.objects) + 1
    assert verify_deleted(storage).proved


def test_another_attempt_at_the_same_segment_goes_even_when_half_written(storage: Storage, receipts: list[Receipt]):
    """A segment's name is made of its photos, so what lies beside a segment that goes holds the same photos."""
    half = write_segment(storage, images(range(5)), finished=False)
    for table in ("images", "rejects"):
        storage.delete(f"segments/{half.segment_id}/{half.attempt}/{table}.parquet")
    rebuild(storage, receipts)

    run_purge(storage)

    assert not list(storage.list(f"segments/{half.segment_id}"))


def test_what_a_killed_writer_left_on_disk_beside_the_photo_goes_too(tmp_path: Path):
    disk = open_storage(str(tmp_path / "map"), Settings(threads=1))
    receipts = take_one_down(disk)
    folder = tmp_path / "map" / "segments" / receipts[0].segment_id
    (folder / receipts[0].attempt / f".1{TEMPORARY_SUFFIX}").write_bytes(b"\xff half a shard of local features")
    rebuild(disk, receipts)

    run_purge(disk)

    assert not folder.exists()
    assert verify_deleted(disk).proved


def test_a_segment_that_only_rejected_the_photo_goes_too(storage: Storage):
    """Photo 8 did not decode, so only its name is in the store."""
    first = write_segment(storage, images(range(3)), rejected=[8])
    publish_map(storage, [first])
    takedown(storage, TakedownRequest(uris=frozenset({uri(8)})))
    publish_map(storage, [write_segment(storage, images(range(3)))], keep=read_head(storage))
    assert not verify_deleted(storage).proved

    run_purge(storage)

    assert verify_deleted(storage).proved


def test_rejects_of_runs_lose_the_rows_that_name_the_photo(storage: Storage, receipts: list[Receipt]):
    rebuild(storage, receipts)
    rows = [
        {"uri": uri(number), "root": "/", "photo_key": key, "stage": "encode", "reason": "truncated", "detail": "half"}
        for number, key in ((3, None), (77, images([3])["photo_key"][0].as_py()), (78, "other"))
    ]
    write_table(storage, "runs/old/rejects.parquet", pa.Table.from_pylist(rows, REJECTS), kind="rejects")

    done = run_purge(storage)

    left = read_table(storage, "runs/old/rejects.parquet", kind="rejects")
    assert (done.tables, left["uri"].to_pylist()) == (1, [uri(78)])
    assert verify_deleted(storage).proved


def test_a_copy_under_another_name_goes_when_it_was_taken_down_by_its_bytes(storage: Storage):
    first = write_segment(storage, images([1, 2, 3], same_bytes={2: 1}))
    publish_map(storage, [first])
    takedown(storage, TakedownRequest(image_ids=frozenset({name(1)}), duplicates=True))
    publish_map(storage, [write_segment(storage, images([3]))], keep=read_head(storage))

    run_purge(storage)

    assert not list(storage.list(f"segments/{first.segment_id}"))
