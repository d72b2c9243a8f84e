"""Run a list of tasks, in this process or on Ray: the same plain function either way.

A task is small and can be sent to another machine; a worker holds what is costly to load (a network, a decoder) and does one
task at a time. A worker may die: what it finished is in the store with a receipt, so its task is given to another. Whether the
task killed it, its neighbours did or the machine was taken away cannot be told, so a task whose workers died three times is kept
for the end, when all others are done, and tried alone: what kills three workers there too is set aside. An error that the task
itself raises stops the run: it would meet the next task too (a full disk, say).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from infra.metrics import METRICS, SEGMENT_RETRIES
from schemas.errors import FolioError, WorkError

ATTEMPTS: Final = 3
"""How often a task is given out among others, and how often then alone, before it is set aside."""

IN_FLIGHT: Final = 2
"""Tasks an actor holds at once: one that runs, one that waits, so that it never idles."""

TaskT = TypeVar("TaskT", contravariant=True)
ResultT = TypeVar("ResultT", covariant=True)
LOOK_S: Final = 1.0
"""How often it is looked whether there is room for more actors, and whether a lost one is back."""

PATIENCE_S: Final = 600.0
"""How long a run waits while no actor at all is there: a cluster may be bringing machines up."""

T = TypeVar("T")
R = TypeVar("R")


class Worker(Protocol[TaskT, ResultT]):
    """What does one task at a time."""

    def run(self, task: TaskT, on_photo: Callable[[], None]) -> ResultT:
        """Do a task, calling `on_photo` after each photo; whatever `on_photo` raises must pass through."""

    def close(self) -> None:
        """Let go of processes and files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome(Generic[T, R]):
    """What became of a task."""

    task: T
    result: R | None
    """None: its workers died each time, also when it was tried alone, and it was set aside."""


class _Stopped(BaseException):
    """Another task failed or the user pressed Ctrl-C: leave the photo loop."""


def run_here(
    tasks: Sequence[T], make_worker: Callable[[], Worker[T, R]], *, threads: int, on_photo: Callable[[], None]
) -> Iterator[Outcome[T, R]]:
    """Do all tasks in threads of this process; yields outcomes as they come.

    Args:
        tasks: in the order they are started.
        make_worker: called once in each thread.
        threads: tasks at once.
        on_photo: called after each photo, from any thread.
    """
    stop = threading.Event()
    local = threading.local()
    workers: list[Worker[T, R]] = []

    def tick() -> None:
        if stop.is_set():
            raise _Stopped
        on_photo()

    def work(task: T) -> R:
        if not hasattr(local, "worker"):
            local.worker = make_worker()
            workers.append(local.worker)
        worker: Worker[T, R] = local.worker
        return worker.run(task, tick)

    with ThreadPoolExecutor(threads, thread_name_prefix="folio") as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        try:
            while futures:
                done, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in done:
                    yield Outcome(task=futures.pop(future), result=future.result())
        finally:
            stop.set()
            for future in futures:
                future.cancel()
            wait(futures)
            for worker in workers:
                worker.close()


def run_on_ray(
    tasks: Sequence[T], start_actor: Callable[[], Any], wanted: Callable[[int], int], *, on_task: Callable[[T], None]
) -> Iterator[Outcome[T, Any]]:
    """Do all tasks on Ray actors; yields outcomes as they come.

    Machines may join and leave meanwhile: actors are added as there is room, and one whose machine is gone, or that is coming
    back from a crash, holds no task until it says that it is there. A crash counts against the task that was given out first,
    which was running or being written, not against the one behind it; after `ATTEMPTS` of them a task waits until nothing else
    is left, and is then tried alone.

    Args:
        tasks: in the order they are started.
        start_actor: gives the handle of a new actor with a method `run(task)`, made with `max_restarts=-1, max_task_retries=0`:
            Ray brings a dead actor back, this loop gives its tasks out again.
        wanted: how many actors are worth having now for so many tasks. Asked again and again.
        on_task: called after each finished task.

    Raises:
        WorkError: an actor cannot be made, or none was there for `PATIENCE_S`. What is finished is kept.
    """
    waiting = deque((task, 0) for task in tasks)
    suspects: deque[tuple[T, int]] = deque()
    hands: list[_Hand[T]] = []
    heard = time.monotonic()
    while unfinished := len(waiting) + len(suspects) + sum(len(hand.given) for hand in hands):
        hands += [_Hand(start_actor()) for _ in range(wanted(unfinished) - len(hands))]
        _give_out(waiting, suspects, hands)
        refs = {ref: hand for hand in hands for ref in hand.refs()}
        for ref in _came(list(refs)):
            outcome = _taken(ref, refs[ref], waiting, suspects, unfinished)
            if outcome is not None:
                on_task(outcome.task)
                yield outcome
        if any(hand.is_there for hand in hands):
            heard = time.monotonic()
        elif time.monotonic() - heard > PATIENCE_S:
            raise WorkError(f"Ray: no worker was there for {PATIENCE_S:g} s. {_LEFT.format(unfinished)}")


