"""An opened map of any size takes the same memory, opens no more than an answer needs, and answers however it was cut."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from infra.commits import read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.query import opened_map
from pipelines.query.opened_map import IMAGE_COLUMNS, OpenedMap, StoredPhoto
from pipelines.query.prior import Prior
from tests.pipelines.maintain import photo_maps
from tests.pipelines.maintain.photo_maps import descriptor, images, name, publish_map, write_segment

PHOTOS = 24


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return publish_cut(tmp_path, PHOTOS, 4)


def publish_cut(folder: Path, photos: int, size: int) -> Storage:
    """A map of so many photos, in segments of one size."""
    storage = open_storage(str(folder / f"map-{size}"), Settings(threads=1))
    starts = range(0, photos, size)
    publish_map(storage, [write_segment(storage, images(range(start, min(photos, start + size)))) for start in starts])
    return storage


def open_map(storage: Storage) -> OpenedMap:
    return OpenedMap(storage, read_head(storage))


def ask(opened: OpenedMap, number: int) -> tuple[list[StoredPhoto], list[bytes], list[int]]:
    """What a query for a photo finds, and reads of what it finds."""
    found = opened.nearest(descriptor(number), 10)
    return (
        found,
        [row.tobytes() for _, row in sorted(opened.descriptors_of(found), key=lambda pair: pair[0])],
        [len(one.features) for one in opened.local_features_of(found)],
    )


def watch(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are read from now on."""
    read: list[str] = []
    get = storage.get
    monkeypatch.setattr(storage, "get", lambda path, **where: read.append(path) or get(path, **where))
    return read


@pytest.mark.parametrize("limit_bytes", [0, 10_000])
def test_what_is_kept_of_segments_is_bounded_and_changes_no_answer(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, limit_bytes: int
):
    """Room for no part of a segment, or for a few: eight threads ask, and each segment is read again and again."""
    expected = [ask(open_map(storage), number) for number in range(PHOTOS)]
    monkeypatch.setattr(opened_map, "TABLE_BYTES", limit_bytes)
    monkeypatch.setattr(opened_map, "READER_BYTES", limit_bytes)
    monkeypatch.setattr(opened_map, "CACHE_BYTES", 0)
    opened = open_map(storage)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: ask(opened, number % PHOTOS), range(3 * PHOTOS)))

    assert found == 3 * expected
    for kept in (opened._kept.tables, opened._kept.readers):
        assert kept._held_bytes == sum(size for _, size in kept._things.values()) <= limit_bytes


def test_a_thread_that_waits_for_a_segment_keeps_nobody_from_another_one(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    opened = open_map(storage)
    first, second, *_ = [entry.segment_id for entry in opened.manifest.segments]
    get, waits, answered = storage.get, Event(), Event()

    def slow(path: str, **where: int) -> bytes:
        if first in path:
            waits.set()
            assert answered.wait(60)
        return get(path, **where)

    monkeypatch.setattr(storage, "get", slow)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: len(opened.segment(first).images))
        assert waits.wait(60)
        assert len(opened.segment(second).images) == 4
        answered.set()
        assert waiting.result() == 4


def test_candidates_that_differ_in_distance_are_found_without_opening_a_segment(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    opened = open_map(storage)
    nearest = {(photo.segment_id, photo.row) for photo in opened.nearest(descriptor(3), 7)}
    again, read = open_map(storage), watch(storage, monkeypatch)

    assert {(place.segment_id, place.row) for place in again.candidates([descriptor(3)], 7)[0]} == nearest
    assert read == []


def test_of_photos_that_cost_the_same_the_smaller_image_ids_are_named_and_no_other_table_is_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    """Eight photos of two segments: one costs less, the last three more; of the four between them two are wanted."""
    opened = open_map(storage)
    photos = opened.nearest(descriptor(0), PHOTOS)
    by_segment = sorted(photos, key=lambda photo: photo.segment_id)[:8]
    opened, read = open_map(storage), watch(storage, monkeypatch)

    ((best, costs),) = opened.best([by_segment], [[1.0, *[2.0] * 4, *[3.0] * 3]], 3)

    equal = sorted(photo.image_id for photo in by_segment[1:5])
    assert [photo.image_id for photo in best] == [by_segment[0].image_id, *equal[:2]]
    assert costs == [1.0, 2.0, 2.0]
    assert {path.split("/")[1] for path in read if path.endswith("images.parquet")} == {one.segment_id for one in by_segment[:5]}


def test_photos_with_equal_descriptors_are_chosen_by_name_however_the_map_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Many more than a search gives at first: which of them FAISS meets first depends on the cut."""
    one = descriptor(0)
    monkeypatch.setattr(photo_maps, "descriptor", lambda number: one)
    by_name = sorted(name(number) for number in range(400))

    for size in (7, 150, 400):
        opened = open_map(publish_cut(tmp_path, 400, size))
        assert [photo.image_id for photo in opened.nearest(one, 10)] == by_name[:10]
        assert len(opened.candidates([one], 390)[0]) == 390


def test_a_photo_that_was_found_says_what_its_segment_does(storage: Storage):
    opened = open_map(storage)

    for photo in opened.nearest(descriptor(5), 3):
        assert photo.image == opened.segment(photo.segment_id).images.slice(photo.row, 1).to_pylist()[0]
        assert list(photo.image) == IMAGE_COLUMNS


@pytest.mark.parametrize("step", [2, 3, 5, 100])
def test_some_positions_are_those_of_all_positions_and_nothing_is_kept_of_the_segments(storage: Storage, step: int):
    opened = open_map(storage)
    everything = open_map(storage).positions()

    assert opened.positions(step=step).equals(everything.take(np.arange(0, PHOTOS, step)))
    opened.matching(Prior(boxes=((13.0, 54, 13.01, 56),)))
    assert list(opened._kept.tables._things) == []
