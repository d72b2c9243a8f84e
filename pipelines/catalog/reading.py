"""Fetch the photos of a catalog again, when they are encoded, and make sure they are still the same.

Used by `pipelines.build` and `pipelines.query`. A photo is listed once and read perhaps hours later on another machine. One in a
tar (`survey/shard-0001.tar/a.jpg`) is a range of it; where its photos lie is found once in a process, when the tar is listed or
the first of them is read.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Final, NamedTuple

from infra.settings import Settings
from infra.storage import ObjectInfo, Storage, open_storage
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.locations import Location, locate
from pipelines.catalog.tars import Tar, TarIndex, read_tar, tars_in
from schemas.errors import ObjectMissing, PhotoError, StorageError
from schemas.reasons import RejectReason

MAX_INDEXED: Final = 10_000_000
"""Members of tars whose places are kept, at 24 bytes each; beyond that the tar found first is forgotten."""


class TarIndexes:
    """Where the members of tars lie, for all threads of a process."""

    def __init__(self) -> None:
        self.lock = RLock()
        """Held while a tar is looked through, so that one thread does it and the others wait."""
        self._found: dict[Location, TarIndex] = {}

    def get(self, tar: Location) -> TarIndex | None:
        """Give what is known of a tar, which may have changed since."""
        return self._found.get(tar)

    def put(self, tar: Location, index: TarIndex) -> None:
        """Keep what was found, in place of what was found before."""
        with self.lock:
            self._found.pop(tar, None)
            self._found[tar] = index
            while sum(len(each.names) for each in self._found.values()) > MAX_INDEXED and len(self._found) > 1:
                del self._found[next(iter(self._found))]


_INDEXES: Final = TarIndexes()
"""Of the process and not of a `Storages`: the threads of a build have one each, and would each read every header."""


class Range(NamedTuple):
    """Bytes of an object: a member of a tar."""

    tar: Location
    start: int
    size_bytes: int


class Storages:
    """Opens each storage once, and finds what lies in tars. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: dict[str, Storage] = {}
        self._are_tars: dict[Location, bool] = {}

    def at(self, url: str) -> Storage:
        """Give the storage at a URL."""
        if url not in self._opened:
            self._opened[url] = open_storage(url, self._settings)
        return self._opened[url]

    def get(self, location: Location, *, stop: int | None = None) -> bytes:
        """Read an object or a member of a tar, or the first `stop` bytes of it.

        Raises:
            ObjectMissing: there is none.
            StorageError: its store does not answer.
        """
        member = self._member(location)
        if member is None:
            return self.at(location.storage_url).get(location.path, stop=stop)
        size_bytes = member.size_bytes if stop is None else min(stop, member.size_bytes)
        if not size_bytes:
            return b""
        storage = self.at(member.tar.storage_url)
        return storage.get(member.tar.path, start=member.start, stop=member.start + size_bytes)

    def info(self, location: Location) -> ObjectInfo:
        """Describe an object or a member of a tar, which has neither etag nor time.

        Raises:
            ObjectMissing: there is none.
            StorageError: its store does not answer.
        """
        member = self._member(location)
        if member is None:
            return self.at(location.storage_url).info(location.path)
        return ObjectInfo(path=location.path, size_bytes=member.size_bytes, etag=None, modified_at=None)

    def list_tar(self, tar: Location) -> Tar:
        """Find what a tar holds now, and remember where.

        Raises:
            ObjectMissing: there is no such object.
            StorageError: its store does not answer.
        """
        storage = self.at(tar.storage_url)
        info = storage.info(tar.path)
        found = read_tar(storage, info)
        _INDEXES.put(tar, TarIndex.of(info, found.members))
        self._are_tars[tar] = True
        return found

    def look_again(self, location: Location) -> bool:
        """Make sure that what lies in a tar is looked for where it lies now; False for what lies in none."""
        member = self._member(location)
        if member is None:
            return False
        with _INDEXES.lock:
            index = _INDEXES.get(member.tar)
            if index is None or index.info != self.at(member.tar.storage_url).info(member.tar.path):
                self.list_tar(member.tar)
        return True

    def _member(self, location: Location) -> Range | None:
        """Find what lies in a tar; None for what does not.

        Raises:
            ObjectMissing: the tar has no such member.
        """
        for path in tars_in(location.path):
            tar = Location(location.storage_url, path)
            if not self._is_tar(tar):
                continue
            place = self._index(tar).find(location.path.removeprefix(f"{path}/"))
            if place is None:
                raise ObjectMissing(f"{location.path}: no such file in the tar. Nothing was changed. Check what it holds.")
            return Range(tar, *place)
        return None

    def _is_tar(self, tar: Location) -> bool:
        """Whether it is an object: folders may be called so too."""
        if tar not in self._are_tars:
            try:
                self.at(tar.storage_url).info(tar.path)
            except ObjectMissing:
                self._are_tars[tar] = False
            else:
                self._are_tars[tar] = True
        return self._are_tars[tar]

    def _index(self, tar: Location) -> TarIndex:
        index = _INDEXES.get(tar)
        if index is None:
            with _INDEXES.lock:
                if _INDEXES.get(tar) is None:
                    self.list_tar(tar)
                index = _INDEXES.get(tar)
                assert index is not None, "a tar just found is the last to be forgotten"
        return index


