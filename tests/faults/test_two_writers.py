"""Two writers of one map at once: both get what they asked for, or one is told clearly that it cannot and nothing of it shows.

Real runs in two threads, on disk and on S3, let go at the same moment from the same version; and in two processes, as they come.
A map of noise: everything is real but the network.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier as ProcessBarrier
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from infra.commits import list_versions, read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build import build
from pipelines.build.build import run_build
from pipelines.build.masking import read_photos
from pipelines.build.membership import live_rows
from pipelines.build.request import BuildRequest, BuildSummary, Mode
from pipelines.engine.partition import PartitionConfig
from pipelines.maintain.takedown import TakedownRequest, takedown
from pipelines.maintain.verify import verify
from pipelines.maintain.verify_deleted import verify_deleted
from schemas.errors import CommitConflict
from tests.faults.noise_map import NoiseEncoder, without_network, write_photos
from tests.faults.profile import record, rounds

PIECES = PartitionConfig(min_photos=4, pieces=3)
Outcome = BuildSummary | CommitConflict | None

_FORKED = get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.faults.test_two_writers"])


@dataclass(frozen=True, kw_only=True)
class Map:
    """A map that two writers write, and folders of photos to write into it."""

    url: str
    photos: Path
    endpoint: str | None = None

    @property
    def settings(self) -> Settings:
        return Settings(threads=1, s3_endpoint_url=self.endpoint)

    @cached_property
    def storage(self) -> Storage:
        return open_storage(self.url, self.settings)

    def run(self, *folders: str, mode: Mode = "build") -> Outcome:
        """Build or backfill from some of the folders `old`, `new` and `other`."""
        sources = tuple(str(self.photos / folder) for folder in folders)
        request = BuildRequest(recipe="tiny", map_url=self.url, photos=sources, mode=mode, partition=PIECES)
        try:
            return run_build(request, self.settings)
        except CommitConflict as error:
            return error

    def uris(self) -> list[str]:
        """The live photos; each stands as often as it is in the map."""
        head = read_head(self.storage)
        tables = read_photos(self.storage, head.segments, ["uri"])
        live = [table.filter(live_rows(entry)) for entry, table in zip(head.segments, tables, strict=True)]
        return sorted(uri for table in live for uri in table["uri"].to_pylist())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in `old`, four in `new`, five in `other`."""
    folder = tmp_path_factory.mktemp("photos")
    for name, numbers in (("old", range(6)), ("new", range(6, 10)), ("other", range(10, 15))):
        write_photos(folder / name, numbers)
    return folder


@pytest.fixture(scope="module", autouse=True)
def noise() -> Iterator[None]:
    with without_network():
        yield


@pytest.fixture(scope="module")
def old_map(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Map:
    """A map of the photos in `old`."""
    made = Map(url=str(tmp_path_factory.mktemp("maps") / "old"), photos=photos)
    made.run("old")
    return made


BOTH = ["disk", "s3"]
DISK_FIRST = ["disk", pytest.param("s3", marks=pytest.mark.slow)]
"""S3 too in `make test-faults`."""


@pytest.fixture
def new_map(request: pytest.FixtureRequest, old_map: Map, tmp_path: Path) -> Callable[[], Map]:
    """Make a copy of the map of the photos in `old`, on disk or on S3."""
    endpoint = request.getfixturevalue("s3_endpoint") if request.param == "s3" else None

    def make() -> Map:
        name = uuid4().hex[:8]
        made = replace(old_map, url=f"s3://maps/two-{name}" if endpoint else str(tmp_path / name), endpoint=endpoint)
        for info in old_map.storage.list():
            made.storage.put(info.path, old_map.storage.get(info.path))
        return made

    return make


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Outcome]]:
    """Run writers in threads. Two builds wait for one another once both know what they start from."""

    def run(*writers: Callable[[], Outcome], beside: Callable[[], None] = lambda: None) -> list[Outcome]:
        barrier, encode = Barrier(len(writers), action=Thread(target=beside).start, timeout=60), build.encode

        def in_step(*args: Any) -> Any:
            barrier.wait()
            return encode(*args)

        with monkeypatch.context() as patched, ThreadPoolExecutor(len(writers)) as pool:
            patched.setattr(build, "encode", in_step)
            return [future.result() for future in [pool.submit(writer) for writer in writers]]

    return run


def require(what: str, new_map: Callable[[], Map], promise: Callable[[Map], bool], *, note: str = "") -> None:
    """Try a promise on a few maps."""
    start, tried = time.perf_counter(), rounds(quick=1, full=20)
    kept = [promise(one) and verify(one.storage).problems == [] for one in (new_map() for _ in range(tried))]
    record(f"two writers: {what}", rounds=tried, failures=kept.count(False), seconds=time.perf_counter() - start, note=note)
    assert all(kept)


def photos_in(one: Map, *folders: str) -> list[str]:
    return sorted(f"{folder}/{photo.name}" for folder in folders for photo in (one.photos / folder).iterdir())


