"""A quantizer that learned from a photo taken down is made anew by the next rebuild, and only then, and the old one goes."""

from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from infra.commits import read_head
from infra.storage import Storage, open_storage
from pipelines.build.drift import learned_from
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.verify import verify
from pipelines.maintain.verify_deleted import verify_deleted
from schemas.errors import CatalogError
from schemas.images import image_id
from schemas.manifest import ObjectRef
from tests.faults.noise_map import SETTINGS, build_noise_map, write_photos

PHOTOS = 300
NAMES = sorted((f"photos/{number:04d}.jpg" for number in range(PHOTOS)), key=image_id)
"""In the order in which a quantizer learns from them; the last ones it is measured by."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", range(PHOTOS))


@pytest.fixture
def storage(photos: Path) -> Storage:
    storage = open_storage(f"memory://{uuid4().hex}", SETTINGS)
    build_noise_map(storage.url, photos)
    return storage


def quantizer(storage: Storage) -> ObjectRef:
    ref = read_head(storage).index.quantizer
    assert ref is not None
    return ref


def test_what_it_learned_from_a_photo_taken_down_is_forgotten_by_the_next_rebuild(storage: Storage, photos: Path):
    old = quantizer(storage)
    takedown(storage, TakedownRequest(uris=frozenset({NAMES[0]})))
    found = {finding.path: finding.what for finding in verify_deleted(storage).left}

    done = build_noise_map(storage.url, photos)

    assert found[old.path] == "averages that 1 such photos are part of"
    assert done.quantizer.startswith("trained: it learned from 1 photos that were taken down since")
    assert quantizer(storage) != old
    assert old.path not in {info.path for info in storage.list()}
    assert verify_deleted(storage).proved
    assert verify(storage).problems == []


def test_it_is_forgotten_once(storage: Storage, photos: Path):
    takedown(storage, TakedownRequest(uris=frozenset({NAMES[0]})))
    build_noise_map(storage.url, photos)
    forgotten = read_head(storage)

    build_noise_map(storage.url, photos)

    assert read_head(storage) == forgotten


def test_a_photo_that_it_never_learned_from_costs_nothing(storage: Storage, photos: Path):
    old = quantizer(storage)
    takedown(storage, TakedownRequest(uris=frozenset({NAMES[-1]})))

    build_noise_map(storage.url, photos)

    assert quantizer(storage) == old
    assert verify_deleted(storage).proved
    assert verify(storage).problems == []


def test_a_backfill_leaves_it_to_the_next_rebuild(storage: Storage, tmp_path: Path):
    old = quantizer(storage)
    takedown(storage, TakedownRequest(uris=frozenset({NAMES[0]})))

    build_noise_map(storage.url, write_photos(tmp_path / "more", range(PHOTOS, PHOTOS + 5)), mode="backfill")

    assert quantizer(storage) == old
    assert old.path in {finding.path for finding in verify_deleted(storage).left}


def test_an_index_of_an_older_folio_may_have_learned_from_any_photo(storage: Storage):
    takedown(storage, TakedownRequest(uris=frozenset({NAMES[-1]})))
    head = read_head(storage)
    parameters = {name: value for name, value in head.index.parameters.items() if name not in ("learned_to", "tombstones")}
    older = msgspec.structs.replace(head.index, parameters=parameters)

    assert learned_from(storage, head.index, head.tombstones) == 0
    assert learned_from(storage, older, head.tombstones) == 1


def test_where_all_photos_are_taken_down_the_map_is_to_be_deleted(tmp_path: Path):
    few = write_photos(tmp_path / "few", range(3))
    storage = open_storage(f"memory://{uuid4().hex}", SETTINGS)
    build_noise_map(storage.url, few)
    takedown(storage, TakedownRequest(uris=frozenset(f"few/000{number}.jpg" for number in range(3))))

    with pytest.raises(CatalogError, match=r"none of 3 photos.*All photos of this map were taken down.*delete the map"):
        build_noise_map(storage.url, few)
