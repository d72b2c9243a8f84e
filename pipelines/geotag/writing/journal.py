"""The log of a run that changes a user's files: what was there before, written and synced before each change.

    DIR/writes/<run>/
      journal.jsonl    one record a line, only ever appended to: begun, change..., then ended, undone
      originals.bin    what it takes to have each changed file back, one behind the other

A change says where its file is, the sha256 of it before and after, and which bytes of `originals.bin` to put before the end that
both have in common. So what became of a file is always told by its own sha256, whatever was killed when: it is still the one
before, it is the one after, or somebody else has changed it since. Nothing needs to be marked as done.

A folder of a run is for its owner alone: thumbnails are among the originals.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeAlias

import msgspec

from infra.storage import TEMPORARY_SUFFIX
from pipelines.geotag.writing.statement import NotWritten
from schemas.errors import CatalogError, DamagedError, StorageError, WorkError

FORMAT: Final = 1
"""Of the journal."""

JOURNAL: Final = "journal.jsonl"
ORIGINALS: Final = "originals.bin"


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """The first record: what was asked. A run that was stopped goes on when the same is asked again."""

    format: int
    run_id: str
    kind: str
    """sidecar or exif."""
    style: str
    """Of the names of sidecars."""
    overwrite: bool
    geotags_sha256: str
    """Of the table that is written."""


class Change(msgspec.Struct, frozen=True, kw_only=True, tag="change"):
    """A file is about to be changed."""

    path: str
    before_sha256: str | None
    """None: there was no file."""
    after_sha256: str
    kept_from: int
    """Where in the originals its bytes begin."""
    kept_bytes: int
    shared_bytes: int
    """How long the end is that the file before and the file after have in common; the kept bytes go before it."""
    mode: int | None
    mtime_ns: int | None


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """All that was asked was done."""


class Undone(msgspec.Struct, frozen=True, kw_only=True, tag="undone"):
    """Somebody began to take it back, so it is never gone on with."""


Record: TypeAlias = Begun | Change | Ended | Undone


class Seen(NamedTuple):
    """How a file was: who else changes it changes this."""

    inode: int
    size_bytes: int
    mtime_ns: int
    mode: int
    owner: int
    group: int


class Journal:
    """An opened journal: what it says, and what is added to it.

    Args:
        folder: of the run.
        records: those there are.
    """

    def __init__(self, folder: Path, records: list[Record], journal: BinaryIO, originals: BinaryIO) -> None:
        self.folder = folder
        self.begun = records[0] if records and isinstance(records[0], Begun) else None
        self.changes = [each for each in records if isinstance(each, Change)]
        self.is_closed = any(isinstance(each, Ended | Undone) for each in records)
        self._journal, self._originals = journal, originals

    def append(self, *records: Record) -> None:
        """Add records; when this returns they, and the originals kept so far, will be found after any crash.

        Raises:
            StorageError: they could not be written; then nothing that they say may be done.
        """
        with _explained(self.folder):
            self._originals.flush()
            os.fsync(self._originals.fileno())
            self._journal.write(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
            self._journal.flush()
            os.fsync(self._journal.fileno())

    def keep(self, original: bytes) -> int:
        """Add bytes to the originals and say where they begin.

        Raises:
            StorageError: they could not be written.
        """
        with _explained(self.folder):
            start = self._originals.seek(0, os.SEEK_END)
            self._originals.write(original)
            return start

    def original(self, change: Change) -> bytes:
        """Read what was kept of a file."""
        self._originals.seek(change.kept_from)
        return self._originals.read(change.kept_bytes)


def new_journal(writes: Path, begun: Begun) -> Path:
    """Make the folder of a run.

    Raises:
        StorageError: it cannot be written.
    """
    folder = writes / begun.run_id
    with _explained(folder):
        folder.mkdir(mode=0o700, parents=True)
        for name in (ORIGINALS, JOURNAL):  # a folder is a run once it has a journal
            (folder / name).touch(mode=0o600)
        sync_folder(folder)
        sync_folder(writes)
        sync_folder(writes.parent)
    with opened_journal(folder) as journal:
        journal.append(begun)
    return folder


@contextmanager
def opened_journal(folder: Path) -> Iterator[Journal]:
    """Open the journal of a run, for one process at a time.

    Raises:
        CatalogError: there is none.
        DamagedError: it is not what was written.
        WorkError: another process is at it.
    """
    with ExitStack() as stack:
        try:
            journal, originals = (stack.enter_context((folder / name).open("r+b")) for name in (JOURNAL, ORIGINALS))
        except OSError as error:
            there = ", ".join(runs_in(folder.parent)) or "none"
            raise CatalogError(
                f"{folder}: no run that has written files. Nothing was changed. Runs in {folder.parent}: {there}"
            ) from error
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkError(
                f"{folder}: another process is writing or undoing this run. Nothing was changed. Wait for it."
            ) from error
        records, end = _read(folder, journal.read())
        journal.truncate(end)  # a record that a kill cut off; its file was never touched
        journal.seek(end)
        yield Journal(folder, records, journal, originals)


def runs_in(writes: Path) -> list[str]:
    """List the runs of a results folder by name, the oldest first."""
    found = [path.parent for path in writes.glob(f"*/{JOURNAL}")]
    return [path.name for path in sorted(found, key=lambda path: (path.stat().st_ctime_ns, path.name))]


def change_of(path: Path, seen: Seen | None, before: bytes, after: bytes, *, whole: bool, journal: Journal) -> Change:
    """Keep what it takes to have a file back, and say what is about to become of it.

    Args:
        path: of the file.
        seen: how it is; None: there is no such file.
        before: what is in it.
        after: what will be.
        whole: keep all of it, not only what differs from what will be.
        journal: where to.

    Raises:
        StorageError: it could not be kept.
    """
    shared = 0 if whole else _shared_end(before, after)
    kept = before[: len(before) - shared]
    return Change(
        path=str(path),
        before_sha256=None if seen is None else sha256(before),
        after_sha256=sha256(after),
        kept_from=journal.keep(kept),
        kept_bytes=len(kept),
        shared_bytes=shared,
        mode=seen and seen.mode,
        mtime_ns=seen and seen.mtime_ns,
    )


def temporary_of(path: Path, run_id: str) -> Path:
    """Name the file beside `path` that a run writes first. A kill may leave it; going on or undoing removes it."""
    return path.with_name(f".folio-{sha256(path.name.encode())[:16]}-{run_id}{TEMPORARY_SUFFIX}")


def put_file(
    path: Path, data: bytes, *, temporary: Path, seen: Seen | None, mode: int | None = None, mtime_ns: int | None = None
) -> None:
    """Put bytes in the place of a file, whole or not at all. Its owner, where the system lets us, and extended attributes stay.

    A crash may still bring the file before it back, until the folder is synced.

    Args:
        path: of the file, which need not be there.
        data: what shall be in it.
        temporary: a file beside it to write first.
        seen: how it was when `data` was made from it; None: it was not there.
        mode: permissions to give it; None: those of any new file.
        mtime_ns: when it shall say it was changed; None: now.

    Raises:
        NotWritten: it is no longer as it was seen, or the disk gave back something else.
        OSError: it could not be written.
    """
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666 if mode is None else 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if seen is not None:
                with suppress(PermissionError):
                    os.chown(temporary, seen.owner, seen.group)
                shutil.copystat(path, temporary)
            if mode is not None:
                temporary.chmod(mode)
            now_ns = time.time_ns()
            os.utime(temporary, ns=(now_ns, now_ns if mtime_ns is None else mtime_ns))
            os.fsync(file.fileno())
        if temporary.read_bytes() != data:
            raise NotWritten("failed", "the disk gave back other bytes than were written")
        if look_at(path) != seen:
            raise NotWritten("changed", "somebody changed it at the same moment")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def look_at(path: Path) -> Seen | None:
    """See how a file is without reading it; None: there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return Seen(
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        mode=stat.S_IMODE(status.st_mode),
        owner=status.st_uid,
        group=status.st_gid,
    )


