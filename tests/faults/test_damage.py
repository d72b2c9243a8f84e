"""Every byte is checked: no flipped bit, cut or lost object of any kind is ever answered from, and verify names each.

A real map but for its network (`noise_map`): built, added to, a photo taken down, a version tagged and one retired.
"""

import re
import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import numpy as np
import pytest

from fol_model.config import PoolConfig, RerankConfig
from infra.commits import create_tag, list_tags, manifest_path, read_head, read_version, retire, tag_path
from infra.leases import HeldLease
from infra.storage import Storage, open_storage
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.verify import verify
from pipelines.maintain.versions import rollback
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import QueryWorker
from schemas.errors import DamagedError, MapError, MapMissing
from schemas.manifest import Lease
from tests.faults.noise_map import SETTINGS, NoiseEncoder, build_noise_map, write_photos
from tests.faults.profile import record, rounds

PHOTOS: Final = 330
KINDS: Final = {
    "manifest": r"manifests/.*",
    "mark of publication": r"published/.*",
    "receipt": r"receipts/.*",
    "images": r"segments/.*/images\.parquet",
    "descriptors": r"segments/.*/descriptors\.parquet",
    "rejects of a segment": r"segments/.*/rejects\.parquet",
    "metadata of arrays": r"segments/.*/zarr\.json",
    "descriptor codes": r"segments/.*/descriptor_codes\.zarr/c/.*",
    "local features": r"segments/.*/local_features\.zarr/c/.*",
    "quantizer": r"indexes/.*/quantizer\.faiss",
    "shard": r"indexes/.*/shard-.*",
    "tombstones": r"tombstones/.*",
    "tag": r"tags/.*",
    "mark of retirement": r"retired/.*",
    "lease": r"runs/.*/lease.*",
    "plan": r"runs/.*/plan\.json",
    "progress": r"runs/.*/progress\.json",
    "receipt of an index": r"runs/.*/index-.*\.json",
    "rejects of a run": r"runs/.*/rejects\.parquet",
}
"""Every kind of object in a map, by path."""

STAND_ALONE: Final = (
    "mark of publication",
    "tag",
    "mark of retirement",
    "lease",
    "plan",
    "progress",
    "receipt of an index",
    "rejects of a run",
)
"""Kinds that nothing names: they say something by being there, and nothing is missed when they are not."""

EVERYTHING: Final = RerankConfig(pool=PoolConfig(max_size=PHOTOS, fixed_size=24))
"""Reads the descriptor of every photo for every answer, and the local features of photos all over the map."""

Answer = list[tuple[object, ...]]
Damage = Callable[[bytes, np.random.Generator], bytes]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    folder = tmp_path_factory.mktemp("photos")
    storage = open_storage(f"memory://{uuid4().hex}", SETTINGS)
    build_noise_map(storage.url, write_photos(folder / "first", range(PHOTOS - 30)))
    build_noise_map(storage.url, write_photos(folder / "second", range(PHOTOS - 30, PHOTOS)), mode="backfill")
    takedown(storage, TakedownRequest(uris=frozenset({"first/0007.jpg"})))
    create_tag(storage, "good", 3)
    retire(storage, [1], reason="gc")
    HeldLease(storage, Lease(run_id="killed", action="build")).renew()
    return storage


class WithoutFeaturesError(Exception):
    """An answer says that it did without some local features."""


def answers(storage: Storage) -> list[Answer]:
    """Open the map by its tag, as a user does, and ask for two photos of the newest segment and of another."""
    manifest = read_version(storage, "good")
    worker = QueryWorker(storage, OpenedMap(storage, manifest), NoiseEncoder(), EVERYTHING, follows=False)
    found = [worker.answer_encoded(NoiseEncoder().photo(number)) for number in (0, PHOTOS - 1)]
    if any(answer.without_features for answer in found):
        raise WithoutFeaturesError
    return [
        [(one.photo.segment_id, one.photo.row, one.cosine, one.matches, one.score) for one in answer.candidates]
        for answer in found
    ]


def objects(storage: Storage) -> dict[str, list[str]]:
    """Every object by kind; a map has at least one of each and none of another."""
    paths = [info.path for info in storage.list()]
    found = {kind: [path for path in paths if re.fullmatch(pattern, path)] for kind, pattern in KINDS.items()}
    assert all(found.values())
    assert sorted(path for group in found.values() for path in group) == paths
    return found


def flip(data: bytes, random: np.random.Generator) -> bytes:
    bit = int(random.integers(8 * len(data)))
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: int(random.integers(len(data)))]


