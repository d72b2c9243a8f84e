"""Fetch, check and decode listed photos ahead of whoever works on them, so that a network never waits for a disk or a decoder.

    rows ▶ fetch (threads) ▶ decode (child processes) ▶ prepare ▶ taken in order

Photos come in the order of the table, whatever finishes first. What waits to be taken is bounded in number and, as listed, in
bytes. Used by `pipelines.build` and `pipelines.query`; the photos of one worker pass through one loader, or those of workers that
take turns.
"""

import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from fol_model.inference import Encoder, PreparedPhoto, use_threads
from infra.settings import Settings
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader
from schemas.errors import PhotoError

FETCHERS: Final = 4
"""Photos that are fetched at once: on S3 their waiting adds up otherwise."""

BYTES_AHEAD: Final = 64 << 20
"""Of files that wait to be decoded, and no more than one file beyond."""

AHEAD: Final = 6
"""Photos that are under way or wait beyond two batches of the network."""

DECODERS_BESIDE_CPU: Final = 2
"""Most decoders where the network runs on the processor: one keeps up, a second one helps where the store is slow."""

LOOK_AFTER: Final = 16
"""Photos after which it is looked whether decoding keeps up."""

STARVED: Final = 0.05
"""Share of the time spent waiting for photos from which another decoder is tried."""

WORTH: Final = 1.05
"""How much faster photos must come with one decoder more for another one to be tried."""

T = TypeVar("T")


class Reader(Protocol):
    """Gives the bytes of a listed photo. `reading.PhotoReader` is one."""

    def read(self, uri: str, root: str, *, size_bytes: int, checksum: str) -> bytes:
        """Read one photo; raises PhotoError or StorageError."""
        ...


class Decoder(Protocol):
    """Turns bytes into pixels. `decoding.PhotoDecoder` is one."""

    def decode(self, data: bytes, *, min_side: int | None) -> UInt8[np.ndarray, "H W 3"]:
        """Decode one photo; raises PhotoError."""
        ...

    def close(self) -> None:
        """Let go of processes."""


class Loaded(NamedTuple, Generic[T]):
    """What became of one row."""

    row: int
    photo: T | PhotoError


@dataclass(kw_only=True, slots=True)
class Waiting:
    """How the taker of some photos fared; counted up as they are taken."""

    waited_s: float = 0.0
    """Time that was spent waiting for them."""
    ready: int = 0
    """Photos that had been ready when one was taken, added up; divided by the photos taken: the mean depth of the queue."""