def sync_folder(folder: Path) -> None:
    """Make sure that names in a folder will be found after a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(data: bytes) -> str:
    """Give the sha256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def read_or_none(path: Path) -> bytes | None:
    """Read a file; None: there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read(folder: Path, data: bytes) -> tuple[list[Record], int]:
    """Read the whole records, and say where they end."""
    end = data.rfind(b"\n") + 1
    try:
        records: list[Record] = [msgspec.json.decode(line, type=Record) for line in data[:end].splitlines()]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{folder}/{JOURNAL}: found a record that cannot be read ({error}), needed it as it was written. "
            f"Nothing was changed. What was kept of the files lies in {folder}/{ORIGINALS}; put back a copy of the journal."
        ) from error
    if records and (not isinstance(records[0], Begun) or records[0].format != FORMAT):
        raise DamagedError(
            f"{folder}/{JOURNAL}: found no journal of format {FORMAT}, needed one. Nothing was changed. "
            "Undo it with the Folio that wrote it: pip install -U folio-vpr"
        )
    return records, end


def _shared_end(before: bytes, after: bytes) -> int:
    """How many bytes at the end of both are the same, by halving."""
    one, other = memoryview(before), memoryview(after)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        # What is known to be the same need not be compared again.
        same = one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]
        low, high = (middle, high) if same else (low, middle - 1)
    return low


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written: {error.strerror or error}. What is to be changed must be logged there first, so "
            "nothing more was changed. Make room or name another folder, and run the same command again to go on."
        ) from error
