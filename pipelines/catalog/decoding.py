"""Turn the bytes of photos into pixels, safely: in a process of its own that may be killed. Headers that need it too.

A decompression bomb, an endless loop or a crash in a C decoder costs one photo and one restart (0.3 s), never the build. Used
by `pipelines.build` and `pipelines.query`, in threads and in Ray actors alike: the child is started as a fresh interpreter
(`decoder_process`), not forked or spawned, so it inherits neither locks nor `__main__`.
"""

import fcntl
import json
import math
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from io import BufferedReader
from types import TracebackType
from typing import IO, Final, Self, TypeVar, cast

import msgspec
import numpy as np
from jaxtyping import UInt8

from pipelines.catalog.decoder_process import READY, REPLY, REQUEST
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.photo_facts import PhotoFacts
from schemas.errors import PhotoError, WorkError
from schemas.reasons import RejectReason

LOOKS_A_LIMIT: Final = 10
"""How often it is looked, within the time that a photo may take, whether that is over."""

FROM_OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM)
"""Signals that no photo makes a decoder die of by itself."""

PIPE_BYTES: Final = 1 << 20
"""What a pipe to the child may hold: most photos at once, so that neither end waits for the other after each 64 kB."""


class PhotoDecoder:
    """Decodes one photo at a time in a child process. Not thread-safe: use one in each thread.

    The child starts with the first photo, and again after it had to be killed. Close the decoder, or use it in `with`.
    """

    def __init__(self, limits: PhotoLimits) -> None:
        self._limits = limits
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, for monitors; None when none is running."""
        return self._child.process.pid if self._child else None

    def decode(self, data: bytes, *, min_side: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
        """Decode one photo, upright, as 8-bit RGB.

        EXIF orientation is applied. 16-bit channels are scaled to 8, transparency is laid over white, CMYK, grey and palettes
        become RGB, colour profiles are ignored. Of several pictures in a file the first is taken.

        Args:
            data: the file.
            min_side: allow a JPEG to be decoded at a half, a quarter or an eighth of its size, as long as no side falls below
                this. Two to four times faster; then resize. None: every pixel.

        Raises:
            PhotoError: it cannot be decoded within the limits; the decoder can go on with the next photo.
            WorkError: the child process cannot be started, so no photo could be decoded.
        """
        answer = self._ask(b"P", data, min_side or 0)
        assert isinstance(answer, np.ndarray)
        return answer

    def facts(self, data: bytes) -> PhotoFacts:
        """Read the header of one photo of any format, also of those whose headers only C libraries read.

        Raises:
            PhotoError: no photo Folio reads, or not within the limits; the decoder can go on with the next photo.
            WorkError: the child process cannot be started, so no photo could be read.
        """
        answer = self._ask(b"F", data, 0)
        assert isinstance(answer, PhotoFacts)
        return answer

    def _ask(self, kind: bytes, data: bytes, min_side: int) -> np.ndarray | PhotoFacts:
        """Ask a child, and once more another one when somebody killed the first: that says nothing about the photo."""
        if len(data) > self._limits.max_bytes:
            raise PhotoError(RejectReason.TOO_MANY_BYTES, f"{len(data):,} bytes, the limit is {self._limits.max_bytes:,}")
        try:
            return self._ask_once(kind, data, min_side)
        except _KilledError:
            return self._ask_once(kind, data, min_side)

    def _ask_once(self, kind: bytes, data: bytes, min_side: int) -> np.ndarray | PhotoFacts:
        child = self._running_child()
        watchdog = child.watchdog
        watchdog.start_photo()
        in_step = False
        try:
            answer = child.ask(kind, data, self._limits.max_pixels, min_side)
            in_step = True
        except (EOFError, BrokenPipeError) as error:
            watchdog.end_photo()
            if watchdog.fired:
                detail = f"not decoded within {self._limits.decode_timeout_s:g} s"
                raise PhotoError(RejectReason.DECODER_TIMEOUT, detail) from error
            crashed = _KilledError if -child.process.wait() in FROM_OUTSIDE else PhotoError
            raise crashed(RejectReason.DECODER_CRASHED, f"the decoder {child.how_it_ended()}") from error
        finally:
            watchdog.end_photo()
            if not in_step or watchdog.fired:  # dead, interrupted between question and answer, or killed a moment too late
                self.close()
        if isinstance(answer, PhotoError):
            raise answer
        return answer

    def close(self) -> None:
        """Kill the child and wait for it. Safe to call twice; the next photo starts a new child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _running_child(self) -> "_Child":
        if self._child is not None and self._child.process.poll() is not None:
            self.close()  # it died between two photos
        if self._child is None:
            self._child = _Child(self._limits.decoder_memory_bytes, self._limits.decode_timeout_s)
            try:
                self._child.await_start()
            except EOFError as error:
                ending = self._child.how_it_ended()
                self.close()
                raise WorkError(
                    f"the decoder process cannot be started: it {ending}. No photo was decoded. Check the installation of Pillow."
                ) from error
        return self._child


