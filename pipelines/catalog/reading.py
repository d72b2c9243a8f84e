"""Fetch the photos of a catalog again, when they are encoded, and make sure they are still the same.

Used by `pipelines.build` and `pipelines.query`. A photo is listed once and read perhaps hours later on another machine.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.locations import Location, locate
from schemas.errors import ObjectMissing, PhotoError, StorageError
from schemas.reasons import RejectReason


class Storages:
    """Opens each storage once. Safe to use from many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: dict[str, Storage] = {}

    def at(self, url: str) -> Storage:
        """Give the storage at a URL."""
        if url not in self._opened:
            self._opened[url] = open_storage(url, self._settings)
        return self._opened[url]


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
        storage = self._storages.at(location.storage_url)
        with photo_errors(location):
            data = storage.get(location.path, stop=size_bytes + 1)
            found = f"etag:{storage.info(location.path).etag}" if checksum.startswith("etag:") else sha256_of(data)
        if (len(data), found) != (size_bytes, checksum):
            raise PhotoError(RejectReason.CHANGED, f"listed with {size_bytes:,} bytes and {checksum}, now it is another file")
        return data


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
