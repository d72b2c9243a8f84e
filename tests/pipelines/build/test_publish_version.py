"""The last stage of a build: which photos the next version has, also when another build publishes at the same moment."""

from collections.abc import Callable
from typing import Final
from uuid import uuid4

import pytest

from infra import arrays, commits
from infra.commits import list_versions, read_head, read_manifest
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table
from pipelines.build.build import prepare, rewrite
from pipelines.build.encode import encode_partition
from pipelines.build.inventory import keep_plan
from pipelines.build.membership import live_keys, read_stored
from pipelines.build.plan import name_run
from pipelines.build.publishing import publish_version
from pipelines.build.request import BuildRequest, Mode, Prepared, Published, Surveyed
from pipelines.catalog.sources import Catalog
from pipelines.engine.partition import PartitionConfig
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.versions import rollback
from schemas.errors import CatalogError, CommitConflict
from schemas.images import image_id
from schemas.rejects import REJECTS
from tests.pipelines.build.stand_ins import BAD, NumberEncoder, number_loader, partition, photos

SETTINGS: Final = Settings(threads=1)
SMALL: Final = PartitionConfig()
PIECES: Final = PartitionConfig(min_photos=1, pieces=6)
"""24 photos are cut into six segments."""


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 4096)
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


def start(storage: Storage, *numbers: int, mode: Mode = "build", partition: PartitionConfig = SMALL) -> Prepared:
    """A run that was asked for these photos and has encoded those that no run before has."""
    encoder = NumberEncoder()
    surveyed = Surveyed(
        request=BuildRequest(map_url=storage.url, photos=("photos",), mode=mode, partition=partition),
        storage=storage,
        encoder=encoder,
        catalog=Catalog(images=photos(*numbers), rejects=REJECTS.empty_table(), notes=[]),
        run_id=name_run(mode, encoder.fingerprint, [f"key {number}" for number in numbers]),
    )
    prepared = prepare(surveyed, SETTINGS)
    if prepared.partitions:
        keep_plan(storage, prepared.plan)
    return prepared


def encode(prepared: Prepared, *, most: int | None = None) -> Prepared:
    """Let a run encode its partitions, or the first of them."""
    for task in prepared.partitions[:most]:
        encode_partition(task, prepared.storage, NumberEncoder(), number_loader(NumberEncoder()), lambda: None)
    return prepared


def finish(prepared: Prepared) -> Published:
    """Let it copy and publish."""
    return publish_version(prepared, [], rewrite(prepared, SETTINGS), settings=SETTINGS)


def publish(storage: Storage, *numbers: int, mode: Mode = "build") -> Published:
    return finish(encode(start(storage, *numbers, mode=mode)))


def photos_of(storage: Storage) -> list[int]:
    keys = live_keys(read_head(storage), read_stored(storage, "f00d"))
    return sorted(int(key.removeprefix("key ")) for key in keys)


def test_a_build_makes_the_map_exactly_the_photos_asked_for(storage: Storage):
    publish(storage, 1, 2, 3)

    second = publish(storage, 2, 3, 4)

    assert photos_of(storage) == [2, 3, 4]
    assert (second.encoded, second.dropped) == (1, 1)


def test_a_backfill_adds_and_drops_nothing(storage: Storage):
    publish(storage, 1, 2)

    second = publish(storage, 3, mode="backfill")

    assert photos_of(storage) == [1, 2, 3]
    assert (second.encoded, second.dropped) == (1, 0)


@pytest.mark.parametrize("mode", ["build", "backfill"])
def test_the_same_photos_again_publish_nothing(storage: Storage, mode: Mode):
    first = publish(storage, 1, 2)

    again = publish(storage, 1, 2, mode=mode)

    assert again.manifest == first.manifest
    assert list_versions(storage) == [1]


def test_photos_that_came_back_are_live_again_without_being_encoded(storage: Storage):
    first = publish(storage, 1, 2, 3)
    publish(storage, 1, 3)

    third = publish(storage, 1, 2, 3)

    assert photos_of(storage) == [1, 2, 3]
    assert third.encoded == 0
    assert third.manifest.segments == first.manifest.segments


