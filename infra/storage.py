"""Bytes at a URL: the one door to local disk, S3 and memory, and the only file that knows fsspec and s3fs.

Everything that reads or writes a map or lists photos is handed a `Storage`. An object is written whole or not at all, and
`put_if_absent` is what the commit protocol (`infra/commits.py`) stands on.

| store      | whole or not at all                      | create if absent                                        |
|------------|------------------------------------------|---------------------------------------------------------|
| local disk | temporary file, fsync, rename            | temporary file, fsync, hard link                        |
| S3         | PutObject, multipart from 100 MB         | PutObject with If-None-Match: *                         |
| memory     | one assignment                           | under a lock of this process                            |
| other URLs | as their fsspec file system does         | its mode="create"; `commits.probe` finds out if it does |
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from stat import S_ISDIR, S_ISREG
from threading import Lock
from typing import Any, BinaryIO, Final, Protocol, TypeVar
from uuid import uuid4

import fsspec

from infra.settings import Settings
from schemas.errors import ObjectMissing, StorageError

TEMPORARY_SUFFIX: Final = ".folio-tmp"
"""Of files being written; a killed process may leave some. Never listed."""

ATTEMPTS: Final = 6
"""How often a request to a remote store is tried."""

FIRST_PAUSE_S: Final = 0.2
"""Longest pause after the first failed request; it doubles each time, so six attempts wait 6 s in all at most."""

TRANSIENT_STATUS: Final = frozenset({409, 429, 500, 502, 503, 504})
"""HTTP answers after which the same request may well succeed."""

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
            True: this call created it. False: it was there.

        Raises:
            StorageError: also when the answer was lost; then this call may have created the object or not.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List every object below the folder `prefix`, sorted by path, without temporary files. Nothing there: nothing."""

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
        with self._explained(path, "read"), self._file(path).open("rb") as file:
            file.seek(first if first >= 0 else max(0, os.fstat(file.fileno()).st_size + first))
            return file.read(-1 if stop is None else stop - first)

    def put(self, path: str, data: bytes) -> None:
        """See `Storage`."""
        target = self._file(path)
        with self._explained(path, "write"), _temporary_beside(target, data) as temporary:
            temporary.replace(target)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """See `Storage`."""
        target = self._file(path)
        with self._explained(path, "write"), _temporary_beside(target, data) as temporary:
            try:
                target.hardlink_to(temporary)
            except FileExistsError:
                return False
            return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`. Links to folders are followed, but never round in a circle. Pipes and devices are not objects."""
        folder = self._file(prefix) if prefix else self._root
        with self._explained(prefix, "list"):
            found = [self._describe(file, stat) for file, stat in _walk(folder, frozenset())]
        yield from sorted(found, key=lambda info: info.path)

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

    def _file(self, path: str) -> Path:
        return self._root / _checked(path)

    def _describe(self, file: Path, stat: os.stat_result) -> ObjectInfo:
        modified_at = datetime.fromtimestamp(stat.st_mtime, UTC)
        path = file.relative_to(self._root).as_posix()
        return ObjectInfo(path=path, size_bytes=stat.st_size, etag=None, modified_at=modified_at)

    @contextmanager
    def _explained(self, path: str, verb: str) -> Iterator[None]:
        where = str(self._root / path)
        try:
            yield
        except OSError as error:
            if verb == "read" and isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
                raise _missing(where) from error
            raise _failure(where, verb, error) from error


class FsspecStorage:
    """Objects in an fsspec file system: S3, memory, or another."""

    def __init__(
        self, url: str, filesystem: fsspec.AbstractFileSystem, root: str, *, failures: tuple[type[Exception], ...]
    ) -> None:
        """Stand on a file system.

        Args:
            url: as shown to people.
            filesystem: with no cache of listings and no retries of its own.
            root: what this storage's paths start with inside the file system.
            failures: what it raises when the store does not do as asked.
        """
        self.url = url
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._failures = failures

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        """See `Storage`."""
        first = _first_byte(start, stop)
        whole = first == 0 and stop is None  # asked for without a range: S3 refuses every range of an empty object
        limits = (None, None) if whole else (first, stop)

        def read() -> bytes:
            try:
                return bytes(self._filesystem.cat_file(self._name(path), start=limits[0], end=limits[1]))
            except OSError as error:
                if _http_status(error) == 416:  # the range starts beyond the end
                    return b""
                raise

        return self._asked("read", path, read)

    def put(self, path: str, data: bytes) -> None:
        """See `Storage`."""
        self._asked("write", path, lambda: self._filesystem.pipe_file(self._name(path), data))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """See `Storage`."""
        name = self._name(path)
        for attempt in range(ATTEMPTS):
            try:
                with _MEMORY_LOCK if self._filesystem.protocol == "memory" else nullcontext():
                    self._filesystem.pipe_file(name, data, mode="create")
                return True
            except self._failures as error:
                status = _http_status(error)
                if status == 412 or isinstance(error, FileExistsError):
                    return False
                # 409 says: not now. After anything else the object may be ours already, and asking again would hide it.
                if status != 409 or attempt == ATTEMPTS - 1:
                    raise _failure(f"{self.url}/{path}", "create", error) from error
            _pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `Storage`."""
        folder = self._name(prefix.rstrip("/")) if prefix else self._root
        try:
            entries = self._asked("list", prefix, lambda: self._filesystem.find(folder, detail=True))
        except ObjectMissing:
            entries = {}
        below = sorted(name for name in entries if name.startswith(f"{folder}/") and not name.endswith("/"))
        yield from (self._describe(name.removeprefix(f"{self._root}/"), entries[name]) for name in below)

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

    def _asked(self, verb: str, path: str, request: Callable[[], T]) -> T:
        where = f"{self.url}/{path}"
        for attempt in range(ATTEMPTS):
            try:
                return request()
            except self._failures as error:
                if isinstance(error, FileNotFoundError) and verb != "write":
                    raise _missing(where) from error
                if not _is_transient(error) or attempt == ATTEMPTS - 1:
                    raise _failure(where, verb, error) from error
            _pause(attempt)
        raise AssertionError("the last attempt returns or raises")


def _open_s3(url: str, settings: Settings) -> FsspecStorage:
    # Here and not above: importing s3fs takes two to three seconds, which a map on local disk need not wait for.
    from botocore.exceptions import BotoCoreError
    from s3fs.core import S3_RETRYABLE_ERRORS, S3FileSystem

    shown = _without_credentials(url)
    if shown != url.rstrip("/"):
        raise StorageError(
            f"{shown}: found a user, password or query in the URL, needed s3://bucket/folder alone. "
            "Nothing was read or written. Give credentials in AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    filesystem = S3FileSystem(
        endpoint_url=settings.s3_endpoint_url,
        use_listings_cache=False,
        skip_instance_cache=True,
        # A retry below this door would turn a lost answer to our own create into "somebody else's object".
        config_kwargs={"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 60},
    )
    filesystem.retries = 1
    root = url.partition("://")[2]
    return FsspecStorage(shown, filesystem, root, failures=(OSError, BotoCoreError, *S3_RETRYABLE_ERRORS))


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
        elif S_ISREG(stat.st_mode) and not entry.name.endswith(TEMPORARY_SUFFIX):
            yield Path(entry.path), stat


def _http_status(error: Exception) -> int | None:
    """Find the status of the HTTP answer behind an error of s3fs, which translates those of botocore."""
    response = getattr(error.__cause__, "response", None)
    return response["ResponseMetadata"].get("HTTPStatusCode") if isinstance(response, dict) else None


def _is_transient(error: Exception) -> bool:
    status = _http_status(error)
    if status is None:  # no answer: anything that is not the machine's own refusal may be the network
        return isinstance(error, ConnectionError | TimeoutError) or not isinstance(error, OSError)
    return status in TRANSIENT_STATUS


def _pause(attempt: int) -> None:
    time.sleep(SystemRandom().uniform(0, FIRST_PAUSE_S * 2**attempt))


def _missing(where: str) -> ObjectMissing:
    return ObjectMissing(f"{_printable(where)}: no such object. Nothing was changed. Check the path, and the map: folio verify")


def _failure(where: str, verb: str, error: Exception) -> StorageError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    outcome = {
        "write": "It was written whole or not at all",
        "create": "It may have been created or not; nothing was deleted",
    }.get(verb, "Nothing was changed")
    return StorageError(
        f"{_printable(where)}: could not {verb} this: {reason}. {outcome}. "
        "Check space, permissions and connection, then run the same command again."
    )


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path.partition('?')[0]}".rstrip("/")
