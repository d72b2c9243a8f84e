"""A process that writes geotags into files, or takes them back, and dies at a given moment; for `test_writing_kills`.

Its calls of the system that make, sync, rename and remove files are counted; it kills itself with SIGKILL right before the one it
is told, right after it, or some time later, wherever it then is. Forked from a server, as in `victim`.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer
from typing import Any, Final

from infra.settings import Settings
from pipelines.geotag.writing.undo import undo
from pipelines.geotag.writing.write import WriteRequest, run_writing

CALLS: Final = ("open", "fsync", "utime", "replace", "unlink", "mkdir")

_FORKED: Final = get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["tests.faults.victim", "s3fs", "tests.faults.writing_victim"]
)  # the server is also that of `victim`


@dataclass(frozen=True, kw_only=True)
class WritingDeath:
    """When a victim dies."""

    call: int
    """Number of the call, from 0."""
    after_s: float | None
    """This long after the call began; 0: right after it; None: right before it."""


def calls_of(job: WriteRequest | Path) -> int:
    """Do a job and count its calls: a request is written, the folder of a run undone."""
    done, result = _FORKED.Pipe(duplex=False)
    child = _FORKED.Process(target=_live, args=(job, result))
    child.start()
    result.close()
    counted: int = done.recv()
    child.join()
    assert child.exitcode == 0
    return counted


def die_writing(job: WriteRequest | Path, death: WritingDeath) -> bool:
    """Do a job until death; True if it came before the job was done."""
    child = _FORKED.Process(target=_work, args=(job, count(), death))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"{job}: exit code {child.exitcode}"
    return child.exitcode == -signal.SIGKILL


def _live(job: WriteRequest | Path, result: Connection) -> None:
    numbers = count()
    _work(job, numbers, None)
    result.send(next(numbers))


def _work(job: WriteRequest | Path, numbers: Iterator[int], death: WritingDeath | None) -> None:
    for name in CALLS:
        setattr(os, name, _fatal(getattr(os, name), numbers, death))
    if isinstance(job, Path):
        undo(job)
    else:
        run_writing(job, Settings(threads=1))


def _fatal(call: Callable[..., Any], numbers: Iterator[int], death: WritingDeath | None) -> Callable[..., Any]:
    def numbered(*args: Any, **kwargs: Any) -> Any:
        number = next(numbers)
        if death is None or number != death.call:
            return call(*args, **kwargs)
        if death.after_s is None:
            _kill()
        elif death.after_s:
            timer = Timer(death.after_s, _kill)
            timer.daemon = True
            timer.start()
            return call(*args, **kwargs)
        try:
            return call(*args, **kwargs)
        finally:
            _kill()

    return numbered


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
