"""Readers that ask without a pause while versions are published under them and old ones purged at once."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event, Thread

import pytest

from infra import arrays
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.query import opened_map
from pipelines.query.worker import QueryWorker
from schemas.manifest import Manifest
from tests.faults.profile import record, rounds
from tests.pipelines.query.test_worker import photo, publish_photos, purge, said, worker_on


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "map"), Settings(threads=1))


class Asking:
    """Threads that ask one worker without a pause, and what they were told: (photo, version, answer)."""

    def __init__(self, worker: QueryWorker, photos: int) -> None:
        self.told: list[tuple[int, int, list[tuple[str, float, int | None]]]] = []
        self._worker = worker
        self._photos = photos
        self._stop = Event()
        self._pool = ThreadPoolExecutor(4)
        self._running = [self._pool.submit(self._ask, start) for start in range(4)]

    @property
    def well(self) -> bool:
        """Whether none of them has met an error."""
        return not any(one.done() for one in self._running)

    def stop(self) -> None:
        """End them; raises what any of them met."""
        self._stop.set()
        for one in self._running:
            one.result()
        self._pool.shutdown()

    def _ask(self, start: int) -> None:
        for turn in count(start):
            if self._stop.is_set():
                return
            number = turn % self._photos
            answer = self._worker.answer_encoded(photo(number))
            self.told.append((number, answer.map.manifest.version, said(answer)))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("told_to_move", [True, False])
def test_while_versions_come_and_go_no_request_fails_and_each_answer_is_of_one_version(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, told_to_move: bool
):
    """Each version has one photo of the one before, so a mixed answer would be no version's; each is purged at once."""
    monkeypatch.setattr(opened_map, "CACHE_BYTES", 1)  # else a worker that knows all photos needs no object any more
    monkeypatch.setattr(arrays, "SHARD_BYTES", 1 << 16)
    started, versions, photos = time.monotonic(), rounds(quick=4, full=50), 4
    current = publish_photos(storage, *range(photos))
    worker = worker_on(storage, current)
    expected = {1: _answers(storage, current, photos)}
    asking = Asking(worker, photos)
    refreshing = _again_and_again(worker.refresh) if told_to_move else None
    try:
        for first in range(1, versions):
            before, current = current, publish_photos(storage, *(3 * first + place for place in range(photos)))
            expected[current.version] = _answers(storage, current, photos)
            seen = len(asking.told)
            while len(asking.told) < seen + 8 and asking.well:
                time.sleep(0.001)
            purge(storage, before)
    finally:
        if refreshing:
            refreshing()
        asking.stop()

    wrong = [one for one in asking.told if expected[one[1]][one[0]] != one[2]]
    record(
        "versions published and purged under four asking threads",
        rounds=versions,
        failures=len(wrong),
        seconds=time.monotonic() - started,
        note=f"{len(asking.told):,} answers, none refused, {'refreshed all the time' if told_to_move else 'never refreshed'}",
    )
    assert wrong == []
    assert {version for _, version, _ in asking.told} >= {1, versions}


def _answers(storage: Storage, manifest: Manifest, photos: int) -> list[list[tuple[str, float, int | None]]]:
    worker = worker_on(storage, manifest)
    return [said(worker.answer_encoded(photo(number))) for number in range(photos)]


def _again_and_again(do: Callable[[], object]) -> Callable[[], None]:
    """Do something without a pause, until the function that this returns is called."""
    stop = Event()

    def loop() -> None:
        while not stop.is_set():
            do()

    thread = Thread(target=loop)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return end
