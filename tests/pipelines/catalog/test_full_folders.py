"""A folder with a hundred thousand entries is listed in memory that is bounded per entry, and said what was skipped."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.pipelines.catalog.photos import jpeg

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")]

BYTES_PER_ENTRY = 2_000
"""Measured: 1,200. A million entries: 2 GB at most."""

SCRIPT = """
import json, sys
from pathlib import Path
from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import list_photos

def memory(what):
    return int(Path("/proc/self/status").read_text().partition(what)[2].split()[0]) * 1024

def listed(folder):
    return list_photos([folder], settings=Settings(threads=1), limits=PhotoLimits(), needs_position=True)

listed(sys.argv[1])  # what is imported once is not counted
before = memory("VmRSS:")
found = listed(sys.argv[2])
print(json.dumps({"photos": len(found.images), "notes": found.notes, "grown": memory("VmHWM:") - before}))
"""


def test_a_folder_of_a_hundred_thousand_entries_is_listed_in_bounded_memory(tmp_path: Path):
    for name in ("one", "full"):
        (tmp_path / name).mkdir()
    photo = tmp_path / "one" / "photo.jpg"
    photo.write_bytes(jpeg(55.7, 13.0))
    for number in range(100_000):
        (tmp_path / "full" / f"{number:06d}.{'txt' if number % 50 else 'jpg'}").symlink_to(photo)

    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "one"), str(tmp_path / "full")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    found = json.loads(done.stdout.splitlines()[-1])
    assert found["photos"] == 2_000
    assert found["notes"] == [f"{tmp_path / 'full'}: 98000 files that are no photos were skipped: 98000 .txt"]
    assert found["grown"] <= 100_000 * BYTES_PER_ENTRY, f"{found['grown'] / 100_000:.0f} bytes an entry"
