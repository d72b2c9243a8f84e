"""Encoding on a real Ray cluster gives the bytes that encoding in this process gives, also when workers are killed."""

import os
import shutil
import signal
import threading
from pathlib import Path

from infra.commits import read_receipts
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.engine.partition import PartitionConfig
from tests.end_to_end.conftest import City

SMALL = PartitionConfig(max_photos=24, min_photos=1)
KILLS = 2


def encode_actors() -> list[int]:
    """Process ids of the actors that encode for this process; another test on this machine may have some too."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                title = (folder / "cmdline").read_bytes()
                if title.startswith(b"ray::") and b"Encode" in title and os.getpid() in ancestors(int(folder.name)):
                    found.append(int(folder.name))
            except OSError:
                continue  # it ended while we looked
    return found


def ancestors(pid: int) -> list[int]:
    """Process ids of the parent of a process, its parent, and so on."""
    found = list[int]()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_segments_are_the_same_bytes_in_process_and_on_ray_with_actors_killed(city: City, tmp_path: Path) -> None:
    database = tmp_path / "database"
    database.mkdir()
    for photo in sorted(city.database.iterdir())[:120]:
        shutil.copy(photo, database)
    here = run_build(
        BuildRequest(recipe="tiny", map_url=str(tmp_path / "here"), photos=(str(database),), partition=SMALL), Settings(threads=2)
    )
    killed: list[int] = []
    done = threading.Event()

    def kill_now_and_then() -> None:
        while not done.wait(1.0) and len(killed) < KILLS:
            for pid in encode_actors()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        on_ray = run_build(
            BuildRequest(recipe="tiny", map_url=str(tmp_path / "ray"), photos=(str(database),), partition=SMALL, workers="ray"),
            Settings(threads=2),
        )
    finally:
        done.set()
        killer.join()

    assert killed, "no actor was seen: the test would prove nothing"
    assert on_ray.photos == here.photos
    receipts = [sorted(path.name for path in (tmp_path / place / "receipts").iterdir()) for place in ("here", "ray")]
    assert receipts[0] == receipts[1]
    ours, theirs = published_segments(tmp_path / "here"), published_segments(tmp_path / "ray")
    assert ours == theirs


def published_segments(folder: Path) -> dict[str, str]:
    """Content of the attempts that have a receipt; a killed actor leaves orphans beside them."""
    receipts = read_receipts(open_storage(str(folder), Settings(threads=1)))
    return {ref.path.replace(receipt.attempt, "attempt"): ref.sha256 for receipt in receipts.values() for ref in receipt.objects}
