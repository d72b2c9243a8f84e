"""Names for versions."""

import pytest

from infra.commits import list_tags, retire
from infra.leases import live_leases
from pipelines.maintain.tags import delete_tag, tag
from schemas.errors import MapError, MapMissing
from tests.infra.clocked_storage import ClockedStorage
from tests.pipelines.maintain.small_maps import publish_segments


@pytest.fixture
def storage() -> ClockedStorage:
    """Versions 1 and 2."""
    storage = ClockedStorage()
    publish_segments(storage, "a")
    publish_segments(storage, "b")
    return storage


def test_a_tag_is_for_the_newest_version_or_for_the_one_given(storage: ClockedStorage):
    assert tag(storage, "now") == 2
    assert tag(storage, "before", 1) == 1
    assert tag(storage, "same", "before") == 1
    assert list_tags(storage) == {"now": 2, "before": 1, "same": 1}
    assert live_leases(storage) == []


def test_a_deleted_tag_can_be_given_to_another_version(storage: ClockedStorage):
    tag(storage, "prod", 1)

    assert delete_tag(storage, "prod") == 1
    assert tag(storage, "prod") == 2


def test_versions_that_are_not_there_or_retired_get_no_name(storage: ClockedStorage):
    retire(storage, [1], reason="gc")

    with pytest.raises(MapError, match="version 1 is retired"):
        tag(storage, "prod", 1)
    with pytest.raises(MapMissing, match="no version 7"):
        tag(storage, "prod", 7)
    with pytest.raises(MapMissing, match="no map here"):
        tag(ClockedStorage(), "prod")
    assert list_tags(storage) == {}


def test_there_is_no_such_tag_to_delete(storage: ClockedStorage):
    with pytest.raises(MapMissing, match=r"no tag prod here.*folio versions"):
        delete_tag(storage, "prod")
