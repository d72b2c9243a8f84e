"""Do calls one after another in a thread of its own, so that the caller goes on while something is written."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import ParamSpec, Self

P = ParamSpec("P")


class Behind:
    """Calls in their order, a bounded number of them under way. The first that fails ends it: its error comes with the next call,
    or at the end of the `with` block, and no later call is begun.

    Args:
        most: calls that may wait at once; another one makes the caller wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._failed = False
        self._waiting: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")

    def do(self, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have something done, after all that came before."""
        while self._waiting and (len(self._waiting) >= self._most or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._done, partial(call, *args, **kwargs)))

    def __enter__(self) -> Self:
        return self

    def _done(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except BaseException:
            self._failed = True
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
