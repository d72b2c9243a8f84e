"""The last stage of a build: which photos the next version has, also when another build publishes at the same moment."""

from collections.abc import Callable
from uuid import uuid4

import pytest

from infra import arrays, commits
from infra.commits import list_versions, read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table
from pipelines.build.encode import encode_partition
from pipelines.build.membership import live_keys, read_stored
from pipelines.build.plan import make_plan
from pipelines.build.publishing import publish_version
from pipelines.build.request import BuildRequest, Mode, Prepared, Published
from pipelines.catalog.sources import Catalog
from schemas.errors import CatalogError
from schemas.rejects import REJECTS
from tests.pipelines.build.stand_ins import BAD, NumberDecoder, NumberEncoder, NumberReader, partition, photos


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 4096)
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


def prepare(storage: Storage, *numbers: int, mode: Mode = "build") -> Prepared:
    """A run that was asked for these photos and has encoded those that no run before has."""
    known = {key for each in read_stored(storage, "f00d").values() for key in (*each.photo_keys, *each.rejected_keys)}
    fresh = [number for number in numbers if f"key {number}" not in known]
    partitions = [partition(*fresh)] if fresh else []
    for task in partitions:
        encode_partition(task, storage, NumberEncoder(), NumberReader(), NumberDecoder(), lambda: None)
    encoder = NumberEncoder()
    catalog = Catalog(images=photos(*numbers), rejects=REJECTS.empty_table(), notes=[])
    return Prepared(
        request=BuildRequest(map_url=storage.url, photos=("photos",), mode=mode),
        storage=storage,
        head=commits.head_or_none(storage),
        encoder=encoder,
        catalog=catalog,
        partitions=partitions,
        notes=[],
        plan=make_plan(catalog, len(fresh), [len(fresh)], encoder, mode=mode, workers=1),
    )


def publish(storage: Storage, *numbers: int, mode: Mode = "build") -> Published:
    return publish_version(prepare(storage, *numbers, mode=mode), [])


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
    prepared = prepare(storage, 1, 2)
    lost = partition(3, 4)

    published = publish_version(prepared, [lost])

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


def test_a_build_beside_a_faster_backfill_still_gives_exactly_its_photos(storage: Storage):
    publish(storage, 1, 2)
    slow = AnotherIsFaster(storage, lambda: publish(storage, 5, mode="backfill"))

    publish(slow, 1, 3)

    assert photos_of(storage) == [1, 3]
    assert list_versions(storage) == [1, 2, 3]
