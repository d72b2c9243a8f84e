"""What a person sees of a run: log lines, a progress bar, and how long each stage took."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from threading import Lock
from types import MappingProxyType
from typing import Final, TypeVar

from tqdm import tqdm

SIGNED_REQUESTS: Final = ("aiobotocore", "botocore")
"""Loggers that at debug level write whole requests, with the access key and a signature made with the secret one."""

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_FIELDS: Final[ContextVar[Mapping[str, str]]] = ContextVar("log fields", default=MappingProxyType({}))
"""What the log records of this thread are about."""

T = TypeVar("T")

Watcher = Callable[[str, int, int], None]
"""Told how far a bar is: its description, what is done, and of how much. From any thread, after every photo: it must be quick."""

_WATCHER: Final[ContextVar[Watcher | None]] = ContextVar("watcher", default=None)


def configure_logging(level: str, style: str = "text") -> None:
    """Send log records of this process to stderr.

    Args:
        level: "debug", "info", "warning" or "error", and what is graver.
        style: "text", or "json": one object a line, with the fields of `log_fields`.
    """
    for name in SIGNED_REQUESTS:
        logging.getLogger(name).setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if style == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Say what the log records of this thread are about while the block runs, as `run_id` or `segment_id`."""
    token = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(token)


class _JsonLines(logging.Formatter):
    """Writes a record as one line of JSON, whatever stands in it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_FIELDS.get(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def progress(items: Iterable[T], *, total: int, unit: str, description: str) -> Iterator[T]:
    """Pass `items` on, with a bar on stderr while that is a terminal."""
    with progress_bar(total, unit=unit, description=description) as bar:
        for item in items:
            yield item
            bar.update()


class ProgressBar:
    """A bar on stderr while that is a terminal, and news for whoever watches; for any number of threads."""

    def __init__(self, total: int, *, unit: str, description: str) -> None:
        self._bar = tqdm(total=total, unit=unit, desc=description, file=sys.stderr, disable=not sys.stderr.isatty())
        self._total, self._description = total, description
        self._watcher = _WATCHER.get()  # here, as threads that work on have a context of their own
        self._done = 0
        self._lock = Lock()

    def update(self, count: int = 1) -> None:
        """Count what was done since."""
        self._bar.update(count)
        if self._watcher:
            with self._lock:
                self._done += count
                self._watcher(self._description, self._done, self._total)

    def say(self, what: str) -> None:
        """Put a word behind the bar, with its next step."""
        self._bar.set_postfix_str(what, refresh=False)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def progress_bar(total: int, *, unit: str, description: str) -> ProgressBar:
    """Make a bar for work that does not come as one loop: `with progress_bar(...) as bar: ... bar.update(n)`."""
    return ProgressBar(total, unit=unit, description=description)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of every bar that is made inside."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


class Stopwatch:
    """Adds up how long each stage of a run took, for its summary. For one thread."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside; a stage entered twice is added up, and one that fails counts too."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Give the seconds of each stage, in the order they were first entered."""
        return dict(self._seconds)


def in_time(seconds: float) -> str:
    """Say a time so that a person sees its size: 42 s, 17 min, 5.2 h, 3.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5_400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:.1f} days"
