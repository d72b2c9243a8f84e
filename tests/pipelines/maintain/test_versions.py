"""Versions listed, and gone back to."""

from uuid import uuid4

import pytest

from infra.commits import list_versions, read_head, retire
from infra.leases import live_leases
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.maintain.tags import tag
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.versions import rollback, versions
from pipelines.query.opened_map import OpenedMap
from schemas.errors import MapError, MapMissing
from schemas.manifest import Manifest
from tests.infra.clocked_storage import ClockedStorage
from tests.pipelines.maintain.conftest import publish_another
from tests.pipelines.maintain.photo_maps import images, name, publish_map, uri, write_segment
from tests.pipelines.maintain.small_maps import publish_segments


def test_versions_are_listed_oldest_first(storage: Storage, first: Manifest):
    publish_another(storage, "second")

    lines = versions(storage)

    assert [(line.version, line.content_id) for line in lines] == [(1, "first"), (2, "second")]
    assert (lines[0].photos, lines[0].segments, lines[0].shards, lines[0].index) == (3, 1, 1, "ivfpq")
    assert (lines[0].recipe, lines[0].trained) == ("tiny", False)


def test_versions_say_what_published_them_and_how_they_are_called(storage: Storage):
    publish_segments(storage, "a")
    publish_segments(storage, "a", "b", action="backfill")
    tag(storage, "prod", 1)
    tag(storage, "first", 1)
    retire(storage, [1], reason="gc")

    lines = versions(storage)

    assert [(line.action, line.tags, line.retired) for line in lines] == [
        ("build", ["first", "prod"], True),
        ("backfill", [], False),
    ]
    assert lines[0].line().endswith("tiny  [first] [prod] untrained retired")


def test_a_map_without_versions_lists_none(storage: Storage):
    assert versions(storage) == []


def test_rollback_publishes_the_old_content_as_a_new_version(storage: Storage, first: Manifest):
    publish_another(storage, "second")

    back = rollback(storage, 1)

    assert (back.version, back.parent, back.content_id, back.action) == (3, 2, "first", "rollback")
    assert back.segments == first.segments
    assert read_head(storage) == back
    assert list_versions(storage) == [1, 2, 3]


def test_rollback_goes_to_a_tag_too(storage: Storage, first: Manifest):
    tag(storage, "good")
    publish_another(storage, "second")

    assert rollback(storage, "good").content_id == "first"


def test_rollback_to_what_the_newest_version_already_is_publishes_nothing(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    back = rollback(storage, 1)

    assert rollback(storage, 1) == back
    assert rollback(storage, 3) == back
    assert list_versions(storage) == [1, 2, 3]


@pytest.mark.parametrize("version", [9, "9", "prod"])
def test_rollback_to_no_version_is_refused(storage: Storage, first: Manifest, version: int | str):
    before = {info.path for info in storage.list()}

    with pytest.raises(MapMissing, match=r"no (version|tag) .* here"):
        rollback(storage, version)

    assert {info.path for info in storage.list()} == before


def test_rollback_to_a_retired_version_is_refused(storage: Storage, first: Manifest):
    publish_another(storage, "second")
    retire(storage, [1], reason="gc")

    with pytest.raises(MapError, match="version 1 is retired"):
        rollback(storage, 1)

    assert list_versions(storage) == [1, 2]


class RetiredMeanwhile(ClockedStorage):
    """In the moment when the rollback wants to publish, another publishes, and gc retires the version it goes back to."""

    struck = False

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if path.endswith("3.json") and not self.struck:
            self.struck = True
            publish_segments(self, "third")
            retire(self, [1], reason="gc")
        return super().put_if_absent(path, data)


def test_rollback_looks_again_when_another_was_faster():
    storage = RetiredMeanwhile()
    publish_segments(storage, "first")
    publish_segments(storage, "second")

    with pytest.raises(MapError, match="version 1 is retired"):
        rollback(storage, 1)

    assert read_head(storage).content_id == "third"


class NotesLeases(ClockedStorage):
    """Notes who is at work whenever a version is published."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[int]]] = []

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if path.startswith("manifests/"):
            self.seen += [(one.action, one.pins) for one in live_leases(self)]
        return super().put_if_absent(path, data)


def test_rollback_pins_the_version_until_it_is_published():
    storage = NotesLeases()
    publish_segments(storage, "first")
    publish_segments(storage, "second")

    rollback(storage, 1)

    assert storage.seen == [("rollback", [1])]
    assert live_leases(storage) == []


def test_rollback_never_brings_photos_back_that_were_taken_down():
    """Version 1 is whole again but for photo 1, taken down in version 3."""
    storage = open_storage(f"memory://{uuid4().hex}", Settings(threads=1))
    first = publish_map(storage, [write_segment(storage, images([0, 1, 2]))])
    publish_map(storage, [write_segment(storage, images([3]))])
    publish_map(storage, [write_segment(storage, images([1, 3]))])
    takedown(storage, TakedownRequest(image_ids=frozenset([name(1)])))

    back = rollback(storage, first.version)

    assert sorted(OpenedMap(storage, back).positions()["uri"].to_pylist()) == [uri(0), uri(2)]
    assert back.tombstones
    assert back.statistics["photos"] == 2
    assert rollback(storage, first.version) == back