def succeeded(outcomes: Sequence[Outcome]) -> bool:
    return all(isinstance(each, BuildSummary) for each in outcomes)


@pytest.mark.parametrize("new_map", BOTH, indirect=True)
def test_two_backfills_both_get_their_photos_in(new_map: Callable[[], Map], together: Callable[..., list[Outcome]]):
    def promise(one: Map) -> bool:
        done = together(lambda: one.run("new", mode="backfill"), lambda: one.run("other", "new", mode="backfill"))
        return succeeded(done) and one.uris() == photos_in(one, "old", "new", "other")

    require("two backfills", new_map, promise)


@pytest.mark.parametrize("new_map", DISK_FIRST, indirect=True)
def test_a_build_and_a_backfill_both_get_their_photos_in(new_map: Callable[[], Map], together: Callable[..., list[Outcome]]):
    def promise(one: Map) -> bool:
        done = together(lambda: one.run("old", "new"), lambda: one.run("other", mode="backfill"))
        return succeeded(done) and one.uris() == photos_in(one, "old", "new", "other")

    require("a build and a backfill", new_map, promise)


@pytest.mark.parametrize("new_map", DISK_FIRST, indirect=True)
def test_two_builds_of_the_same_photos_make_one_version(new_map: Callable[[], Map], together: Callable[..., list[Outcome]]):
    def promise(one: Map) -> bool:
        done = together(lambda: one.run("old", "new"), lambda: one.run("old", "new"))
        return succeeded(done) and one.uris() == photos_in(one, "old", "new") and list_versions(one.storage) == [1, 2]

    require("two builds of the same photos", new_map, promise)


@pytest.mark.parametrize("new_map", BOTH, indirect=True)
def test_of_two_builds_of_other_photos_one_conflicts_and_loses_no_work(
    new_map: Callable[[], Map], together: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch
):
    asked = [("old", "new"), ("old", "other")]

    def promise(one: Map) -> bool:
        done = together(lambda: one.run(*asked[0]), lambda: one.run(*asked[1]))
        lost = [isinstance(each, CommitConflict) for each in done]
        if sorted(lost) != [False, True] or list_versions(one.storage) != [1, 2]:
            return False
        loser, winner = asked[lost.index(True)], asked[lost.index(False)]
        shown = one.uris() == photos_in(one, *winner)
        with monkeypatch.context() as counted:
            counted.setattr(NoiseEncoder, "encode_prepared", encodes_nothing)
            again = one.run(*loser)
        return shown and succeeded([again]) and one.uris() == photos_in(one, *loser)

    require("two builds of other photos", new_map, promise, note="one conflict each; the next run encodes nothing again")


@pytest.mark.parametrize("new_map", DISK_FIRST, indirect=True)
def test_a_photo_taken_down_during_a_build_stays_away(new_map: Callable[[], Map], together: Callable[..., list[Outcome]]):
    pauses_s = cycle(np.linspace(0, 1, 20))

    def promise(one: Map) -> bool:
        taken, pause_s = Event(), next(pauses_s)

        def beside() -> None:
            time.sleep(pause_s)
            takedown(one.storage, TakedownRequest(uris=frozenset({"old/0003.jpg"})))
            taken.set()

        done = together(lambda: one.run("old", "new"), beside=beside)
        left = [uri for uri in photos_in(one, "old", "new") if uri != "old/0003.jpg"]
        gone = taken.wait(60) and one.uris() == left
        purged = one.run("old", "new")
        return gone and succeeded([*done, purged]) and one.uris() == left and verify_deleted(one.storage).proved

    require("a build and a takedown", new_map, promise)


@pytest.mark.slow  # a minute of imports
def test_writers_in_processes_of_their_own_lose_and_double_nothing(photos: Path, tmp_path: Path):
    """Four at once on a map that is not there yet: three backfills and a build."""
    jobs: list[tuple[Mode, tuple[str, ...]]] = [
        ("backfill", ("old",)),
        ("backfill", ("new",)),
        ("backfill", ("new", "other")),
        ("build", ("old", "other")),
    ]

    def promise(one: Map) -> bool:
        barrier = _FORKED.Barrier(len(jobs))
        children = [_FORKED.Process(target=_write, args=(one, mode, folders, barrier)) for mode, folders in jobs]
        for child in children:
            child.start()
        for child in children:
            child.join()
        ended = [child.exitcode for child in children]
        return ended == [0] * 4 and one.uris() == photos_in(one, "old", "new", "other")

    note = "a new map, three backfills and a build"
    require("four processes", lambda: Map(url=str(tmp_path / uuid4().hex), photos=photos), promise, note=note)


def encodes_nothing(*_: object) -> None:
    raise AssertionError("a photo was encoded again")


def _write(one: Map, mode: Mode, folders: tuple[str, ...], barrier: ProcessBarrier) -> None:
    with without_network():
        barrier.wait(60)
        assert isinstance(one.run(*folders, mode=mode), BuildSummary)
