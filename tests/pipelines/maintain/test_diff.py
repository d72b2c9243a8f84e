"""What differs between two versions."""

from uuid import uuid4

import msgspec
import pyarrow as pa
import pytest

from infra.commits import publish, receipt_path, retire
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.maintain.diff import PhotoLine, diff
from pipelines.maintain.tags import tag
from pipelines.maintain.takedown import TakedownRequest, takedown
from schemas.errors import DamagedError, MapMissing
from schemas.manifest import Receipt
from tests.pipelines.maintain.photo_maps import images, name, publish_map, uri, write_segment


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


def lines(*numbers: int) -> list[PhotoLine]:
    return sorted((PhotoLine(image_id=name(n), uri=uri(n)) for n in numbers), key=lambda line: line.image_id)


def changed(photos: pa.Table) -> pa.Table:
    """The same photos with other bytes: other keys."""
    keys = pa.array([f"other {key}" for key in photos["photo_key"].to_pylist()])
    return photos.set_column(photos.schema.get_field_index("photo_key"), photos.schema.field("photo_key"), keys)


@pytest.fixture
def kept(storage: Storage) -> Receipt:
    """The segment that both versions have."""
    return write_segment(storage, images([0, 1]))


def test_photos_are_added_removed_and_changed(storage: Storage, kept: Receipt):
    """Photo 4 only moves to another segment, which is no difference."""
    publish_map(storage, [kept, write_segment(storage, images([2, 3, 4]))])
    photos = pa.concat_tables([images([4, 5]), changed(images([3]))])
    publish_map(storage, [kept, write_segment(storage, photos)])

    found = diff(storage, 1, 2)

    assert found.photos is not None
    assert (found.photos.added, found.photos.removed, found.photos.changed) == (lines(5), lines(2), lines(3))
    assert (len(found.segments.added), len(found.segments.removed), found.segments.changed, found.segments.kept) == (1, 1, [], 1)
    assert (found.index.shards_added, found.index.shards_removed, found.index.shards_kept) == (1, 1, 0)
    assert not found.model_changed
    assert found.lines() == [
        "photos    1 added, 1 removed, 1 changed",
        f"  added  {uri(5)}",
        f"  removed  {uri(2)}",
        f"  changed  {uri(3)}",
        "segments  1 added, 1 removed, 0 changed, 1 the same",
        "index     flat, the same quantizer; shards: 1 added, 1 removed, 0 the same",
    ]


def test_masked_photos_are_removed_photos(storage: Storage, kept: Receipt):
    publish_map(storage, [kept])
    takedown(storage, TakedownRequest(image_ids=frozenset([name(1)])))

    found = diff(storage, 1, 2)

    assert found.photos is not None
    assert (found.photos.added, found.photos.removed, found.photos.changed) == ([], lines(1), [])
    assert (found.segments.changed, found.segments.kept) == ([kept.segment_id], 0)
    assert found.index.shards_kept == 1


def test_of_many_photos_a_person_sees_the_first_few(storage: Storage, kept: Receipt):
    publish_map(storage, [kept])
    publish_map(storage, [kept, write_segment(storage, images(range(2, 12)))])

    shown = diff(storage, 1, 2).lines()

    assert shown[0] == "photos    10 added, 0 removed, 0 changed"
    assert shown[1:6] == [f"  added  {line.uri}" for line in lines(*range(2, 12))[:5]]
    assert shown[6] == "  added  and 5 more, see --json"


def test_a_version_does_not_differ_from_itself(storage: Storage, kept: Receipt):
    publish_map(storage, [kept])
    tag(storage, "prod")

    found = diff(storage, "prod", "1")

    assert (found.a, found.b) == (1, 1)
    assert found.photos is not None
    assert not [*found.photos.added, *found.photos.removed, *found.photos.changed]
    assert found.segments.kept == 1


def test_only_segments_that_differ_are_read(storage: Storage, kept: Receipt):
    publish_map(storage, [kept])
    publish_map(storage, [kept, write_segment(storage, images([2]))])
    storage.delete(receipt_path(kept.segment_id))

    found = diff(storage, 1, 2).photos

    assert found is not None
    assert found.added == lines(2)


def test_of_a_retired_version_segments_and_index_can_still_be_compared(storage: Storage, kept: Receipt):
    gone = write_segment(storage, images([2]))
    publish_map(storage, [kept, gone])
    publish_map(storage, [kept])
    storage.delete(receipt_path(gone.segment_id))

    with pytest.raises(DamagedError):
        diff(storage, 1, 2)
    retire(storage, [1], reason="gc")
    found = diff(storage, 1, 2)

    assert found.photos is None
    assert found.segments.removed == [gone.segment_id]
    assert found.lines()[0].startswith("photos    cannot be compared: one version is retired")


def test_another_network_is_said(storage: Storage, kept: Receipt):
    first = publish_map(storage, [kept])
    model = msgspec.structs.replace(first.model, fingerprint="other")
    publish(storage, lambda head: msgspec.structs.replace(first, model=model))

    assert diff(storage, 1, 2).lines()[-1] == "model     another network"


def test_a_version_that_is_not_there_is_said(storage: Storage, kept: Receipt):
    publish_map(storage, [kept])

    with pytest.raises(MapMissing, match="no version 2"):
        diff(storage, 1, 2)
