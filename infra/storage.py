"""Bytes at a URL: the one door to local disk, S3 and memory, and the only file that knows fsspec and s3fs.

Everything that reads or writes a map or lists photos is handed a `Storage`. An object is written whole or not at all, and
`put_if_absent` is what the commit protocol (`infra/commits.py`) stands on.

| store      | whole or not at all                      | create if absent                                        |
|------------|------------------------------------------|---------------------------------------------------------|
| local disk | temporary file, fsync, rename            | temporary file, fsync, hard link                        |
| S3         | PutObject, multipart from 100 MB         | PutObject with If-None-Match: *, never multipart        |
| memory     | one assignment                           | under a lock of this process                            |
| other URLs | as their fsspec file system does         | its mode="create"; `commits.probe` finds out if it does |

A request that fails for a reason that may pass is made again, and every request here may be: writing or deleting twice is
harmless, and after a refused create the object is read, to see whether an earlier try of the same call had made it.
"""

import errno
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import mktime_tz, parsedate_tz
from itertools import chain, repeat
from pathlib import Path
from random import SystemRandom
from stat import S_ISDIR, S_ISREG
from threading import Lock
from typing import Any, BinaryIO, Final, Protocol, TypeVar
from uuid import uuid4

import fsspec

from infra.metrics import METRICS, STORE_RETRIES
from infra.settings import Settings
from schemas.errors import ObjectMissing, StorageError

TEMPORARY_SUFFIX: Final = ".folio-tmp"
"""Of files being written; a killed process may leave some. Only `leftovers` lists them."""

ATTEMPTS: Final = 10
"""How often a request to a remote store is tried. Where three requests in ten fail, one in 170,000 does so ten times."""

FIRST_PAUSE_S: Final = 0.2
"""Longest pause after the first failed request; it doubles each time."""

LONGEST_PAUSE_S: Final = 3.0
"""Where the doubling ends: ten attempts wait 18 s in all at most, 9 s as a rule, about as long as a server takes to restart."""

LONGEST_RETRY_AFTER_S: Final = 30.0
"""The longest wait a store may ask for (Retry-After); one that asks for more is asked again earlier."""

CONNECT_TIMEOUT_S: Final = 10
READ_TIMEOUT_S: Final = 60
"""Without a byte of an answer; a request that takes longer is made again."""

CREATE_WITHIN_S: Final = 30.0
"""After this no create is tried again: whoever makes sure of something before it creates (`commits.publish`) must know until when
it must hold, which is this and one `READ_TIMEOUT_S` later."""

PART_BYTES: Final = 16 << 20
"""Larger objects of a remote store are read in parts of this size, so that a failure costs a part and not the object."""

PARTS_AT_ONCE: Final = 8

WRONG_CLOCK_S: Final = 300.0
"""A difference to the store's clock that is worth telling when it refuses a request; S3 accepts a quarter of an hour."""

ATTEMPTS_OF_A_PART: Final = 3
"""By botocore, of each part of a large object on its way up and each page of a list, with pauses of 3 s in all at most."""

MULTIPART_BYTES: Final = 100 << 20
"""From here s3fs uploads in parts."""

CREATE_MAX_BYTES: Final = 64 << 20
"""Of an object that is created if absent: one PutObject, since some stores ignore the condition when parts are put together. A
manifest of half a million segments is smaller."""

TRANSIENT_STATUS: Final = frozenset({409, 429, 500, 502, 503, 504})
"""HTTP answers after which the same request may well succeed."""

TRANSIENT_CODES: Final = frozenset({"BadDigest", "IncompleteBody", "NoSuchUpload", "RequestTimeout", "XAmzContentSHA256Mismatch"})
"""Of S3, with status 400 or 404: the request was cut or altered on the way, or what its parts became was not answered."""

LOG: Final = logging.getLogger("folio.storage")

_MEMORY_LOCK: Final = Lock()

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One stored object, as a listing shows it."""

    path: str
    """Relative to the storage's URL, with forward slashes. Bytes of a file name that are not UTF-8 are surrogate escapes."""

    size_bytes: int

    etag: str | None
    """The store's mark of the content, without quotes; None on disk and in memory."""

    modified_at: datetime | None
    """By the store's clock; None in memory."""


