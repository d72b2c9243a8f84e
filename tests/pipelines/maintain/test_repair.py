"""What is damaged is made again: in its place where the bytes are the same, in a new version where they are not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import pytest
from click.testing import CliRunner

from fol_model.config import RerankConfig
from infra.commits import list_retired, list_versions, manifest_path, read_head, receipt_path
from infra.storage import Storage, open_storage
from pipelines import ivfpq
from pipelines.build import publishing
from pipelines.cli import main
from pipelines.maintain import repair as repairing
from pipelines.maintain.repair import Repaired, RepairRequest, repair
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.verify import verify
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import QueryWorker
from schemas.errors import CommitConflict, MapError, ModelError
from schemas.images import image_id
from tests.faults.noise_map import SETTINGS, NoiseEncoder, build_noise_map, without_network, write_photos

PHOTOS = 300


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("source") / "city", range(PHOTOS))


@pytest.fixture(scope="module")
def original(photos: Path) -> dict[str, bytes]:
    """Every object of a map of one version: a few segments, a quantizer and a shard."""
    storage = open_storage(f"memory://{uuid4().hex}", SETTINGS)
    build_noise_map(storage.url, photos)
    return contents(storage)


@pytest.fixture
def storage(original: dict[str, bytes]) -> Storage:
    storage = open_storage(f"memory://{uuid4().hex}", SETTINGS)
    for path, data in original.items():
        storage.put(path, data)
    return storage


@pytest.fixture
def photos_gone(photos: Path) -> Iterator[Callable[..., None]]:
    """Hides photos by name, and shows them again afterwards."""
    hidden: list[Path] = []

    def hide(*names: str) -> None:
        chosen = names or sorted(path.name for path in photos.iterdir())
        hidden.extend((photos / name).rename(photos / f"{name}.hidden") for name in chosen)

    yield hide
    for path in hidden:
        path.rename(path.with_suffix(""))


def contents(storage: Storage) -> dict[str, bytes]:
    return {info.path: storage.get(info.path) for info in storage.list()}


def path_of(storage: Storage, ending: str) -> str:
    """The first object of the first segment of the newest version, or of its index, that ends so."""
    head = read_head(storage)
    folders = (f"segments/{head.segments[0].segment_id}/", f"indexes/{head.index.index_id}/")
    return next(info.path for info in storage.list() if info.path.startswith(folders) and info.path.endswith(ending))


def spoil(storage: Storage, path: str) -> None:
    data = storage.get(path)
    place = len(data) // 2
    storage.put(path, data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])


def repaired(storage: Storage, *sources: Path) -> Repaired:
    with without_network():
        return repair(RepairRequest(map_url=storage.url, photos=tuple(map(str, sources))), SETTINGS)


def found_photos(storage: Storage) -> set[str]:
    """Image ids of all that the newest version answers with."""
    opened = OpenedMap(storage, read_head(storage))
    QueryWorker(storage, opened, NoiseEncoder(), RerankConfig()).answer_encoded(NoiseEncoder().photo(3))
    return {photo.image_id for photo in opened.nearest(NoiseEncoder().photo(3).descriptor, 2 * PHOTOS)}


def other_bytes() -> object:
    """Encode as a machine would whose last bits differ."""
    encode = NoiseEncoder.photo

    def differently(self: NoiseEncoder, number: int) -> object:
        photo = encode(self, number)
        photo.descriptor[0] += 0.01
        return photo

    return patch.object(NoiseEncoder, "photo", differently)


def test_a_sound_map_is_left_as_it_is(storage: Storage, original: dict[str, bytes]):
    done = repaired(storage)

    assert (done.published, done.encoded, done.restored, done.found.problems) == (False, 0, [], [])
    assert contents(storage) == original


@pytest.mark.parametrize("ending", ["descriptors.parquet", "quantizer.faiss", "shard-00000.faiss"])
def test_what_can_be_made_again_byte_for_byte_is_put_back_and_nothing_is_published(
    storage: Storage, original: dict[str, bytes], ending: str
):
    path = path_of(storage, ending)
    spoil(storage, path)

    done = repaired(storage)

    assert (done.restored, done.published, done.found.problems, done.lost) == ([path], False, [], [])
    assert contents(storage) == original


def test_a_segment_with_damage_all_over_is_encoded_once(storage: Storage, original: dict[str, bytes]):
    paths = sorted(path_of(storage, ending) for ending in ("rejects.parquet", "zarr.json", "zarr/c/0/0/0"))
    for path in paths:
        spoil(storage, path)

    done = repaired(storage)

    assert (done.restored, done.encoded) == (paths, read_head(storage).segments[0].rows)
    assert contents(storage) == original


@pytest.mark.parametrize("ending", ["zarr/c/0/0/0", "quantizer.faiss"])
def test_what_is_gone_is_put_back_as_well(storage: Storage, original: dict[str, bytes], ending: str):
    storage.delete(path_of(storage, ending))

    assert repaired(storage).found.problems == []
    assert contents(storage) == original


def test_exactly_the_damaged_segment_is_encoded_again(storage: Storage):
    spoil(storage, path_of(storage, "descriptors.parquet"))

    assert repaired(storage).encoded == read_head(storage).segments[0].rows < PHOTOS


@pytest.mark.parametrize("gone", [True, False])
def test_a_receipt_is_written_again_without_the_photos_when_its_segment_is_whole(
    storage: Storage, original: dict[str, bytes], photos_gone: Callable[..., None], gone: bool
):
    path = receipt_path(read_head(storage).segments[0].segment_id)
    storage.delete(path) if gone else spoil(storage, path)
    photos_gone()

    done = repaired(storage)

    assert (done.restored, done.encoded, done.found.problems) == ([path], 0, [])
    assert contents(storage) == original


def test_a_receipt_and_what_it_listed_are_made_again_from_the_photos(storage: Storage, original: dict[str, bytes]):
    receipt = receipt_path(read_head(storage).segments[0].segment_id)
    storage.delete(receipt)
    features = path_of(storage, "zarr/c/0/0/0")
    spoil(storage, features)

    assert repaired(storage).restored == sorted([receipt, features])
    assert contents(storage) == original


def test_a_damaged_table_of_photos_is_made_again_from_the_photos_that_the_user_gives(
    storage: Storage, original: dict[str, bytes], photos: Path
):
    path = path_of(storage, "images.parquet")
    spoil(storage, path)

    without_names = repaired(storage)
    assert [problem.path for problem in without_names.found.problems] == [path]
    assert "say where they are" in without_names.notes[0]
    assert not without_names.published

    assert repaired(storage, photos).restored == [path]
    assert contents(storage) == original


def test_where_both_tables_are_damaged_the_photos_are_known_by_where_they_stand(
    storage: Storage, original: dict[str, bytes], photos: Path
):
    paths = [path_of(storage, "images.parquet"), path_of(storage, "descriptors.parquet")]
    for path in paths:
        spoil(storage, path)

    assert repaired(storage, photos).restored == sorted(paths)
    assert contents(storage) == original


def test_where_the_bytes_differ_a_new_version_has_a_new_segment_and_the_old_one_is_retired(storage: Storage, photos: Path):
    before, segment = found_photos(storage), read_head(storage).segments[0].segment_id
    spoil(storage, path_of(storage, "descriptors.parquet"))

    with other_bytes():
        done = repaired(storage)

    head = read_head(storage)
    assert (done.published, done.version, done.replaced, done.retired, done.lost) == (True, 2, [segment], [1], [])
    assert done.found.problems == []
    assert (head.action, head.statistics["photos"]) == ("repair", PHOTOS)
    assert segment not in [entry.segment_id for entry in head.segments]
    assert found_photos(storage) == before
    assert list_retired(storage) == {1}
    assert build_noise_map(storage.url, photos).encoded == 0


def test_photos_that_are_gone_are_named_and_the_rest_is_repaired(storage: Storage, photos_gone: Callable[..., None]):
    head = read_head(storage)
    names = {image_id(f"city/{number:04d}.jpg"): f"{number:04d}.jpg" for number in range(PHOTOS)}
    opened = OpenedMap(storage, head).segment(head.segments[0].segment_id)
    gone = [names[one] for one in [opened.image_id(row) for row in range(2)]]
    spoil(storage, path_of(storage, "zarr/c/0/0/0"))
    photos_gone(*gone)

    done = repaired(storage)

    assert done.lost == [f"city/{name}" for name in gone]
    assert done.found.problems == []
    assert found_photos(storage) == set(names) - {opened.image_id(row) for row in range(2)}


def test_photos_that_have_moved_are_found_in_another_place_by_what_they_are(
    storage: Storage, original: dict[str, bytes], photos: Path, tmp_path: Path, photos_gone: Callable[..., None]
):
    moved = tmp_path / "elsewhere" / "city"
    moved.mkdir(parents=True)
    for photo in photos.iterdir():
        (moved / photo.name).write_bytes(photo.read_bytes())
    photos_gone()
    path = path_of(storage, "descriptors.parquet")
    spoil(storage, path)

    assert repaired(storage, moved).restored == [path]
    assert contents(storage) == original


def test_a_segment_none_of_whose_photos_is_found_stays_and_is_named(storage: Storage, photos_gone: Callable[..., None]):
    """The disk with the photos may just not be there; nothing is dropped for that."""
    path = path_of(storage, "descriptors.parquet")
    spoil(storage, path)
    damaged = contents(storage)
    photos_gone()

    done = repaired(storage)

    assert [problem.path for problem in done.found.problems] == [path]
    assert contents(storage) == damaged


def test_a_photo_that_was_taken_down_does_not_come_back(storage: Storage):
    """Its row is in a segment that is damaged before the next rebuild could purge it."""
    head = read_head(storage)
    opened = OpenedMap(storage, head).segment(head.segments[0].segment_id)
    down = opened.images["uri"][0].as_py()
    takedown(storage, TakedownRequest(uris=frozenset({down})))
    spoil(storage, path_of(storage, "descriptors.parquet"))

    done = repaired(storage)

    assert done.found.problems == []
    assert done.lost == []
    assert image_id(down) not in found_photos(storage)
    assert len(found_photos(storage)) == PHOTOS - 1
    assert down.encode() not in storage.get(path_of(storage, "images.parquet"))


def test_a_shard_whose_bytes_differ_here_is_replaced_in_a_new_version(storage: Storage):
    before = found_photos(storage)
    spoil(storage, path_of(storage, "shard-00000.faiss"))
    make_shard = ivfpq.make_shard

    with patch.object(ivfpq, "make_shard", lambda *arguments: make_shard(*arguments) + b"\0"):
        done = repaired(storage)

    assert (done.published, done.encoded, done.retired, done.found.problems) == (True, 0, [1], [])
    assert found_photos(storage) == before


def test_a_quantizer_that_cannot_be_trained_the_same_is_trained_anew_with_all_shards(storage: Storage):
    before = found_photos(storage)
    spoil(storage, path_of(storage, "quantizer.faiss"))

    with patch.object(repairing, "train_again", lambda *_: b"another"):
        done = repaired(storage)

    assert (done.published, done.encoded, done.found.problems) == (True, 0, [])
    assert found_photos(storage) == before


def test_a_finished_segment_that_no_version_has_is_forgotten_when_damaged_so_that_builds_go_on(
    storage: Storage, photos: Path, tmp_path: Path
):
    more = write_photos(tmp_path / "more", range(PHOTOS, PHOTOS + 3))
    with patch.object(publishing, "publish", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        build_noise_map(storage.url, more, mode="backfill")
    named = {entry.segment_id for entry in read_head(storage).segments}
    receipts = {info.path for info in storage.list("receipts")} - {receipt_path(name) for name in named}
    [receipt] = receipts
    spoil(storage, receipt)

    done = repaired(storage)

    assert done.found.problems == []
    assert f"{receipt}: of a damaged segment that no version has" in done.notes[0]
    assert build_noise_map(storage.url, more, mode="backfill").encoded == 3


def test_the_command_repairs_and_says_what_it_did(storage: Storage, original: dict[str, bytes], tmp_path: Path):
    map_folder = open_storage(str(tmp_path / "map"), SETTINGS)
    for path, data in original.items():
        map_folder.put(path, data)
    path = path_of(map_folder, "descriptors.parquet")
    spoil(map_folder, path)

    with without_network():
        found = CliRunner().invoke(main, ["verify", map_folder.url])
        done = CliRunner().invoke(main, ["verify", map_folder.url, "--repair"])

    assert (found.exit_code, done.exit_code) == (1, 0)
    assert f"{path}: altered: sha256" in found.output
    assert f"{path}: restored" in done.output
    assert "version 1 stands, nothing published" in done.output
    assert "0 damaged, missing or foreign" in done.output
    assert CliRunner().invoke(main, ["verify", map_folder.url]).exit_code == 0


@pytest.mark.parametrize("options", [["photos/"], ["--repair", "--version", "1"]])
def test_options_that_mean_nothing_together_are_refused(storage: Storage, options: list[str]):
    assert CliRunner().invoke(main, ["verify", storage.url, *options]).exit_code == 2


def test_a_network_that_is_not_the_maps_is_refused_before_anything_is_written(storage: Storage):
    spoil(storage, path_of(storage, "descriptors.parquet"))

    with pytest.raises(ModelError, match="made with network tiny"), patch.object(NoiseEncoder, "fingerprint", "another"):
        repaired(storage)

    assert list_versions(storage) == [1]


def test_a_damaged_newest_manifest_cannot_be_repaired_and_says_so(storage: Storage):
    spoil(storage, manifest_path(1))

    with pytest.raises(MapError, match=manifest_path(1)):
        repaired(storage)


def test_a_version_published_meanwhile_is_a_conflict_and_nothing_is_lost(storage: Storage, photos: Path):
    spoil(storage, path_of(storage, "descriptors.parquet"))
    draft = repairing._Repair._draft

    def slowly(self: repairing._Repair) -> object:
        made = draft(self)
        takedown(storage, TakedownRequest(uris=frozenset({"city/0299.jpg"})))
        return made

    with other_bytes(), patch.object(repairing._Repair, "_draft", slowly), pytest.raises(CommitConflict, match="Run the same"):
        repaired(storage)

    with other_bytes():
        assert repaired(storage).found.problems == []
    assert verify(storage).problems == []
    assert image_id("city/0299.jpg") not in found_photos(storage)
