"""A process that does one job on a map and dies at a given moment, for `test_kills`.

It is forked from a server that has imported everything already, so a death costs a fraction of a second and not the start of a
Python with torch. Its operations on the store are counted; it kills itself with SIGKILL right before the one it is told, while
that is under way, or right after it.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer
from typing import Any, Final, Literal
from unittest.mock import patch

from infra.settings import Settings
from infra.storage import FsspecStorage, LocalStorage, Storage, open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest, Mode
from pipelines.maintain.gc import gc
from pipelines.maintain.takedown import TakedownRequest, takedown

OPERATIONS: Final = ("put", "put_if_absent", "delete", "get", "info")

DURING_S: Final = 0.001
"""A write to disk or to a gateway beside us takes longer."""

_FORKED: Final = get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.faults.victim", "s3fs"])


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a victim is to do, on the map at `map_url`."""

    action: str
    """build, backfill, takedown or gc."""
    photos: Path
    request: BuildRequest
    image_ids: frozenset[str] = frozenset()
    endpoint: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Credentials: the server that victims are forked from may have started before there were any."""

    @property
    def settings(self) -> Settings:
        return Settings(threads=1, s3_endpoint_url=self.endpoint)

    def on(self, map_url: str) -> "Job":
        """The same on another map."""
        return replace(self, request=replace(self.request, map_url=map_url))

    def run(self) -> None:
        """Do it. gc keeps nothing for its age alone."""
        storage = open_storage(self.request.map_url, self.settings)
        if self.action == "gc":
            gc(storage, older_than=timedelta(0), delete=True)
        elif self.action == "takedown":
            takedown(storage, TakedownRequest(image_ids=self.image_ids))
        else:
            mode: Mode = "backfill" if self.action == "backfill" else "build"
            run_build(replace(self.request, mode=mode, photos=(str(self.photos),)), self.settings)


@dataclass(frozen=True, kw_only=True)
class Death:
    """When a victim dies."""

    operation: int
    """Of its operations on the store, from 0."""
    moment: Literal["before", "during", "after"]
    """Right before it, while it is under way, or right after it."""


def end_leases(storage: Storage) -> None:
    """Do what a quarter of an hour does: nobody else is at work, so all leases are of the dead."""
    for info in storage.list("runs"):
        if "/lease" in info.path:
            storage.delete(info.path)


def operations_of(job: Job) -> int:
    """Do a job and count its operations on the store."""
    done, result = _FORKED.Pipe(duplex=False)
    child = _FORKED.Process(target=_live, args=(job, result))
    child.start()
    result.close()
    counted: int = done.recv()
    child.join()
    assert child.exitcode == 0
    return counted


def die_of(job: Job, death: Death) -> bool:
    """Do a job until death; True if it came before the job was done."""
    child = _FORKED.Process(target=_die, args=(job, death))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"{job.action}: exit code {child.exitcode}"
    return child.exitcode == -signal.SIGKILL


def _live(job: Job, result: Connection) -> None:
    numbers = count()
    os.environ.update(job.environment)
    with _watched(numbers, None):
        job.run()
    result.send(next(numbers))


def _die(job: Job, death: Death) -> None:
    os.environ.update(job.environment)
    with _watched(count(), death):
        job.run()


@contextmanager
def _watched(numbers: Iterator[int], death: Death | None) -> Iterator[None]:
    """Number the operations on every store, and kill this process at one of them."""
    with ExitStack() as stack:
        for kind in (LocalStorage, FsspecStorage):
            for name in OPERATIONS:
                stack.enter_context(patch.object(kind, name, _fatal(getattr(kind, name), numbers, death)))
        yield


def _fatal(operation: Callable[..., Any], numbers: Iterator[int], death: Death | None) -> Callable[..., Any]:
    def numbered(*args: Any, **kwargs: Any) -> Any:
        number = next(numbers)
        if death is None or number != death.operation:
            return operation(*args, **kwargs)
        if death.moment == "before":
            _kill()
        if death.moment == "during":
            Timer(DURING_S, _kill).start()
        try:
            return operation(*args, **kwargs)
        finally:
            _kill()

    return numbered


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
