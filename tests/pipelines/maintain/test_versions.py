"""Versions listed, and gone back to."""

import pytest

from infra.commits import list_versions, read_head
from infra.storage import Storage
from pipelines.maintain.versions import rollback, versions
from schemas.errors import MapMissing
from schemas.manifest import Manifest
from tests.pipelines.maintain.conftest import publish_another


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
