"""How many threads the numerical libraries of this process use, and work that threads do ahead.

`use_threads` is called by whoever owns a process, never on import.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fol_model import inference
from pipelines import ivfpq

A = TypeVar("A")
B = TypeVar("B")


def use_threads(count: int) -> None:
    """Set torch and FAISS to `count` threads each."""
    inference.use_threads(count)
    ivfpq.use_threads(count)


def ahead(threads: ThreadPoolExecutor, work: Callable[[A], B], items: Iterable[A], count: int) -> Iterator[B]:
    """Do the work for every item, at most `count` items ahead of who takes what comes of it, in the order of the items."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(threads.submit(work, item))
        if len(waiting) >= count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
