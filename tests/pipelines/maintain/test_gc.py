"""What gc removes, and what it must never remove."""

import os
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from infra.commits import list_versions, manifest_path, read_version, receipt_path, retire
from infra.leases import lease
from infra.settings import Settings
from infra.storage import TEMPORARY_SUFFIX, open_storage
from infra.tables import put_object
from pipelines.maintain.gc import Collected, Removed, gc, parse_duration
from pipelines.maintain.tags import tag
from schemas import layout
from schemas.errors import DamagedError, MapError, MapMissing
from tests.infra.clocked_storage import ClockedStorage
from tests.pipelines.maintain.small_maps import encode, images_path, objects_of, publish_segments, shard_path

KINDS = ("segments", "receipts", "indexes", "tombstones", "runs")


@pytest.fixture
def storage() -> ClockedStorage:
    return ClockedStorage()


def stored(storage: ClockedStorage) -> set[str]:
    return {path for kind in KINDS for path in storage.paths(kind)}


def replaced(storage: ClockedStorage) -> None:
    """Version 1 holds old and both, version 2 both and new, and version 1 was replaced 8 days ago."""
    publish_segments(storage, "old", "both")
    publish_segments(storage, "both", "new")
    storage.turn(days=8)


def test_a_dry_run_says_what_would_go_and_changes_nothing(storage: ClockedStorage):
    replaced(storage)
    before = {path: storage.get(path) for path in storage.paths()}

    found = gc(storage)

    assert found == Collected(
        deleted=False,
        removed=[
            Removed(kind="segments", objects=1, size_bytes=len(b"photos of old")),
            Removed(kind="receipts", objects=1, size_bytes=len(storage.get(receipt_path("old")))),
            Removed(kind="indexes", objects=1, size_bytes=len(b"shard of old")),
        ],
        paths=sorted(objects_of("old")),
        retired=[1],
        kept=[2],
        at_work=[],
    )
    assert {path: storage.get(path) for path in storage.paths()} == before
    assert found.lines()[-1] == "nothing was changed; to remove this: --delete"


def test_what_only_old_versions_name_goes_and_they_are_retired(storage: ClockedStorage):
    replaced(storage)

    found = gc(storage, delete=True)

    assert (found.deleted, found.retired, found.paths) == (True, [1], sorted(objects_of("old")))
    assert stored(storage) == objects_of("both", "new")
    assert list_versions(storage) == [1, 2]  # manifests stay
    with pytest.raises(MapError, match="version 1 is retired"):
        read_version(storage, 1)
    assert gc(storage, delete=True).lines() == ["nothing to remove"]


def test_a_version_stays_as_long_as_it_was_the_newest_within_the_time(storage: ClockedStorage):
    """Not from when it was published: readers used it until it was replaced."""
    publish_segments(storage, "old")
    storage.turn(days=30)
    publish_segments(storage, "new")

    storage.turn(days=6, hours=23)
    assert gc(storage, delete=True).kept == [1, 2]
    storage.turn(hours=2)
    assert gc(storage, delete=True).kept == [2]
    assert stored(storage) == objects_of("new")


def test_a_tagged_version_stays(storage: ClockedStorage):
    publish_segments(storage, "old", "both")
    tag(storage, "prod")
    publish_segments(storage, "both", "new")
    storage.turn(days=30)

    found = gc(storage, delete=True)

    assert (found.paths, found.kept) == ([], [1, 2])
    assert read_version(storage, "prod").version == 1


def test_while_a_run_is_at_work_only_what_nothing_names_goes(storage: ClockedStorage):
    replaced(storage)
    encode(storage, "finished by a run that was killed")
    put_object(storage, images_path("torn"), b"no receipt")
    storage.turn(days=8)

    with lease(storage, run_id="r1", action="build"):
        found = gc(storage, delete=True)

    assert (found.paths, found.retired, found.at_work) == ([images_path("torn")], [], ["r1"])
    assert "at work, so only what nothing names goes: r1" in found.lines()
    assert len(gc(storage, delete=True).paths) == 5