def what_goes_unnoticed(storage: Storage, path: str, damaged: bytes | None, undamaged: list[Answer]) -> list[str]:
    """Say which promise does not hold while an object is damaged or, for None, gone; puts it back."""
    data = storage.get(path)
    if damaged is None:
        storage.delete(path)
    else:
        storage.put(path, damaged)
    broken = []
    try:
        if answers(storage) != undamaged:
            broken.append(f"{path}: another answer")
    except WithoutFeaturesError:
        if "/local_features.zarr/c/" not in path:
            broken.append(f"{path}: local features were given up")
    except MapMissing:  # there is a tag, and no such version
        assert path.startswith("manifests/")
    except MapError as error:
        if path not in str(error):
            broken.append(f"{path}: not named in {error}")
    named = [problem.path for problem in verify(storage).problems]
    if named != [path]:
        broken.append(f"{path}: verify named {named}")
    storage.put(path, data)
    return broken


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("what", "damage", "count"),
    [("flipped bits", flip, rounds(quick=32, full=1000)), ("truncations", cut, rounds(quick=16, full=200))],
    ids=["flips", "truncations"],
)
def test_no_answer_is_ever_given_from_a_damaged_object_and_verify_names_it(
    storage: Storage, what: str, damage: Damage, count: int
):
    """Each round damages one object, of each kind in turn, and asks a map opened afresh."""
    start, random, undamaged, kinds = time.monotonic(), np.random.default_rng(20_261), answers(storage), objects(storage)
    broken: list[str] = []
    for number in range(count):
        paths = list(kinds.values())[number % len(kinds)]
        path = paths[int(random.integers(len(paths)))]
        broken += what_goes_unnoticed(storage, path, damage(storage.get(path), random), undamaged)

    seconds, note = time.monotonic() - start, f"{len(kinds)} kinds of objects"
    record(what, rounds=count, failures=len(broken), seconds=seconds, note=note)
    assert broken == []
    assert answers(storage) == undamaged
    assert verify(storage).problems == []


def test_an_object_of_every_kind_that_is_gone_is_missed_by_name(storage: Storage):
    start, undamaged = time.monotonic(), answers(storage)
    kinds = {kind: paths for kind, paths in objects(storage).items() if kind not in STAND_ALONE}
    broken = [line for paths in kinds.values() for line in what_goes_unnoticed(storage, paths[-1], None, undamaged)]

    record("deleted objects", rounds=len(kinds), failures=len(broken), seconds=time.monotonic() - start, note="one of each kind")
    assert broken == []


def test_a_newest_version_that_is_gone_is_missed_by_everyone_and_its_number_never_used_again(storage: Storage):
    """Else the one before would be shown, with the photo that was taken down since."""
    place = open_storage(f"memory://{uuid4().hex}", SETTINGS)
    for info in storage.list():
        place.put(info.path, storage.get(info.path))
    for name in list_tags(place):
        place.delete(tag_path(name))
    lost, before = manifest_path(3), sorted(info.path for info in place.list())
    place.delete(lost)

    tries: list[Callable[[], object]] = [
        lambda: read_head(place),
        lambda: takedown(place, TakedownRequest(uris=frozenset({"first/0008.jpg"}))),
        lambda: rollback(place, 2),
    ]
    for attempt in tries:
        with pytest.raises(DamagedError, match=rf"{lost}: found nothing.*Put it back"):
            attempt()
    problems = verify(place).problems
    place.put(lost, storage.get(lost))

    assert [(problem.path, problem.problem) for problem in problems] == [(lost, "missing")]
    assert sorted(info.path for info in place.list()) == before
    assert read_head(place) == read_version(storage, 3)


@pytest.mark.parametrize("kind", STAND_ALONE)
def test_an_object_that_stands_for_itself_can_be_gone_and_nothing_is_damaged(storage: Storage, kind: str):
    path = objects(storage)[kind][-1]
    data = storage.get(path)
    storage.delete(path)

    problems = verify(storage).problems

    storage.put(path, data)
    assert problems == []


def test_the_map_of_this_suite_has_several_parts_of_everything(storage: Storage):
    """So that a part that is not looked at could hide damage."""
    kinds = objects(storage)

    assert len(kinds["manifest"]) == 3
    assert len(kinds["receipt"]) >= 4
    assert len(kinds["shard"]) == 2
    assert len(kinds["local features"]) >= 2 * 4  # shards of each, segments
    assert len(answers(storage)[0]) == PHOTOS - 1  # one was taken down