_LEFT: Final = "{:,} tasks were not done; what is finished is kept. See `ray status`, then run the same command again."


class _Hand(Generic[T]):
    """An actor and the tasks that it holds, in the order it does them, each with the number of workers that died of it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._look_at = 0.0
        self.given: dict[Any, tuple[T, int]] = {}
        self.is_there = False
        self.sign: Any = None
        """What it answers once it is there."""

    def give(self, task: T, deaths: int) -> None:
        self.given[self._actor.run.remote(task)] = task, deaths

    def refs(self) -> list[Any]:
        """What may come from it; asks it for a sign where that is due."""
        if not (self.is_there or self.sign or self.given) and time.monotonic() >= self._look_at:
            self.sign = self._actor.__ray_ready__.remote()
        return [*self.given, *([self.sign] if self.sign else [])]

    def lose(self) -> None:
        """Hand it nothing until it is back, and count its death against the first of its tasks, which was running.

        It is not asked at once whether it is back: one that is being brought back says no without waiting.
        """
        if self.is_there and self.given:
            first, (task, deaths) = next(iter(self.given.items()))
            self.given[first] = task, deaths + 1
            METRICS.add(SEGMENT_RETRIES)
        self.is_there, self.sign, self._look_at = False, None, time.monotonic() + LOOK_S


def _came(refs: list[Any]) -> list[Any]:
    """Wait a moment for an answer, and give all that are there in the order of `refs`.

    All, and in the order in which they were asked for: else a task that was done could be taken for the one that was running when
    its worker died.
    """
    import ray  # here, because a build without Ray should not wait for it

    if not refs:
        time.sleep(LOOK_S)
        return []
    ray.wait(refs, num_returns=1, timeout=LOOK_S)
    came: list[Any] = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
    return came


def _taken(
    ref: Any, hand: "_Hand[T]", waiting: deque[tuple[T, int]], suspects: deque[tuple[T, int]], unfinished: int
) -> Outcome[T, Any] | None:
    """Take what came of an actor, and put its task back to those that wait if it died.

    Returns:
        What became of a task; None: it was a sign that the actor is there, or its death, of which nothing has become yet.

    Raises:
        WorkError: the actor cannot be made.
        Exception: what the task itself raised; a `FolioError` as it was raised there.
    """
    import ray  # here, as above
    from ray.exceptions import RayActorError, RayTaskError

    try:
        result = ray.get(ref)
    except RayActorError as error:  # it died or cannot be reached; ActorUnavailableError is one of these
        if error.actor_init_failed:
            raise WorkError(f"Ray: a worker cannot start: {error}. {_LEFT.format(unfinished)}") from error
        hand.lose()
        if ref not in hand.given:
            return None
        task, deaths = hand.given.pop(ref)
        if deaths >= 2 * ATTEMPTS:
            return Outcome(task=task, result=None)
        (waiting if deaths < ATTEMPTS else suspects).append((task, deaths))
        return None
    except RayTaskError as error:
        if isinstance(error.cause, FolioError):
            raise error.cause from error  # without the worker's traceback in its message
        raise
    if ref not in hand.given:
        hand.is_there, hand.sign = True, None
        return None
    task, _ = hand.given.pop(ref)
    return Outcome(task=task, result=result)


def _give_out(waiting: deque[tuple[T, int]], suspects: deque[tuple[T, int]], hands: Sequence[_Hand[T]]) -> None:
    """Hand out what waits: one task each, then one each to wait. A suspect is handed out when nothing else is left, alone."""
    there = [hand for hand in hands if hand.is_there]
    for held in range(IN_FLIGHT):
        for hand in there:
            if waiting and len(hand.given) == held:
                hand.give(*waiting.popleft())
    if there and suspects and not any(hand.given for hand in hands):
        there[0].give(*suspects.popleft())
