"""Run a list of tasks, in this process or on Ray: the same plain function either way.

A task is small and can be sent to another machine; a worker holds what is costly to load (a network, a decoder) and does one
task at a time. A worker may die: what it finished is in the store with a receipt, so its task is given to another, three times
at most. An error that the task itself raises stops the run: it would meet the next task too (a full disk, say).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from infra.metrics import METRICS, SEGMENT_RETRIES
from schemas.errors import FolioError

ATTEMPTS: Final = 3
"""How often a task is given out before it is set aside."""

IN_FLIGHT: Final = 2
"""Tasks an actor holds at once: one that runs, one that waits, so that it never idles."""

TaskT = TypeVar("TaskT", contravariant=True)
ResultT = TypeVar("ResultT", covariant=True)
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
    """None: its workers died `ATTEMPTS` times and it was set aside."""


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


def run_on_ray(tasks: Sequence[T], actors: Sequence[Any], *, on_task: Callable[[T], None]) -> Iterator[Outcome[T, Any]]:
    """Do all tasks on Ray actors; yields outcomes as they come.

    Args:
        tasks: in the order they are started.
        actors: handles with a method `run(task)`, made with `max_restarts=-1, max_task_retries=0`: Ray brings a dead actor back,
            this loop gives its tasks out again.
        on_task: called after each finished task.
    """
    import ray  # here, because a build without Ray should not wait for it
    from ray.exceptions import RayActorError, RayTaskError

    waiting = deque((task, 1) for task in tasks)
    running: dict[Any, tuple[T, int, Any]] = {}

    def give_out(actor: Any) -> None:
        if waiting:
            task, attempt = waiting.popleft()
            running[actor.run.remote(task)] = (task, attempt, actor)

    for actor in list(actors) * IN_FLIGHT:
        give_out(actor)
    while running:
        (ref,), _ = ray.wait(list(running), num_returns=1)
        task, attempt, actor = running.pop(ref)
        try:
            outcome = Outcome(task=task, result=ray.get(ref))
        except RayActorError:  # the actor died or cannot be reached; ActorUnavailableError is one of these
            if attempt < ATTEMPTS:
                METRICS.add(SEGMENT_RETRIES)
                waiting.append((task, attempt + 1))
                give_out(actor)
                continue
            outcome = Outcome(task=task, result=None)
        except RayTaskError as error:
            if isinstance(error.cause, FolioError):
                raise error.cause from error  # without the worker's traceback in its message
            raise
        give_out(actor)
        on_task(task)
        yield outcome
