"""Find the files of a tar where they lie in it, without unpacking: each is then read as a range of the tar.

Used by `reading`. Python's `tarfile` reads the headers, through a window that asks the storage for little at a time and never for
much at once, so that a tar made to hurt costs what its headers weigh. Its order of members counts for nothing but names given
twice: the last one stands, as it would after unpacking.
"""

import hashlib
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from infra.storage import ObjectInfo, Storage
from schemas.errors import PhotoError
from schemas.reasons import RejectReason

ENDING: Final = ".tar"
COMPRESSED_ENDINGS: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
COMPRESSED_ADVICE: Final = (
    "a compressed tar, of which nothing can be read without all before it; decompress it first (gunzip, unxz, zstd -d)"
)

MAX_MEMBERS: Final = 500_000
"""Of one tar. Each takes about 400 bytes while the tar is listed, and 24 after."""

MAX_HEADER_BYTES: Final = 2**20
"""Of one member: its header, long names and extended attributes. Usual are 512 to 2,048."""

MAX_NAME_CHARACTERS: Final = 1_024

WINDOW_BYTES: Final = 64 * 1024
"""Read at once. Small photos come with the headers after them; of large ones only this much is read twice."""

AFTER_END_BYTES: Final = 64 * 1024
"""Looked at behind the mark of the end, to notice a second tar in the same file."""

TAR_ERRORS: Final = (tarfile.TarError, ValueError, RecursionError, OverflowError, IndexError, KeyError)
"""What `tarfile` raises on broken headers.

In 120,000 mutated tars TarError, ValueError (maps of sparse files) and RecursionError (long names upon long names) came up; the
others stand in the code on the same path.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of a tar."""

    name: str
    """Relative, without `.` and `..`; where `problem` says that it leads out, as it stands in the tar."""

    start: int
    """First byte in the tar."""

    size_bytes: int

    problem: PhotoError | None = None
    """Why it must not be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tar:
    """What a tar holds."""

    members: list[Member]
    """Of files; folders are left out."""

    problem: PhotoError | None = None
    """Why some of its members may be missing here."""

    has_end: bool = True
    """Whether it ends as a tar must. One that does not may have been cut off between two members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TarIndex:
    """Where the members of a tar lie, by a hash of their names: of millions of photos only this is kept."""

    info: ObjectInfo
    """Of the tar it was made from."""

    names: np.ndarray
    """(n,) uint64, ascending."""

    starts: np.ndarray
    """(n,) int64."""

    sizes: np.ndarray
    """(n,) int64."""

    @classmethod
    def of(cls, info: ObjectInfo, members: Sequence[Member]) -> Self:
        """Keep the members that may be read."""
        good = [member for member in members if member.problem is None]
        names = np.array([_hash(member.name) for member in good], np.uint64)
        order = np.argsort(names)
        starts = np.array([member.start for member in good], np.int64)
        sizes = np.array([member.size_bytes for member in good], np.int64)
        return cls(info=info, names=names[order], starts=starts[order], sizes=sizes[order])

    def find(self, name: str) -> tuple[int, int] | None:
        """Give first byte and size of a member; None where there is none of that name."""
        wanted = np.uint64(_hash(name))
        at = int(np.searchsorted(self.names, wanted))
        if at == len(self.names) or self.names[at] != wanted:
            return None
        return int(self.starts[at]), int(self.sizes[at])


def tars_in(path: str) -> Iterator[str]:
    """Give each leading part of a path that may be a tar with the rest in it, the shortest first."""
    parts = path.split("/")
    for end, part in enumerate(parts[:-1], start=1):
        if part.lower().endswith(ENDING):
            yield "/".join(parts[:end])


def read_tar(storage: Storage, info: ObjectInfo) -> Tar:
    """Find what a tar holds.

    Args:
        storage: where it lies.
        info: of the tar.

    Raises:
        StorageError: the store does not answer. A tar that is damaged, cut off or no tar is no error.
    """
    window = _Window(storage, info)
    walk = _Walk(window, info.size_bytes)
    try:
        for member in walk:
            if len(walk.members) == MAX_MEMBERS:
                problem = PhotoError(RejectReason.UNREADABLE, f"more than {MAX_MEMBERS:,} files; those were taken. Split it")
                return Tar(members=walk.members, problem=problem)
            walk.take(member)
    except TAR_ERRORS as error:
        return _broken(walk, window, str(error) or type(error).__name__)
    return _ended(walk, window)


