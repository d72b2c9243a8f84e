"""A build costs what has changed: counted are the photos that the network sees and the objects that are written.

A map of noise: everything is real but the network.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.commits import read_head
from infra.storage import Storage, open_storage
from pipelines.build import build, compact
from pipelines.build.build import plan_build
from pipelines.build.masking import read_photos
from pipelines.build.membership import live_rows
from pipelines.build.request import BuildRequest, BuildSummary, Mode
from pipelines.maintain.verify import verify
from schemas.manifest import Manifest
from tests.faults.noise_map import PARTITION, SETTINGS, NoiseEncoder, build_noise_map, without_network, write_photos

PHOTOS = 300


@dataclass(frozen=True, kw_only=True)
class Map:
    """A map of 300 photos in three segments and one shard, and the photos it was made of."""

    photos: Path
    place: Path

    @property
    def storage(self) -> Storage:
        return open_storage(str(self.place), SETTINGS)

    @property
    def head(self) -> Manifest:
        return read_head(self.storage)

    def objects(self) -> dict[str, bytes]:
        """What lies in the store, but for what runs left there."""
        return {info.path: self.storage.get(info.path) for info in self.storage.list() if not info.path.startswith("runs/")}

    def names(self) -> set[str]:
        """Of the live photos."""
        return set(live_uris(self.storage, self.head))

    def run(self, photos: Path | None = None, *, mode: Mode = "build") -> BuildSummary:
        return build_noise_map(str(self.place), photos or self.photos, mode=mode)


def live_uris(storage: Storage, manifest: Manifest) -> Iterator[str]:
    for entry, table in zip(manifest.segments, read_photos(storage, manifest.segments, ["uri"]), strict=True):
        yield from (uri for uri, live in zip(table["uri"].to_pylist(), live_rows(entry), strict=True) if live)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Map:
    folder = tmp_path_factory.mktemp("built")
    made = Map(photos=write_photos(folder / "photos", range(PHOTOS)), place=folder / "map")
    made.run()
    return made


@pytest.fixture(scope="module")
def patched(built: Map, tmp_path_factory: pytest.TempPathFactory) -> Map:
    """The same after four backfills of three photos."""
    made = copied(built, tmp_path_factory.mktemp("patched"))
    for first in range(PHOTOS, PHOTOS + 12, 3):
        made.run(write_photos(made.photos, range(first, first + 3)), mode="backfill")
    return made


def copied(one: Map, folder: Path) -> Map:
    """A copy to change."""
    shutil.copytree(one.place, folder / "map")
    shutil.copytree(one.photos, folder / "photos")
    return Map(photos=folder / "photos", place=folder / "map")


@pytest.fixture
def city(built: Map, tmp_path: Path) -> Map:
    return copied(built, tmp_path)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The photos that the network sees, by number."""
    numbers: list[int] = []
    photo = NoiseEncoder.photo
    monkeypatch.setattr(NoiseEncoder, "photo", lambda self, number: numbers.append(number) or photo(self, number))
    return numbers


def test_a_backfill_of_one_percent_encodes_one_percent_and_rewrites_nothing(city: Map, seen: list[int]):
    before, old = city.objects(), city.head

    summary = city.run(write_photos(city.place.parent / "more", range(PHOTOS, PHOTOS + 3)), mode="backfill")

    after, new = city.objects(), city.head
    assert sorted(seen) == [300, 301, 302]
    assert (summary.photos, summary.encoded) == (303, 3)
    assert before.items() <= after.items()
    assert [entry for entry in new.segments if entry in old.segments] == old.segments
    assert [shard for shard in new.index.shards if shard in old.index.shards] == old.index.shards
    assert new.index.quantizer == old.index.quantizer
    (segment,) = [entry for entry in new.segments if entry not in old.segments]
    (shard,) = [each for each in new.index.shards if each not in old.index.shards]
    assert (segment.rows, shard.rows) == (3, 3)
    written = after.keys() - before.keys()
    assert {path.split("/")[0] for path in written} == {"segments", "receipts", "indexes", "manifests", "published"}
    assert len([path for path in written if path.startswith("indexes/")]) == 1
    assert {path.split("/")[1] for path in written if path.startswith("segments/")} == {segment.segment_id}
    assert verify(city.storage).problems == []