def test_while_a_run_is_at_work_no_promise_to_hurry_counts(storage: ClockedStorage):
    """Its attempts have no receipt yet."""
    publish_segments(storage, "a")
    with lease(storage, run_id="r1", action="build"):
        put_object(storage, images_path("b"), b"being written")
        storage.turn(days=1)

        with lease(storage, run_id="r2", action="build"):
            assert gc(storage, older_than=timedelta(0), delete=True).paths == []


def test_leftovers_of_killed_runs_go_when_they_are_old(storage: ClockedStorage):
    publish_segments(storage, "a")
    storage.put("runs/killed/plan.json", b"{}")
    storage.put("runs/killed/lease-0a.json", b"{")
    storage.put("runs/clock-0a", b"Folio asks for the time.")
    storage.put("tombstones/0a.parquet", b"never published")
    put_object(storage, images_path("torn"), b"no receipt")
    put_object(storage, images_path("a", "slower"), b"lost against the first attempt")
    put_object(storage, "indexes/i/torn/quantizer.faiss", b"never published")
    encode(storage, "unpublished")

    assert gc(storage, delete=True).paths == []
    storage.turn(days=8)
    found = gc(storage, delete=True)

    assert {one.kind: one.objects for one in found.removed} == {
        "segments": 3,
        "receipts": 1,
        "indexes": 1,
        "tombstones": 1,
        "runs": 3,
    }
    assert stored(storage) == objects_of("a")


def test_an_attempt_that_is_still_being_written_stays_whole(storage: ClockedStorage):
    publish_segments(storage, "a")
    put_object(storage, images_path("b"), b"first")
    storage.turn(days=8)
    put_object(storage, f"{layout.segment_folder('b', 'a')}/{layout.DESCRIPTORS}", b"last")

    assert gc(storage, delete=True).paths == []


def test_receipts_of_photos_that_cannot_be_used_stay(storage: ClockedStorage):
    """No version ever names them, and without them every build would try these photos again."""
    publish_segments(storage, "a")
    encode(storage, "broken", rows=0)
    storage.turn(days=30)

    assert gc(storage, delete=True).paths == []


def test_what_does_not_belong_to_a_map_is_left_alone(storage: ClockedStorage):
    publish_segments(storage, "a")
    storage.put("notes.txt", b"mine")
    storage.put("tags/README", b"mine")
    storage.turn(days=30)

    assert gc(storage, delete=True).paths == []


def test_a_receipt_that_stands_keeps_its_attempt_also_when_the_version_names_another(storage: ClockedStorage):
    """Version 1 is damaged: its receipt was lost, and the segment encoded again. What stands now must not be torn too."""
    publish_segments(storage, "a")
    storage.delete(receipt_path("a"))
    encode(storage, "a", attempt="again")
    storage.turn(days=30)

    assert gc(storage, delete=True).paths == []


def test_a_damaged_receipt_that_nothing_needs_goes_with_all_attempts(storage: ClockedStorage):
    publish_segments(storage, "a")
    encode(storage, "b")
    storage.put(receipt_path("b"), b"{")
    storage.turn(days=8)

    assert set(gc(storage, delete=True).paths) == {receipt_path("b"), images_path("b")}


def test_the_receipt_goes_before_what_it_is_of(storage: ClockedStorage, monkeypatch: pytest.MonkeyPatch):
    replaced(storage)
    deleted: list[str] = []
    monkeypatch.setattr(storage, "delete", lambda path: deleted.append(path))

    gc(storage, delete=True)

    order = [path for path in deleted if path in objects_of("old")]
    assert (order[0], set(order[1:])) == (receipt_path("old"), {images_path("old"), shard_path("old")})


