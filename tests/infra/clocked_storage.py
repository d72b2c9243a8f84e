"""A store in a dictionary, with a clock that tests turn."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Lock

from infra.storage import ObjectInfo
from schemas.errors import ObjectMissing


class ClockedStorage:
    """Objects with the time of a clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.url = "memory://clocked"
        self.now = datetime(2026, 11, 1, tzinfo=UTC)
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._lock = Lock()

    def turn(self, **time: float) -> None:
        """Move the clock on, as `timedelta` takes it."""
        self.now += timedelta(**time)

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        with self._lock:
            return self._found(path)[0][start:stop]

    def put(self, path: str, data: bytes) -> None:
        with self._lock:
            self._objects[path] = data, self.now

    def put_if_absent(self, path: str, data: bytes) -> bool:
        with self._lock:
            if path in self._objects:
                return False
            self._objects[path] = data, self.now
            return True

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        with self._lock:
            found = [self._describe(path) for path in sorted(self._objects) if path.startswith(folder)]
        yield from found

    def leftovers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())

    def info(self, path: str) -> ObjectInfo:
        with self._lock:
            self._found(path)
            return self._describe(path)

    def delete(self, path: str) -> None:
        with self._lock:
            self._objects.pop(path, None)

    def paths(self, prefix: str = "") -> set[str]:
        """Name what is there."""
        return {info.path for info in self.list(prefix)}

    def _found(self, path: str) -> tuple[bytes, datetime]:
        if path not in self._objects:
            raise ObjectMissing(f"{path}: no such object")
        return self._objects[path]

    def _describe(self, path: str) -> ObjectInfo:
        data, modified_at = self._objects[path]
        return ObjectInfo(path=path, size_bytes=len(data), etag=None, modified_at=modified_at)
