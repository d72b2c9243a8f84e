"""The disk fills up during every kind of write: a clear error, nothing at a final name, and a resume that completes.

A small disk of its own (tmpfs) is filled to the last byte right before the write, where this process may mount one. Elsewhere a
limit on the size of its files plays the full disk.
"""

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import pytest

from infra.commits import create_tag, list_tags, list_versions
from infra.settings import Settings
from infra.storage import LocalStorage, open_storage
from pipelines.build.build import run_build
from schemas.errors import CommitUnknown, StorageError
from tests.faults.conftest import SmallCity, make_city
from tests.faults.profile import FULL, record

DISK_BYTES = 128 << 20
FULL_DISK = "No space left on device|File too large"

BUILT = {
    "lease": "/lease",
    "plan": "/plan.json",
    "images": "/images.parquet",
    "descriptors": "/descriptors.parquet",
    "rejects": "/rejects.parquet",
    "Zarr metadata": "zarr.json",
    "Zarr chunks": "/c/",
    "receipt": "receipts/",
    "quantizer": "/quantizer.faiss",
    "shard": "/shard-",
    "manifest": "manifests/",
}
"""What a build writes, and how its path is known."""

Write = Callable[[LocalStorage, str, bytes], object]


class Disk:
    """A folder on a small disk of its own, or on one whose files this process may not let grow."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "folio-test", str(folder)]
        self.mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
        self._lock = Lock()

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def files(self) -> set[str]:
        return {str(file) for file in self.folder.rglob("*") if file.is_file()}

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room while the block runs."""
        with self._lock, self._ballast() if self.mounted else limited_files():
            yield

    @contextmanager
    def _ballast(self) -> Iterator[None]:
        ballast = self.folder / "ballast"
        try:
            for block_bytes in (1 << 20, 4096):
                with suppress(OSError), ballast.open("ab", buffering=0) as file:
                    while file.write(bytes(block_bytes)):
                        pass
            yield
        finally:
            ballast.unlink()


@contextmanager
def limited_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.unmount()


@contextmanager
def full_at(disk: Disk, part_of_path: str) -> Iterator[list[str]]:
    """Fill the disk up during every write of an object with this in its path, and list these paths."""
    hit: list[str] = []

    def fill_first(write: Write) -> Write:
        def disturbed(storage: LocalStorage, path: str, data: bytes) -> object:
            if part_of_path not in path:
                return write(storage, path, data)
            hit.append(path)
            with disk.full():
                return write(storage, path, data)

        return disturbed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "put", fill_first(LocalStorage.put))
        patch.setattr(LocalStorage, "put_if_absent", fill_first(LocalStorage.put_if_absent))
        yield hit


def fails_and_leaves_nothing(disk: Disk, part_of_path: str, work: Callable[[], object]) -> None:
    """Do work while the disk is full for one kind of object."""
    before = disk.files()
    with full_at(disk, part_of_path) as hit, pytest.raises((StorageError, CommitUnknown), match=FULL_DISK) as caught:
        work()
    new = disk.files() - before
    assert hit, f"no object with {part_of_path} in its path was written"
    assert "\n" not in str(caught.value)
    assert not [file for file in new if part_of_path in file]
    assert not [file for file in new if file.endswith((".folio-tmp", "ballast"))]


@pytest.mark.timeout(1800 if FULL else 300)
def test_a_disk_that_fills_up_during_any_write_shows_nothing_half_done_and_the_resume_completes(
    disk: Disk, small_city: SmallCity, tmp_path: Path
):
    city = make_city(tmp_path / "city", places=66) if FULL else small_city  # 264 photos: enough to train a quantizer
    kinds = {kind: path for kind, path in BUILT.items() if FULL or kind != "quantizer"}
    began, settings, map_url = time.monotonic(), Settings(threads=1), str(disk.folder / "map")
    request, storage = city.request(map_url), open_storage(map_url, settings)

    for part_of_path in kinds.values():
        fails_and_leaves_nothing(disk, part_of_path, lambda: run_build(request, settings))
        assert list_versions(storage) == []
    run_build(request, settings)
    city.check(storage)

    fails_and_leaves_nothing(disk, "tags/", lambda: create_tag(storage, "best", 1))
    create_tag(storage, "best", 1)
    assert list_tags(storage) == {"best": 1}

    note = f"{', '.join([*kinds, 'tag'])}; {'a tmpfs' if disk.mounted else 'a limit on file sizes'}"
    record("disk full during a write", rounds=len(kinds) + 1, failures=0, seconds=time.monotonic() - began, note=note)
