"""Photos taken down: which, how that is said, and that answers and every later version are without them."""

from pathlib import Path
from uuid import uuid4

import msgspec
import numpy as np
import pytest

from infra import commits
from infra.commits import list_versions, publish, read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.masking import without
from pipelines.build.tombstones import read_tombstone_rows, read_tombstones
from pipelines.catalog.boxes import inside
from pipelines.maintain.takedown import TakedownRequest, request_of, takedown
from pipelines.maintain.versions import rollback
from pipelines.query.opened_map import OpenedMap
from schemas.errors import MapMissing
from tests.pipelines.maintain.photo_maps import descriptor, images, name, publish_map, uri, write_segment


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


@pytest.fixture
def town(storage: Storage) -> Storage:
    """Photos 0 to 9 in two segments and one shard; 7 is a copy of 2."""
    publish_map(
        storage,
        [write_segment(storage, images(range(5))), write_segment(storage, images(range(5, 10), same_bytes={7: 2}))],
    )
    return storage


def ids(*numbers: int, duplicates: bool = False) -> TakedownRequest:
    return TakedownRequest(image_ids=frozenset(name(number) for number in numbers), duplicates=duplicates)


def photos_of(storage: Storage) -> list[int]:
    uris = OpenedMap(storage, read_head(storage)).positions()["uri"].to_pylist()
    return sorted(int(each.removeprefix("lund/").removesuffix(".jpg")) for each in uris)


def answers(storage: Storage, number: int) -> list[str]:
    """What is found for the very descriptor of a photo, nearest first."""
    return [photo.image_id for photo in OpenedMap(storage, read_head(storage)).nearest(descriptor(number), 100)]


def test_a_photo_taken_down_is_gone_from_answers_and_listings_at_once(town: Storage):
    assert answers(town, 3)[0] == name(3)
    before = {info.path for info in town.list()}

    done = takedown(town, ids(3))

    assert name(3) not in answers(town, 3)
    assert len(answers(town, 3)) == 9
    assert photos_of(town) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert ([photo.uri for photo in done.photos], done.photos_left, done.published) == ([uri(3)], 9, True)
    head = read_head(town)
    assert (head.version, head.action, head.statistics["photos"]) == (2, "takedown", 9)
    assert {info.path for info in town.list()} - before == {
        commits.manifest_path(2),
        commits.published_path(2),
        head.tombstones[0].path,
    }


def test_of_the_photo_only_digests_are_kept(town: Storage):
    takedown(town, TakedownRequest(uris=frozenset({uri(3)})))

    head = read_head(town)
    (table,) = read_tombstone_rows(town, head.tombstones).to_pylist()
    assert table == {
        "image_id": name(3),
        "photo_key": images([3])["photo_key"][0].as_py(),
        "checksum": images([3])["checksum"][0].as_py(),
    }
    for path in (head.tombstones[0].path, commits.manifest_path(2)):
        assert uri(3).encode() not in town.get(path)


def test_asking_twice_changes_nothing_more(town: Storage):
    takedown(town, ids(3, 4))

    again = takedown(town, ids(4, 3))

    assert (again.published, again.photos, again.already, again.not_found) == (False, [], 2, [])
    assert list_versions(town) == [1, 2]


def test_who_is_not_in_the_map_is_named_and_kept_out_all_the_same(town: Storage):
    done = takedown(town, TakedownRequest(image_ids=frozenset({name(3)}), uris=frozenset({"lund/stranger.jpg"})))

    assert done.not_found == ["lund/stranger.jpg"]
    down = read_tombstones(town, read_head(town).tombstones)
    assert len(down.image_ids) == 2
    assert takedown(town, TakedownRequest(uris=frozenset({"lund/stranger.jpg"}))).not_found == []


def test_a_dry_run_says_the_same_and_changes_nothing(town: Storage):
    before = {info.path: town.get(info.path) for info in town.list()}

    said = takedown(town, ids(2, 3), dry_run=True)

    assert {info.path: town.get(info.path) for info in town.list()} == before
    done = takedown(town, ids(2, 3))
    assert (said.photos, said.duplicates, said.photos_left) == (done.photos, done.duplicates, done.photos_left)
    assert "would be taken down" in said.lines()[0]


def test_copies_under_other_names_are_named_and_stay(town: Storage):
    done = takedown(town, ids(2))

    assert [photo.uri for photo in done.duplicates] == [uri(7)]
    assert 7 in photos_of(town)
    assert not read_tombstones(town, read_head(town).tombstones).checksums, "or the next build would take the copy too"


def test_copies_go_too_when_asked_for(town: Storage):
    done = takedown(town, ids(2, duplicates=True))

    assert [photo.uri for photo in done.photos] == [uri(2), uri(7)]
    assert photos_of(town) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert read_tombstones(town, read_head(town).tombstones).checksums == {images([2])["checksum"][0].as_py()}


def test_copies_can_go_later(town: Storage):
    takedown(town, ids(2))

    assert [photo.uri for photo in takedown(town, ids(2, duplicates=True)).photos] == [uri(7)]


def test_a_copy_that_another_run_brings_in_under_a_new_name_is_masked_by_its_bytes(town: Storage):
    """Photo 20 is a copy of 3 and is published by somebody who did not know that 3 was taken down."""
    takedown(town, ids(3))
    receipts = [write_segment(town, images([20, 21], same_bytes={20: 3}))]
    late = publish_map(town, receipts)

    head = publish(town, lambda head: head and without(town, head, read_tables(town, 2)))

    assert late.version == 3
    assert (head.version, photos_of(town)) == (4, [21])