class _KilledError(PhotoError):
    """The decoder was killed from outside: by a system that is short of memory, or that stops all processes of a service."""


class _Child:
    """A running `decoder_process`."""

    def __init__(self, memory_bytes: int, timeout_s: float) -> None:
        self._chatter = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed in `close`
        """What libtiff and libjpeg print about a photo: for nobody, unless the child dies of it."""

        self.process = subprocess.Popen(
            # -P: a file named like one of our modules in the working directory must not be imported
            [sys.executable, "-P", "-m", "pipelines.catalog.decoder_process", str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._chatter,
            process_group=0,  # Ctrl-C is for the parent; a child that died of it would look like a bad photo
        )
        assert self.process.stdin is not None
        self._questions = self.process.stdin
        self._answers = cast(BufferedReader, self.process.stdout)
        _widen(self._questions, self._answers)
        self.watchdog = _Watchdog(self.process, timeout_s)

    def await_start(self) -> None:
        """Wait until it has imported what it needs, so that this does not count as the time of a photo.

        Raises:
            EOFError: it died.
        """
        _read_exactly(self._answers, bytearray(len(READY)))

    def ask(self, kind: bytes, data: bytes, max_pixels: int, min_side: int) -> np.ndarray | PhotoFacts | PhotoError:
        """Have one photo decoded, or its header read.

        Raises:
            EOFError, BrokenPipeError: it died.
        """
        self._chatter.seek(0)  # the child writes on from here: parent and child share the offset
        self._chatter.truncate()
        self._questions.write(REQUEST.pack(kind, len(data), max_pixels, min_side))
        self._questions.write(data)
        self._questions.flush()
        what, height, width = REPLY.unpack(_read_exactly(self._answers, bytearray(REPLY.size)))
        if what == b"E":
            problem = json.loads(_read_exactly(self._answers, bytearray(height)))
            return PhotoError(RejectReason(problem["reason"]), problem["detail"])
        if what == b"F":
            return msgspec.json.decode(_read_exactly(self._answers, bytearray(height)), type=PhotoFacts)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        _read_exactly(self._answers, pixels.data.cast("B"))
        return pixels

    def how_it_ended(self) -> str:
        """Say why it is gone, after an EOFError or BrokenPipeError."""
        status = self.process.wait()
        self._chatter.seek(0)
        last_words = self._chatter.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{how}: {last_words}" if last_words else how

    def close(self) -> None:
        """Kill it, if it still runs, and leave nothing behind."""
        self.watchdog.close()
        self.process.kill()
        self.process.communicate()  # closes both pipes and reaps the child
        self._chatter.close()


class _Watchdog:
    """Kills a process that takes too long for a photo. One thread for all its photos: to start one costs 0.3 ms."""

    def __init__(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        self.fired = False
        self._process, self._timeout_s = process, timeout_s
        self._deadline = math.inf
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def start_photo(self) -> None:
        """From now on the time counts."""
        self._deadline = time.monotonic() + self._timeout_s

    def end_photo(self) -> None:
        """It counts no more; when this returns, `fired` does not change until the next photo."""
        with self._lock:
            self._deadline = math.inf

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._timeout_s / LOOKS_A_LIMIT):
            with self._lock:
                if time.monotonic() > self._deadline:
                    self.fired = True
                    self._process.kill()
                    return


Buffer = TypeVar("Buffer", bytearray, memoryview)


def _read_exactly(pipe: BufferedReader, buffer: Buffer) -> Buffer:
    """Fill a buffer from a pipe.

    Raises:
        EOFError: the other end closed before the buffer was full.
    """
    if pipe.readinto(buffer) < len(buffer):
        raise EOFError
    return buffer


def _widen(*pipes: IO[bytes]) -> None:
    """Let pipes hold more, where the system can (Linux) and allows it."""
    for pipe in pipes:
        with suppress(AttributeError, OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