@pytest.mark.parametrize("mode", ["build", "backfill"])
def test_the_same_photos_again_encode_nothing_and_write_nothing(city: Map, seen: list[int], mode: Mode):
    before = {info.path: city.storage.get(info.path) for info in city.storage.list()}

    summary = city.run(mode=mode)

    after = {info.path: city.storage.get(info.path) for info in city.storage.list() if "rejects" not in info.path}
    assert (summary.published, summary.encoded, summary.merged, seen) == (False, 0, 0, [])
    assert after.items() <= before.items()


def test_a_changed_photo_is_encoded_again_and_no_other(city: Map, seen: list[int]):
    (city.photos / "0100.jpg").write_bytes((write_photos(city.place.parent / "new", range(500, 501)) / "0500.jpg").read_bytes())

    summary = city.run()

    assert (seen, summary.encoded, summary.dropped, summary.photos) == ([500], 1, 1, PHOTOS)
    assert city.run().published is False


def test_a_photo_of_the_same_size_with_other_bytes_is_a_changed_one(city: Map, seen: list[int]):
    path = city.photos / "0100.jpg"
    data = bytearray(path.read_bytes())
    data[data.index(b"JFIF\0") + 9] ^= 1  # the resolution for printers
    path.write_bytes(bytes(data))

    summary = city.run()

    assert (seen, summary.encoded, summary.dropped) == ([100], 1, 1)


def test_a_photo_that_vanished_stays_on_a_backfill_and_leaves_on_a_build(city: Map, seen: list[int]):
    (city.photos / "0100.jpg").unlink()
    before = city.objects()

    stayed = city.run(mode="backfill")
    left = city.run()

    assert (stayed.published, stayed.photos) == (False, PHOTOS)
    assert (left.published, left.photos, left.dropped, seen) == (True, PHOTOS - 1, 1, [])
    assert city.names() == {f"photos/{number:04d}.jpg" for number in range(PHOTOS)} - {"photos/0100.jpg"}
    written = city.objects().keys() - before.keys()
    assert {path.split("/")[0] for path in written} == {"manifests", "published"}  # not even its shard is made anew
    assert verify(city.storage).problems == []


def test_what_many_backfills_leave_is_merged_by_a_build_without_the_network_and_once(
    patched: Map, tmp_path: Path, seen: list[int]
):
    city = copied(patched, tmp_path)
    old, photos = city.head, city.names()
    assert len(old.segments) == 3 + 4
    assert len(old.index.shards) == 1 + 4

    with without_network():
        plan = plan_build(request(city), SETTINGS).plan
    summary = city.run()

    new = city.head
    assert (plan.segments_to_merge, plan.photos_to_copy, plan.photos_to_encode, plan.photos_dropped) == (4, 12, 0, 0)
    assert (seen, summary.merged, summary.encoded, summary.dropped) == ([], 4, 0, 0)
    assert (len(new.segments), len(new.index.shards), city.names()) == (4, 1, photos)
    assert new.index.quantizer == old.index.quantizer
    assert verify(city.storage).problems == []
    before = city.objects()
    assert city.run().published is False
    assert city.objects() == before


def test_a_run_killed_while_it_merges_comes_to_the_same_map(patched: Map, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    city, undisturbed = (copied(patched, tmp_path / name) for name in ("city", "undisturbed"))
    write_photos(city.photos, range(PHOTOS + 12, PHOTOS + 14))
    build_noise_map(str(undisturbed.place), city.photos)

    for module, step in ((compact, "finish_segment"), (build, "publish_version")):
        with monkeypatch.context() as dying:
            dying.setattr(module, step, killed)
            with pytest.raises(KeyboardInterrupt):
                city.run()
    city.run()

    assert [entry.masked_rows for entry in city.head.segments] == [[]] * 4
    assert city.head.content_id == undisturbed.head.content_id
    assert verify(city.storage).problems == []


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def request(city: Map) -> BuildRequest:
    return BuildRequest(recipe="tiny", map_url=str(city.place), photos=(str(city.photos),), partition=PARTITION)