def read_tables(storage: Storage, version: int) -> list[object]:
    return list(commits.read_manifest(storage, version).tombstones)


def test_a_box_takes_what_stands_in_it_also_on_its_edge(town: Storage):
    """Photos 3, 4 and 5 stand at 13.003, 13.004 and 13.005 degrees."""
    done = takedown(town, TakedownRequest(boxes=((13.003, 54.0, 13.005, 55.0),)))

    assert [photo.uri for photo in done.photos] == [uri(3), uri(4), uri(5)]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((179.0, -10, -179.0, 10), [179.0, 180.0, -180.0, -179.0]),
        ((180.0, -10, -179.5, 10), [180.0, -180.0]),
        ((179.5, -10, 180.0, 10), [180.0, -180.0]),
        ((-180.0, -10, -179.0, 10), [180.0, -180.0, -179.0]),
        ((-180.0, -10, 180.0, 10), [178.9, 179.0, 180.0, -180.0, -179.0, -178.9, 0.0]),
        ((0.0, -10, 0.0, 10), [0.0]),
        ((0.0, 1, 0.0, 10), []),
    ],
)
def test_boxes_reach_over_the_date_line(box: tuple[float, float, float, float], expected: list[float]):
    lon = np.array([178.9, 179.0, 180.0, -180.0, -179.0, -178.9, 0.0])

    assert lon[inside(lon, np.zeros(7), box)].tolist() == expected


def test_a_map_whose_photos_are_all_taken_down_answers_with_nothing(town: Storage):
    done = takedown(town, TakedownRequest(boxes=((-180.0, -90.0, 180.0, 90.0),)))

    assert (done.photos_left, answers(town, 3), photos_of(town)) == (0, [], [])


def test_a_rollback_does_not_bring_a_photo_back(town: Storage):
    takedown(town, ids(3))

    back = rollback(town, 1)

    assert back.tombstones == commits.read_manifest(town, 2).tombstones
    assert name(3) not in answers(town, 3)


def test_an_older_version_is_opened_without_the_photos_taken_down_since(town: Storage):
    takedown(town, ids(3))

    old = without(town, commits.read_manifest(town, 1), read_head(town).tombstones)

    assert name(3) not in [photo.image_id for photo in OpenedMap(town, old).nearest(descriptor(3), 100)]


def test_the_next_version_of_another_publisher_is_the_one_that_is_masked(town: Storage, monkeypatch: pytest.MonkeyPatch):
    """While the takedown of 3 reads, a backfill publishes photo 30; both stand in the end."""
    once = iter([True])
    real = commits._create_or_read

    def slow(storage: Storage, path: str, *rest: object) -> bytes:
        if path == commits.manifest_path(2) and next(once, False):
            head = read_head(storage)
            extra = publish_map(open_storage(storage.url, Settings(threads=1)), [write_segment(storage, images([30, 31]))])
            assert (head.version, extra.version) == (1, 2)
        return real(storage, path, *rest)

    monkeypatch.setattr(commits, "_create_or_read", slow)

    done = takedown(town, TakedownRequest(image_ids=frozenset({name(30)})))

    assert (done.version, [photo.uri for photo in done.photos], photos_of(town)) == (3, [uri(30)], [31])


def test_a_large_list_of_names_is_fine(town: Storage, tmp_path: Path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join([*(f"elsewhere/{n}.jpg" for n in range(20_000)), uri(5), ""]))

    done = takedown(town, request_of(ids=[], uris=[str(file)], bbox=[], duplicates=False))

    assert ([photo.uri for photo in done.photos], len(done.not_found)) == ([uri(5)], 20_000)
    assert len(done.lines()) < 30


def test_ids_come_from_the_command_line_and_from_files_of_any_newline(tmp_path: Path):
    file = tmp_path / "ids.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"{name(1).upper()}\r\n\r\n{name(2)}".encode())

    request = request_of(ids=[str(file), name(3)], uris=[], bbox=["-1.5,2,3,4"], duplicates=True)

    assert request == TakedownRequest(
        image_ids=frozenset({name(1), name(2), name(3)}), boxes=((-1.5, 2.0, 3.0, 4.0),), duplicates=True
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "say which photos"),
        ({"ids": ["nowhere.txt"]}, "nowhere.txt: no file"),
        ({"bbox": ["1,2,3"]}, "west,south,east,north in degrees, got '1,2,3'"),
        ({"bbox": ["1,5,3,4"]}, "south up to north"),
        ({"bbox": ["nan,1,2,3"]}, "west,south,east,north"),
    ],
)
def test_what_cannot_be_understood_is_refused(given: dict[str, list[str]], message: str):
    options: dict[str, object] = {"ids": [], "uris": [], "bbox": [], "duplicates": False, **given}

    with pytest.raises(ValueError, match=message):
        request_of(**options)


def test_a_name_among_ids_is_refused(tmp_path: Path):
    file = tmp_path / "ids.txt"
    file.write_text(uri(1))

    with pytest.raises(ValueError, match=r"32 hex digits, got 'lund/1.jpg'"):
        request_of(ids=[str(file)], uris=[], bbox=[], duplicates=False)


def test_where_there_is_no_map_nothing_can_be_taken_down(storage: Storage):
    with pytest.raises(MapMissing):
        takedown(storage, ids(1))

    assert list_versions(storage) == []


def test_the_outcome_is_plain_json(town: Storage):
    done = takedown(town, ids(2, 99))

    assert msgspec.json.decode(msgspec.json.encode(done))["not_found"] == [name(99)]