class PhotoLoader(Generic[T]):
    """Loads the photos of one table after another; of several at once for threads that take turns. Close it at the end.

    Args:
        reader: fetches, from any thread.
        make_decoder: called once for each decoder, which then serves one thread at a time.
        prepare: what is done to the pixels of each photo, in any thread.
        min_side: a JPEG may be decoded smaller, with sides of at least this many pixels; None: in full.
        ahead: photos of a table that may be under way or wait at once, from 1.
        most_decoders: it begins with one; while photos are waited for, and each one more makes them come faster, there will be up
            to so many.
        start_thread: called first in each thread that prepares photos.
    """

    def __init__(
        self,
        reader: Reader,
        make_decoder: Callable[[], Decoder],
        prepare: Callable[[UInt8[np.ndarray, "H W 3"]], T],
        *,
        min_side: int | None,
        ahead: int,
        most_decoders: int = 1,
        start_thread: Callable[[], None] | None = None,
    ) -> None:
        self._reader, self._make_decoder, self._prepare, self._min_side = reader, make_decoder, prepare, min_side
        self._ahead, self._most = ahead, most_decoders
        self._fetchers = ThreadPoolExecutor(min(FETCHERS, ahead), thread_name_prefix="fetch")
        self._workers = ThreadPoolExecutor(most_decoders, thread_name_prefix="decode", initializer=start_thread)
        self._decoders = [make_decoder()]
        self._free: queue.LifoQueue[Decoder] = queue.LifoQueue()
        self._free.put(self._decoders[0])
        self._pace = _Pace()
        self._pacing = Lock()

    @property
    def decoders(self) -> int:
        """How many there are now."""
        return len(self._decoders)

    def load(self, images: pa.Table, waiting: Waiting | None = None) -> Iterator[Loaded[T]]:
        """Load listed photos, in their order; one that cannot be used comes as the error that says why. For one thread.

        Args:
            images: in the schema of images.
            waiting: where to count how long they were waited for; None: nowhere.

        Raises:
            StorageError: a remote store does not answer.
            WorkError: no decoder can be started.
        """
        columns = [images[name].to_pylist() for name in ("uri", "root", "size_bytes", "checksum")]
        rows = deque(enumerate(zip(*columns, strict=True)))
        window: deque[tuple[int, int, Future[T]]] = deque()
        held, waiting = 0, waiting or Waiting()
        try:
            while rows or window:
                while rows and len(window) < self._ahead and (not window or held + rows[0][1][2] <= BYTES_AHEAD):
                    row, (uri, root, size_bytes, checksum) = rows.popleft()
                    data = self._fetchers.submit(self._reader.read, uri, root, size_bytes=size_bytes, checksum=checksum)
                    window.append((row, size_bytes, self._workers.submit(self._decoded, data)))
                    held += size_bytes
                row, size_bytes, photo = window.popleft()
                held -= size_bytes
                waiting.ready += sum(one.done() for _, _, one in window) + photo.done()
                yield Loaded(row, self._taken(photo, waiting, is_first=row == 0))
        finally:
            for _, _, photo in window:
                photo.cancel()

    def close(self) -> None:
        """Wait for the photos that are under way, drop those that wait, and stop the decoders."""
        self._fetchers.shutdown(cancel_futures=True)
        self._workers.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def _decoded(self, data: "Future[bytes]") -> T:
        fetched = data.result()
        decoder = self._free.get()
        try:
            pixels = decoder.decode(fetched, min_side=self._min_side)
        finally:
            self._free.put(decoder)
        return self._prepare(pixels)

    def _taken(self, photo: "Future[T]", waiting: Waiting, *, is_first: bool) -> T | PhotoError:
        start = time.perf_counter()
        try:
            return photo.result()
        except PhotoError as error:
            return error
        finally:
            waited = time.perf_counter() - start
            waiting.waited_s += waited
            if not is_first:  # that waits however many decoders there are, and may be behind another table's
                self._keep_pace(waited)

    def _keep_pace(self, waited_s: float) -> None:
        with self._pacing:
            if self._pace.wants_more(waited_s) and len(self._decoders) < self._most:
                self._decoders.append(self._make_decoder())
                self._free.put(self._decoders[-1])


def most_decoders(encoder: Encoder) -> int:
    """Say how many decoder processes a network may come to have: beside a GPU as many as there are processors."""
    return DECODERS_BESIDE_CPU if encoder.is_on_cpu else os.cpu_count() or 1


def photo_loader(encoder: Encoder, settings: Settings, limits: PhotoLimits) -> PhotoLoader[PreparedPhoto]:
    """Make what loads photos for a network."""
    return PhotoLoader(
        PhotoReader(settings, limits),
        partial(PhotoDecoder, limits),
        encoder.prepare,
        min_side=encoder.decode_side,
        ahead=2 * encoder.batch_size + AHEAD,
        most_decoders=most_decoders(encoder),
        start_thread=partial(use_threads, 1),
    )


class _Pace:
    """Decides by measuring whether one decoder more is worth it."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._taken, self._waited_s = 0, 0.0
        self._before_s: float | None = None
        self._settled = False

    def wants_more(self, waited_s: float) -> bool:
        """Count a photo that was waited for so long, and say whether another decoder should be tried now."""
        if self._began is None:
            self._began = time.perf_counter()
            return False
        self._taken += 1
        self._waited_s += waited_s
        if self._taken < LOOK_AFTER:
            return False
        now = time.perf_counter()
        each_s, share = (now - self._began) / self._taken, self._waited_s / (now - self._began)
        self._began, self._taken, self._waited_s = now, 0, 0.0
        if share < STARVED or self._settled:
            return False
        self._settled = self._before_s is not None and each_s * WORTH > self._before_s
        self._before_s = each_s
        return not self._settled