def test_rejects_are_counted_for_the_photos_asked_for_now_and_kept_as_a_table(storage: Storage):
    publish(storage, 1, 2, BAD)

    without, again = publish(storage, 1, 2), publish(storage, 1, BAD)

    assert (without.rejected, again.rejected) == ({}, {"truncated": 1})
    path = again.rejects.removeprefix(f"{storage.url}/")
    assert read_table(storage, path, kind="rejects")["uri"].to_pylist() == [f"{BAD}.jpg"]


def test_photos_of_a_lost_partition_are_rejects_and_the_others_are_published(storage: Storage):
    prepared = encode(start(storage, 1, 2))
    lost = partition(3, 4)

    published = publish_version(prepared, [lost], settings=SETTINGS)

    assert photos_of(storage) == [1, 2]
    assert published.rejected == {"gave-up": 2}


def test_no_usable_photo_publishes_nothing_and_says_why(storage: Storage):
    with pytest.raises(CatalogError, match=r"photos: none of 0 photos can be part of a map.*Nothing was published"):
        publish(storage)

    assert list_versions(storage) == []


class AnotherIsFaster:
    """Lets another run publish at the moment when this one creates its manifest."""

    def __init__(self, inner: Storage, another: Callable[[], object]) -> None:
        self.inner, self.another = inner, [another]

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if path.startswith("manifests/") and self.another:
            self.another.pop()()
        return self.inner.put_if_absent(path, data)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_of_two_backfills_at_once_both_get_their_photos_into_the_map(storage: Storage):
    publish(storage, 1, 2)
    slow = AnotherIsFaster(storage, lambda: publish(storage, 5, 6, mode="backfill"))

    publish(slow, 3, 4, mode="backfill")

    assert photos_of(storage) == [1, 2, 3, 4, 5, 6]
    assert list_versions(storage) == [1, 2, 3]
    shards = {info.path for info in storage.list("indexes")}
    assert shards == {shard.file.path for shard in read_head(storage).index.shards}  # none is left of the draft that was late


def test_a_build_keeps_what_a_faster_backfill_added_meanwhile(storage: Storage):
    publish(storage, 1, 2)
    slow = AnotherIsFaster(storage, lambda: publish(storage, 5, mode="backfill"))

    publish(slow, 1, 3)

    assert photos_of(storage) == [1, 3, 5]
    assert list_versions(storage) == [1, 2, 3]


def test_of_two_builds_of_the_same_photos_the_second_finds_its_work_done(storage: Storage):
    publish(storage, 1, 2)
    slow = AnotherIsFaster(storage, lambda: publish(storage, 1, 2, 3))

    second = publish(slow, 1, 2, 3)

    assert photos_of(storage) == [1, 2, 3]
    assert second.manifest.version == 2
    assert list_versions(storage) == [1, 2]


@pytest.mark.parametrize("before", [(), (1, 2)])
def test_of_two_builds_of_other_photos_the_second_conflicts_and_keeps_what_it_encoded(storage: Storage, before: tuple[int, ...]):
    if before:
        publish(storage, *before)
    slow = AnotherIsFaster(storage, lambda: publish(storage, 1, 2, 3))
    head = 2 if before else 1

    with pytest.raises(
        CommitConflict, match=rf"version {head} \(build\) was published with other photos.*Nothing of it is visible"
    ):
        publish(slow, 1, 4)

    assert photos_of(storage) == [1, 2, 3]
    again = start(storage, 1, 4)
    assert again.partitions == []  # all is encoded
    assert finish(again).manifest.version == head + 1
    assert photos_of(storage) == [1, 4]


def test_a_build_conflicts_with_a_rollback_but_not_with_one_to_what_it_started_from(storage: Storage):
    publish(storage, 1, 2)
    publish(storage, 1, 2, 3)
    before, beside = start(storage, 1, 2, 4), start(storage, 1, 2, 5)
    rollback(storage, 1)

    with pytest.raises(CommitConflict, match=r"version 3 \(rollback\)"):
        finish(encode(before))
    rollback(storage, 2)
    finish(encode(beside))

    assert photos_of(storage) == [1, 2, 5]


def test_a_backfill_goes_on_top_of_a_faster_build(storage: Storage):
    publish(storage, 1, 2)
    slow = AnotherIsFaster(storage, lambda: publish(storage, 2, 3))

    publish(slow, 4, mode="backfill")

    assert photos_of(storage) == [2, 3, 4]


