"""Tasks in threads: all are done once; an error or Ctrl-C ends the run within a photo and closes all workers."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import count

import pytest

from pipelines.engine import run as engine_run
from pipelines.engine.run import Outcome, run_here
from schemas.errors import StorageError

PATIENCE_S = 5.0
"""Far longer than any of these tests should take, and far shorter than a task that nobody stops."""


class Photos:
    """A worker whose task is a number of photos: negative, a disk that fills up after so many; None, photos without end."""

    def __init__(self) -> None:
        self.closed = self.started = 0
        self.threads: set[int] = set()
        self.busy = threading.Lock()
        self.left = False

    def run(self, task: int | None, on_photo: Callable[[], None]) -> str:
        assert self.busy.acquire(blocking=False), "a worker does one task at a time"
        self.started += 1
        self.threads.add(threading.get_ident())
        try:
            for _ in count() if task is None else range(abs(task)):
                time.sleep(0.001)
                on_photo()
            if task is not None and task < 0:
                raise StorageError("disk full")
        except BaseException:
            self.left = True
            raise
        finally:
            self.busy.release()
        return f"did {task}"

    def close(self) -> None:
        assert not self.busy.locked(), "closed while it works"
        self.closed += 1


@pytest.fixture
def workers() -> list[Photos]:
    return []


@pytest.fixture
def make_worker(workers: list[Photos]) -> Callable[[], Photos]:
    def make() -> Photos:
        workers.append(Photos())
        return workers[-1]

    return make


@contextmanager
def in_good_time() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < PATIENCE_S


def nothing() -> None:
    """Count no photo."""


@pytest.mark.parametrize("threads", [1, 3])
def test_all_tasks_are_done_once_and_each_photo_is_counted(
    threads: int, workers: list[Photos], make_worker: Callable[[], Photos]
):
    ticks: list[int] = []

    outcomes = list(run_here([1, 2, 3, 4, 0], make_worker, threads=threads, on_photo=lambda: ticks.append(1)))

    assert sorted(outcomes, key=lambda outcome: outcome.task) == [Outcome(task=n, result=f"did {n}") for n in range(5)]
    assert len(ticks) == 10
    assert 1 <= len(workers) <= threads
    assert [worker.closed for worker in workers] == [1] * len(workers)
    assert all(len(worker.threads) == 1 for worker in workers)


def test_equal_tasks_are_two_tasks(make_worker: Callable[[], Photos]):
    assert len(list(run_here([1, 1], make_worker, threads=2, on_photo=nothing))) == 2


def test_no_tasks_need_no_worker(workers: list[Photos], make_worker: Callable[[], Photos]):
    assert list(run_here([], make_worker, threads=2, on_photo=nothing)) == []
    assert workers == []


def test_outcomes_come_as_they_are_done_not_in_the_order_of_the_tasks(make_worker: Callable[[], Photos]):
    outcomes = run_here([None, 1], make_worker, threads=2, on_photo=nothing)

    assert next(outcomes).task == 1
    with in_good_time():
        outcomes.close()  # the other one would never end


def test_an_error_in_one_task_stops_the_others_at_their_next_photo_and_is_raised(
    workers: list[Photos], make_worker: Callable[[], Photos]
):
    with in_good_time(), pytest.raises(StorageError, match="disk full"):
        list(run_here([None, -3, 1, 1, 1], make_worker, threads=2, on_photo=nothing))

    assert [(worker.closed, worker.left) for worker in workers] == [(1, True)] * 2


def test_after_an_error_the_waiting_tasks_are_not_started(workers: list[Photos], make_worker: Callable[[], Photos]):
    """One thread: the second task holds it until the run is stopped; a task or two may slip in before the rest is off."""
    with in_good_time(), pytest.raises(StorageError):
        list(run_here([-2, None, *[5] * 200], make_worker, threads=1, on_photo=nothing))

    assert workers[0].started < 50


def test_a_worker_that_cannot_be_made_ends_the_run():
    def make() -> Photos:
        raise StorageError("no network weights")

    with pytest.raises(StorageError, match="no network weights"):
        list(run_here([1, 2], make, threads=2, on_photo=nothing))


def test_ctrl_c_stops_the_photo_loops_closes_the_workers_and_goes_on_up(
    workers: list[Photos], make_worker: Callable[[], Photos], monkeypatch: pytest.MonkeyPatch
):
    """The main thread sits in `wait` when the signal comes; the tasks would never end by themselves."""
    interrupts = iter([KeyboardInterrupt])

    def interrupted(futures: object, **options: str) -> object:
        for interrupt in interrupts:
            while len(workers) < 2:  # both endless tasks have begun
                time.sleep(0.001)
            raise interrupt
        return wait(futures, **options)

    monkeypatch.setattr(engine_run, "wait", interrupted)

    with in_good_time(), pytest.raises(KeyboardInterrupt):
        list(run_here([None, None, 1], make_worker, threads=2, on_photo=nothing))

    assert [(worker.closed, worker.left) for worker in workers] == [(1, True)] * 2


def test_an_interrupt_in_the_progress_bar_ends_the_run_too(workers: list[Photos], make_worker: Callable[[], Photos]):
    """Python may deliver Ctrl-C while the caller handles an outcome."""
    outcomes = run_here([1, None, None], make_worker, threads=2, on_photo=nothing)

    next(outcomes)

    with in_good_time(), pytest.raises(KeyboardInterrupt):
        outcomes.throw(KeyboardInterrupt)

    assert all(worker.closed == 1 for worker in workers)


def test_two_runs_at_once_do_not_share_workers():
    def run(_: int) -> set[Photos]:
        made: list[Photos] = []

        def make() -> Photos:
            made.append(Photos())
            return made[-1]

        list(run_here([2] * 6, make, threads=2, on_photo=nothing))
        assert all(worker.closed == 1 for worker in made)
        return set(made)

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(run, range(2))

    assert not one & two