class PhotoReader:
    """Reads photos by their catalog row. Safe to use from many threads."""

    def __init__(self, settings: Settings, limits: PhotoLimits) -> None:
        self._storages = Storages(settings)
        self._limits = limits

    def read(self, uri: str, root: str, *, size_bytes: int, checksum: str) -> bytes:
        """Read one photo.

        Args:
            uri: as in the catalog.
            root: as in the catalog.
            size_bytes: as in the catalog.
            checksum: as in the catalog, sha256:... or etag:...

        Raises:
            PhotoError: it is gone, unreadable, too large, or no longer the one that was listed.
            StorageError: a remote store does not answer. That is no fault of the photo, so it must not cost it its place.
        """
        location = locate(uri, root)
        if size_bytes > self._limits.max_bytes:
            raise PhotoError(RejectReason.TOO_MANY_BYTES, f"{size_bytes:,} bytes, the limit is {self._limits.max_bytes:,}")
        with photo_errors(location):
            data, found = self._read(location, size_bytes, checksum)
            if found != checksum and self._storages.look_again(location):
                data, found = self._read(location, size_bytes, checksum)
        if (len(data), found) != (size_bytes, checksum):
            raise PhotoError(RejectReason.CHANGED, f"listed with {size_bytes:,} bytes and {checksum}, now it is another file")
        return data

    def _read(self, location: Location, size_bytes: int, checksum: str) -> tuple[bytes, str]:
        """Read a photo and its checksum of the kind it was listed with."""
        data = self._storages.get(location, stop=size_bytes + 1)
        return data, f"etag:{self._storages.info(location).etag}" if checksum.startswith("etag:") else sha256_of(data)


def sha256_of(data: bytes) -> str:
    """Give the checksum of a photo's bytes as it stands in a catalog."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@contextmanager
def photo_errors(location: Location) -> Iterator[None]:
    """Turn what a storage raises for one photo into a reject, unless a remote store is to blame.

    Raises:
        PhotoError: the photo is not there, or this machine cannot read it.
        StorageError: a remote store does not answer.
    """
    try:
        yield
    except ObjectMissing as error:
        raise PhotoError(RejectReason.MISSING, "no such file") from error
    except ValueError as error:
        raise PhotoError(RejectReason.UNREADABLE, f"no name that a store can have: {error}") from error
    except StorageError as error:
        if not location.is_local:
            raise
        raise PhotoError(RejectReason.UNREADABLE, str(error)) from error