@pytest.mark.parametrize("mode", ["build", "backfill"])
def test_a_photo_taken_down_while_a_run_is_at_work_does_not_come_in_with_it(storage: Storage, mode: Mode):
    publish(storage, 1, 2)
    slow = AnotherIsFaster(storage, lambda: takedown(storage, TakedownRequest(image_ids=frozenset({image_id("2.jpg")}))))

    published = publish(slow, 1, 2, 3, mode=mode)

    assert photos_of(storage) == [1, 3]
    assert published.manifest.version == 3
    assert published.manifest.tombstones == read_manifest(storage, 2).tombstones


def test_a_photo_taken_down_is_never_encoded_again_and_is_counted_but_not_listed(storage: Storage):
    publish(storage, 1, 2)
    takedown(storage, TakedownRequest(image_ids=frozenset({image_id("2.jpg"), image_id("7.jpg")})))

    published = publish(storage, 1, 2, 3, 7)

    assert photos_of(storage) == [1, 3]
    assert published.encoded == 1
    assert published.rejected == {"taken-down": 2}
    path = published.rejects.removeprefix(f"{storage.url}/")
    assert len(read_table(storage, path, kind="rejects")) == 0


def test_a_build_copies_what_stays_out_of_a_segment_that_holds_a_photo_taken_down(storage: Storage):
    first = publish(storage, 1, 2, 3)
    takedown(storage, TakedownRequest(image_ids=frozenset({image_id("2.jpg")})))

    second = publish(storage, 1, 2, 3)

    assert (second.encoded, second.replaced) == (0, 1)
    assert photos_of(storage) == [1, 3]
    assert [entry.masked_rows for entry in second.manifest.segments] == [[]]
    assert {entry.segment_id for entry in second.manifest.segments}.isdisjoint(
        entry.segment_id for entry in first.manifest.segments
    )
    assert publish(storage, 1, 2, 3).manifest == second.manifest


@pytest.mark.parametrize("deaths", [(0,), (1,), (3,), (5,), (1, 2), (2, 2), (3, 1, 1)])
def test_a_run_that_dies_however_often_comes_to_the_same_map(storage: Storage, deaths: tuple[int, ...]):
    """Each number: so many segments are finished before the run is killed once more."""
    numbers = range(1, 25)
    undisturbed = open_storage(f"memory://{uuid4().hex}", Settings(threads=1))
    expected = finish(encode(start(undisturbed, *numbers, partition=PIECES))).manifest
    assert len(expected.segments) == 6

    for done in deaths:
        encode(start(storage, *numbers, partition=PIECES), most=done)
    last = start(storage, *numbers, partition=PIECES)

    assert len(last.partitions) == 6 - sum(deaths)
    assert finish(encode(last)).manifest.content_id == expected.content_id


def test_a_run_that_died_is_of_use_to_one_of_other_photos(storage: Storage):
    """The cuts are others now, but what is encoded stays where it is."""
    encode(start(storage, *range(1, 25), partition=PIECES), most=3)

    other = start(storage, *range(3, 31), partition=PIECES)

    assert sum(len(task.images) for task in other.partitions) == 28 - 10
    finish(encode(other))
    assert photos_of(storage) == list(range(3, 31))


def test_the_plan_of_a_run_on_an_older_version_is_not_followed(storage: Storage):
    """Its segments may have come into the map by another run since."""
    encode(start(storage, *range(1, 25), partition=PIECES), most=2)
    publish(storage, *range(1, 9), mode="backfill")

    last = start(storage, *range(1, 25), partition=PIECES)

    assert (last.plan.base, last.plan.reused) == (1, [])
    assert sum(len(task.images) for task in last.partitions) == 16
    assert finish(encode(last)).manifest.statistics["photos"] == 24


def test_a_damaged_plan_costs_new_cuts_and_nothing_else(storage: Storage, caplog: pytest.LogCaptureFixture):
    first = encode(start(storage, *range(1, 25), partition=PIECES), most=2)
    storage.put(f"runs/{first.plan.run_id}/plan.json", b"{}")

    last = start(storage, *range(1, 25), partition=PIECES)

    assert "planning anew" in caplog.text
    assert sum(len(task.images) for task in last.partitions) == 16
    assert finish(encode(last)).manifest.statistics["photos"] == 24