def test_where_it_cannot_be_told_what_must_stay_nothing_goes(storage: ClockedStorage):
    replaced(storage)
    damaged = bytearray(storage.get(manifest_path(2)))
    damaged[-10] ^= 1
    storage.put(manifest_path(2), bytes(damaged))

    with pytest.raises(MapError):
        gc(storage, delete=True)

    assert stored(storage) == objects_of("old", "both", "new")


def test_a_damaged_tag_stops_gc(storage: ClockedStorage):
    replaced(storage)
    tag(storage, "prod", 1)
    storage.put("tags/prod.json", storage.get("tags/prod.json").replace(b'"version": 1', b'"version": 2'))

    with pytest.raises(DamagedError):
        gc(storage, delete=True)

    assert objects_of("old") <= stored(storage)


def test_a_damaged_manifest_that_nobody_needs_stops_nothing(storage: ClockedStorage):
    replaced(storage)
    storage.put(manifest_path(1), b"{")

    assert gc(storage, delete=True).paths == sorted(objects_of("old"))


class TagsMeanwhile(ClockedStorage):
    """Somebody tags version 1 in the moment when gc has marked it."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        created = super().put_if_absent(path, data)
        if path.startswith("retired/"):
            super().put_if_absent("tags/late.json", self.tag)
        return created


def test_a_tag_made_at_the_last_moment_still_keeps_the_objects():
    storage = TagsMeanwhile()
    replaced(storage)
    tag(storage, "model", 1)
    storage.tag = storage.get("tags/model.json")
    storage.delete("tags/model.json")

    found = gc(storage, delete=True)

    assert found.paths == []
    assert objects_of("old") <= stored(storage)


def test_a_retired_version_is_no_reason_to_keep_anything(storage: ClockedStorage):
    """A purge retired it; what it did not remove itself goes with the next gc, also within the seven days of the version."""
    publish_segments(storage, "old")
    storage.turn(days=8)
    publish_segments(storage, "new")
    retire(storage, [1], reason="purge")

    assert gc(storage, delete=True).paths == sorted(objects_of("old"))


def test_where_there_is_no_map_there_is_nothing_to_collect(storage: ClockedStorage):
    with pytest.raises(MapMissing):
        gc(storage)


@pytest.mark.parametrize(
    ("text", "time"), [("7d", timedelta(7)), ("36h", timedelta(1.5)), ("0s", timedelta(0)), ("1.5m", timedelta(seconds=90))]
)
def test_times_are_written_with_their_unit(text: str, time: timedelta):
    assert parse_duration(text) == time


@pytest.mark.parametrize("text", ["7", "-7d", "d", "7 d", "week", ""])
def test_a_time_without_a_unit_is_refused(text: str):
    with pytest.raises(ValueError, match="d, h, m or s"):
        parse_duration(text)


def test_the_outcome_is_json(storage: ClockedStorage):
    replaced(storage)

    assert msgspec.json.decode(msgspec.json.encode(gc(storage)))["retired"] == [1]


def test_what_a_killed_writer_left_unfinished_goes_once_it_is_old(tmp_path: Path):
    storage = open_storage(str(tmp_path / "map"), Settings(threads=1))
    publish_segments(storage, "there")
    before = {info.path for info in storage.list()}
    for folder in ("manifests", "segments/there/a", "receipts"):
        for name, days in (("old", 8), ("young", 1)):
            file = tmp_path / "map" / folder / f"{name}{TEMPORARY_SUFFIX}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"half")
            os.utime(file, times=(time.time() - days * 86_400,) * 2)

    found = gc(storage, delete=True)

    assert found.removed == [Removed(kind="temporary", objects=3, size_bytes=12)]
    assert found.retired == []
    assert {info.path.rpartition("/")[2] for info in storage.leftovers()} == {f"young{TEMPORARY_SUFFIX}"}
    assert {info.path for info in storage.list() if not info.path.startswith("runs/")} == before