class _Walk:
    """Goes from header to header of a tar and keeps what it finds."""

    def __init__(self, window: "_Window", size_bytes: int) -> None:
        self.members: list[Member] = []
        self.offset = 0
        """Up to here the tar was understood."""
        self._window = window
        self._size_bytes = size_bytes
        self._places: dict[str, int] = {}

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        tar = tarfile.TarFile(fileobj=self._window, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            yield member
            if tar.offset <= self.offset:  # a negative size would lead back, and round in a circle
                raise tarfile.ReadError("a member of negative size")
            self.offset = tar.offset
            self._window.next_member()

    def take(self, found: tarfile.TarInfo) -> None:
        """Keep a member, unless it is a folder."""
        if found.isdir():
            return
        problem = self._problem(found)
        leads_out = problem is not None and problem.reason == RejectReason.OUTSIDE_ROOT
        name = _shown(found.name if leads_out else posixpath.normpath(found.name))
        if name in self._places:
            earlier = self.members[self._places[name]]
            detail = "another file of this name stands further back in the tar, and was taken"
            self.members[self._places[name]] = replace(earlier, problem=PhotoError(RejectReason.DUPLICATE_NAME, detail))
        if problem is None:
            self._places[name] = len(self.members)
        self.members.append(Member(name=name, start=found.offset_data, size_bytes=found.size, problem=problem))

    def _problem(self, found: tarfile.TarInfo) -> PhotoError | None:
        if len(found.name) > MAX_NAME_CHARACTERS:
            return PhotoError(RejectReason.UNREADABLE, f"a name of {len(found.name):,} characters")
        if found.name.startswith("/") or ".." in found.name.split("/"):
            return PhotoError(RejectReason.OUTSIDE_ROOT, "the name leads out of the tar")
        if found.issym() or found.islnk():
            return PhotoError(RejectReason.UNREADABLE, f"a link to {_shown(found.linkname)}; links in tars are not followed")
        if not found.isreg():
            return PhotoError(RejectReason.UNREADABLE, f"no file, but a device, a pipe or the like (type {found.type!r})")
        if found.issparse():
            return PhotoError(RejectReason.UNREADABLE, "stored with holes (sparse); pack it again without --sparse")
        if found.size < 0 or found.offset_data + found.size > self._size_bytes:
            return PhotoError(RejectReason.TRUNCATED, f"{found.size:,} bytes, but the tar ends before")
        return None


class _Window:
    """A tar as the file that `tarfile` wants: reads a little ahead, and refuses to read much for one member."""

    def __init__(self, storage: Storage, info: ObjectInfo) -> None:
        self._storage = storage
        self._info = info
        self._position = 0
        self._start = 0
        self._bytes = b""
        self._left = MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """Read on."""
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        data = self.at(self._position, size)
        self._position += len(data)
        return data

    def seek(self, position: int) -> None:
        """Go to a byte."""
        if position < 0:
            raise tarfile.ReadError("a member before the beginning")
        self._position = position

    def tell(self) -> int:
        """Say where the next byte is read."""
        return self._position

    def next_member(self) -> None:
        """Allow as many header bytes again."""
        self._left = MAX_HEADER_BYTES

    def at(self, start: int, size: int) -> bytes:
        """Read bytes that may lie beyond the end, of which there are none."""
        if not self._start <= start <= start + size <= self._start + len(self._bytes):
            stop = min(start + max(size, WINDOW_BYTES), self._info.size_bytes)
            self._start, self._bytes = start, self._storage.get(self._info.path, start=start, stop=stop) if start < stop else b""
        return self._bytes[start - self._start :][:size]


def _broken(walk: _Walk, window: _Window, why: str) -> Tar:
    """What is left of a tar that `tarfile` refuses from `walk.offset` on."""
    head = window.at(0, 512)
    if not head:
        return Tar(members=[], problem=PhotoError(RejectReason.EMPTY_FILE, "0 bytes"))
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return Tar(members=[], problem=PhotoError(RejectReason.UNSUPPORTED_FORMAT, COMPRESSED_ADVICE))
    if walk.offset == 0:
        return Tar(members=walk.members, problem=PhotoError(RejectReason.DAMAGED, f"no tar that can be read: {why}"))
    if not window.at(walk.offset, 1):
        return Tar(members=walk.members, has_end=False)
    detail = f"cannot be read from byte {walk.offset:,} on ({why}); the {len(walk.members):,} files before were taken"
    return Tar(members=walk.members, problem=PhotoError(RejectReason.DAMAGED, detail))


def _ended(walk: _Walk, window: _Window) -> Tar:
    """What a tar holds of which `tarfile` sees no more members: at its end, or, which it does not say, at a broken header."""
    block = window.at(walk.offset, 512)
    if block.strip(b"\0"):
        return _broken(walk, window, "no header there")
    if window.at(walk.offset, AFTER_END_BYTES).strip(b"\0"):
        detail = f"what follows its end at byte {walk.offset:,} was not read; if these are several tars in one file, split it"
        return Tar(members=walk.members, problem=PhotoError(RejectReason.UNREADABLE, detail))
    return Tar(members=walk.members, has_end=len(block) == 512)


def _shown(name: str) -> str:
    """A name as it is, or, where it is endless, its beginning and its end."""
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[:MAX_NAME_CHARACTERS]}...{name[-8:]}"


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