class Storage(Protocol):
    """Objects below a URL, for any number of threads.

    Paths are relative, with forward slashes; one that could lead out (`..`, a leading slash) is a `ValueError`. Every method
    raises `StorageError` when the store does not do as asked.
    """

    @property
    def url(self) -> str:
        """Where it is, for people: without user, password and query."""

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        """Read an object, or the bytes [start, stop) of it; what lies beyond its end is left out.

        Args:
            path: of the object.
            start: first byte; negative, and then without `stop`: that many bytes before the end.
            stop: one past the last byte.

        Raises:
            ObjectMissing: there is no such object.
            ValueError: the range is empty by itself.
        """

    def put(self, path: str, data: bytes) -> None:
        """Write an object, whole or not at all, in place of any before it."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one, whole or not at all. Of many concurrent callers one creates it.

        Returns:
            True: this call created it. False: there was one. Where answers get lost, another's object of exactly these bytes
            counts as this call's, so put into it what tells writers apart, wherever that matters.

        Raises:
            StorageError: also when no answer came; then this call may have created the object or not.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List every object below the folder `prefix`, sorted by path, without temporary files. Nothing there: nothing."""

    def leftovers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List the temporary files below the folder `prefix` that writers have not finished or, killed, left behind.

        Their paths can be read and deleted. Unfinished uploads of a bucket are not among them: no reader ever sees those, and
        the bucket's own rule removes them (AbortIncompleteMultipartUpload).
        """

    def info(self, path: str) -> ObjectInfo:
        """Describe one object.

        Raises:
            ObjectMissing: there is no such object.
        """

    def delete(self, path: str) -> None:
        """Remove an object. One that is not there is fine."""


def open_storage(url: str, settings: Settings) -> Storage:
    """Open the storage at a URL. Nothing is created there, nor asked.

    Args:
        url: a folder, or any fsspec URL: file:///maps/lund, s3://bucket/lund, memory://lund.
        settings: for the S3 endpoint.

    Raises:
        StorageError: no file system is known or installed for this kind of URL, or an S3 URL has credentials in it.
    """
    if "://" not in url or url.startswith(("file://", "local://")):
        return LocalStorage(url)
    if url.startswith(("s3://", "s3a://")):
        return _open_s3(url, settings)
    shown = _without_credentials(url)
    try:
        filesystem, root = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"{shown}: cannot be opened: {error}. Nothing was read or written. Use a folder, s3:// or another fsspec URL."
        ) from error
    return FsspecStorage(shown, filesystem, root, failures=(OSError,))


class LocalStorage:
    """A folder on this machine. The first write makes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Absolute, so that a later change of the working directory moves nothing.
        self._root = Path(url.partition("://")[2] if "://" in url else url).absolute()

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Storage`."""
        first = _first_byte(start, stop)
        # The name by hand: pathlib would take as long as the file system, and queries read hundreds of small ranges.
        with self._explained(path, "read"), open(f"{self._root}/{_checked(path)}", "rb") as file:  # noqa: PTH123
            file.seek(first if first >= 0 else max(0, os.fstat(file.fileno()).st_size + first))
            return file.read(-1 if stop is None else stop - first)

    def put(self, path: str, data: bytes) -> None:
        """See `Storage`."""
        target = self._file(path)
        with self._explained(path, "write"), _temporary_beside(target, data) as temporary:
            temporary.replace(target)
            _sync(target.parent)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """See `Storage`."""
        target = self._file(path)
        with self._explained(path, "write"), _temporary_beside(target, data) as temporary:
            try:
                target.hardlink_to(temporary)
            except FileExistsError:
                return temporary.stat().st_nlink > 1  # NFS may make the link, lose the answer and ask again
            _sync(target.parent)
            return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`. Links to folders are followed, but never round in a circle. Pipes and devices are not objects."""
        return (info for info in self._below(prefix) if not info.path.endswith(TEMPORARY_SUFFIX))

    def leftovers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`."""
        return (info for info in self._below(prefix) if info.path.endswith(TEMPORARY_SUFFIX))

    def info(self, path: str) -> ObjectInfo:
        """See `Storage`."""
        file = self._file(path)
        with self._explained(path, "read"):
            if file.is_dir():
                raise IsADirectoryError
            return self._describe(file, file.stat())

    def delete(self, path: str) -> None:
        """See `Storage`. Folders that become empty go too: an object store has none."""
        file = self._file(path)
        with self._explained(path, "delete"):
            file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == self._root or not _removed(folder):
                break

    def _below(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self._file(prefix) if prefix else self._root
        with self._explained(prefix, "list"):
            found = [self._describe(file, stat) for file, stat in _walk(folder, frozenset())]
        yield from sorted(found, key=lambda info: info.path)

    def _file(self, path: str) -> Path:
        return self._root / _checked(path)

    def _describe(self, file: Path, stat: os.stat_result) -> ObjectInfo:
        modified_at = datetime.fromtimestamp(stat.st_mtime, UTC)
        path = file.relative_to(self._root).as_posix()
        return ObjectInfo(path=path, size_bytes=stat.st_size, etag=None, modified_at=modified_at)

    @contextmanager
    def _explained(self, path: str, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = str(self._root / path)
            if verb == "read" and isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
                raise _missing(where) from error
            raise _failure(where, verb, error) from error


class FsspecStorage:
    """Objects in an fsspec file system: S3, memory, or another."""

    def __init__(
        self,
        url: str,
        filesystem: fsspec.AbstractFileSystem,
        root: str,
        *,
        failures: tuple[type[Exception], ...],
        lost: tuple[type[Exception], ...] = (ConnectionError, TimeoutError),
        patient: fsspec.AbstractFileSystem | None = None,
    ) -> None:
        """Stand on a file system.

        Args:
            url: as shown to people.
            filesystem: with no cache of listings.
            root: what this storage's paths start with inside the file system.
            failures: what it raises when the store does not do as asked.
            lost: those of them that say that no answer came, or half of one.
            patient: the same, but it tries each request again by itself: for what takes many, of which one will fail. None: that.
        """
        self.url = url
        self._filesystem = filesystem
        self._patient = patient or filesystem
        self._root = root.rstrip("/")
        self._failures = failures
        self._lost = lost
        self._without_retries_of_s3fs()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._without_retries_of_s3fs()  # which it forgets on the way to another process

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Storage`."""
        first = _first_byte(start, stop)
        if first < 0 or (stop is not None and stop - first <= PART_BYTES):
            return self._range(path, first, stop)
        head = self._range(path, first, first + PART_BYTES)
        if len(head) < PART_BYTES:
            return head
        size = self.info(path).size_bytes
        end = size if stop is None else min(stop, size)
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            starts = range(first + PART_BYTES, end, PART_BYTES)
            parts = pool.map(lambda start: self._range(path, start, min(start + PART_BYTES, end)), starts)
            return b"".join([head, *parts])

    def put(self, path: str, data: bytes) -> None:
        """See `Storage`."""
        filesystem = self._filesystem if len(data) < MULTIPART_BYTES else self._patient
        self._asked("write", path, lambda: filesystem.pipe_file(self._name(path), data))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """See `Storage`."""
        if len(data) > CREATE_MAX_BYTES:
            raise StorageError(
                f"{_printable(f'{self.url}/{path}')}: found {len(data):,} bytes to create if absent, needed at most "
                f"{CREATE_MAX_BYTES:,}, which every store takes at once. Nothing was written. Build smaller maps."
            )
        name = self._name(path)

        def create() -> bool:
            try:
                self._filesystem.pipe_file(name, data, mode="create")
            except self._failures as error:
                if _status(error) == 412 or isinstance(error, FileExistsError):
                    return False
                raise
            return True

        # An earlier try may have created it: one of `_asked`, or of aiohttp, which by itself asks again once when a connection
        # that it kept open breaks.
        return self._asked("create", path, create, within_s=CREATE_WITHIN_S) or self.get(path) == data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`."""
        folder = self._name(prefix.rstrip("/")) if prefix else self._root
        filesystems = chain([self._filesystem], repeat(self._patient))
        parent, _, name = folder.rpartition("/")
        if parent and "s3" in self._filesystem.protocol:
            where, options = parent, {"prefix": f"{name}/"}  # else s3fs sends three requests to find out that there is nothing
        else:
            where, options = folder, {}
        try:
            entries = self._asked("list", prefix, lambda: next(filesystems).find(where, detail=True, **options))
        except ObjectMissing:
            entries = {}
        below = sorted(name for name in entries if name.startswith(f"{folder}/") and not name.endswith("/"))
        yield from (self._describe(name.removeprefix(f"{self._root}/"), entries[name]) for name in below)

    def leftovers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`. Such stores write without temporary files."""
        return iter(())

    def info(self, path: str) -> ObjectInfo:
        """See `Storage`."""
        entry = self._asked("read", path, lambda: self._filesystem.info(self._name(path)))
        if entry["type"] != "file":
            raise _missing(f"{self.url}/{path}")
        return self._describe(path, entry)

    def delete(self, path: str) -> None:
        """See `Storage`."""
        try:
            self._asked("delete", path, lambda: self._filesystem.rm_file(self._name(path)))
        except ObjectMissing:
            return

    def _name(self, path: str) -> str:
        return f"{self._root}/{_checked(path)}"

    def _describe(self, path: str, entry: dict[str, Any]) -> ObjectInfo:
        etag = entry.get("ETag")
        return ObjectInfo(
            path=path,
            size_bytes=entry["size"],
            etag=etag and etag.strip('"'),
            modified_at=entry.get("LastModified"),
        )

    def _without_retries_of_s3fs(self) -> None:
        self._filesystem.retries = self._patient.retries = 1

    def _range(self, path: str, first: int, stop: int | None) -> bytes:
        def read() -> bytes:
            try:
                return bytes(self._filesystem.cat_file(self._name(path), start=first, end=stop))
            except OSError as error:
                if _status(error) == 416:  # the range starts beyond the end
                    return b""
                raise

        return self._asked("read", path, read)

    def _asked(self, verb: str, path: str, request: Callable[[], T], *, within_s: float = math.inf) -> T:
        where = f"{self.url}/{path}"
        end = time.monotonic() + within_s
        for attempt in range(ATTEMPTS):
            try:
                with _MEMORY_LOCK if self._filesystem.protocol == "memory" else nullcontext():  # no listing while one writes
                    return request()
            except self._failures as error:
                transient = self._is_transient(error)
                if isinstance(error, FileNotFoundError) and not transient and verb not in ("write", "create"):
                    raise _missing(where) from error
                pause_s = _pause_s(attempt, error)
                if not transient or attempt == ATTEMPTS - 1 or time.monotonic() + pause_s > end:
                    raise _failure(where, verb, error) from error
                LOG.info("%s: could not %s this: %s; trying again", _printable(where), verb, _reason(error))
                METRICS.add(STORE_RETRIES, 1, verb)
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _is_transient(self, error: Exception) -> bool:
        status = _status(error)
        if status is None:
            return isinstance(error, self._lost)
        return status in TRANSIENT_STATUS or _answer(error).get("Error", {}).get("Code") in TRANSIENT_CODES


def _open_s3(url: str, settings: Settings) -> FsspecStorage:
    # Here and not above: importing s3fs takes two to three seconds, which a map on local disk need not wait for.
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError, HTTPClientError, IncompleteReadError
    from botocore.exceptions import ConnectionError as NotConnected
    from s3fs.core import S3_RETRYABLE_ERRORS, S3FileSystem

    shown = _without_credentials(url)
    if shown != url.rstrip("/"):
        raise StorageError(
            f"{shown}: found a user, password or query in the URL, needed s3://bucket/folder alone. "
            "Nothing was read or written. Give credentials in AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )

    def connect(**retries: object) -> fsspec.AbstractFileSystem:
        return S3FileSystem(
            endpoint_url=settings.s3_endpoint_url,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"retries": retries, "connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S},
        )

    lost = (ConnectionError, TimeoutError, ClientError, HTTPClientError, IncompleteReadError, NotConnected, *S3_RETRYABLE_ERRORS)
    return FsspecStorage(
        shown,
        connect(total_max_attempts=1),
        url.partition("://")[2],
        failures=(OSError, BotoCoreError, *lost),
        lost=lost,
        patient=connect(total_max_attempts=ATTEMPTS_OF_A_PART, mode="legacy"),  # the mode that understands 429
    )


def _checked(path: str) -> str:
    if not path or path.startswith("/") or "\0" in path or not {".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(f"a path must be relative, without . and .. and NUL, got {path!r}")
    return path


def _first_byte(start: int | None, stop: int | None) -> int:
    first = start or 0
    if stop is not None and not 0 <= first < stop:
        raise ValueError(f"a range must be [start, stop) with 0 <= start < stop, got [{start}, {stop})")
    return first


@contextmanager
def _temporary_beside(target: Path, data: bytes) -> Iterator[Path]:
    """Write `data` to disk under a temporary name beside `target`, for the caller to move or link; then clean up."""
    temporary = target.with_name(f".{uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with _opened_new(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make the names in a folder outlast a power failure, as fsync does for the bytes of a file."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # a `delete` elsewhere was fast
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened_new(file: Path) -> BinaryIO:
    """Open a file for writing, in a folder that a `delete` elsewhere may just be removing because it is empty."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError, FileExistsError):
            file.parent.mkdir(parents=True, exist_ok=True)
            return file.open("xb")
    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(file.parent))


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # not empty, or another process was faster
        return False
    return True


def _walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[tuple[Path, os.stat_result]]:
    """Find the files below a folder entered through the folders `above`, known by device and inode."""
    try:
        here = folder.stat()
        entries = list(os.scandir(folder))
    except FileNotFoundError:  # nothing there, or removed since it was listed
        return
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in entries:
        try:
            stat = entry.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):  # a link to nowhere or to itself, or removed since
                continue
            raise
        if S_ISDIR(stat.st_mode):
            yield from _walk(Path(entry.path), above | {(here.st_dev, here.st_ino)})
        elif S_ISREG(stat.st_mode):
            yield Path(entry.path), stat


def _answer(error: Exception) -> dict[str, Any]:
    """Find the parsed HTTP answer behind an error of s3fs, which translates those of botocore; empty where none came."""
    response = getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}


def _status(error: Exception) -> int | None:
    status: int | None = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _retry_after_s(error: Exception) -> float:
    """Read how long the store asks us to wait: 0 where it does not, or names a date."""
    asked = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    return min(float(asked), LONGEST_RETRY_AFTER_S) if asked.isdecimal() else 0.0


def _pause_s(attempt: int, error: Exception) -> float:
    jitter_s = SystemRandom().uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))
    return _retry_after_s(error) + jitter_s


def _missing(where: str) -> ObjectMissing:
    return ObjectMissing(f"{_printable(where)}: no such object. Nothing was changed. Check the path, and the map: folio verify")


def _failure(where: str, verb: str, error: Exception) -> StorageError:
    outcome = {
        "write": "It was written whole or not at all",
        "create": "It may have been created or not; nothing was deleted",
    }.get(verb, "Nothing was changed")
    clock = _wrong_clock(error)
    check = "Set it right" if clock else "Check space, permissions and connection"
    return StorageError(
        f"{_printable(where)}: could not {verb} this: {_reason(error)}{clock}. {outcome}. "
        f"{check}, then run the same command again."
    )


def _wrong_clock(error: Exception) -> str:
    """Name this machine, when the store has refused a request and its clock says why: S3 accepts no signature of another time."""
    date = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    told = parsedate_tz(date) if date and _status(error) == 403 else None
    if told is None:
        return ""
    ahead_s = _now().timestamp() - mktime_tz(told)
    if abs(ahead_s) < WRONG_CLOCK_S:
        return ""
    way = "ahead of" if ahead_s > 0 else "behind"
    return f", and the clock of this machine, {platform.node()}, is {abs(ahead_s) / 60:.0f} minutes {way} that of the store"


def _now() -> datetime:
    return datetime.now(UTC)


def _reason(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    if said in ("", "None"):  # Ceph refuses without a message, only with a code
        return _answer(error).get("Error", {}).get("Code") or type(error).__name__
    return said


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path.partition('?')[0]}".rstrip("/")
