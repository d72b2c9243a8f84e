"""Photos of 64 and of 500 megapixels in a build: the memory it takes is what its plan says."""

import json
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from fol_model.recipes import recipe_named
from fol_model.weights import seeded_weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")]

SCRIPT = """
import json, os, sys, threading
from pathlib import Path
from infra.settings import Settings
from pipelines.build.build import plan_build, run_build
from pipelines.build.request import BuildRequest
from pipelines.catalog.limits import PhotoLimits

def resident_bytes():
    total = 0
    for folder in [*Path("/proc").iterdir()]:
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdecimal() else None
        except OSError:  # it has just ended
            continue
        if state and str(os.getpid()) in (folder.name, state[1]):
            total += int(state[21]) * 4096
    return total

def watch():
    while not done.wait(0.02):
        peak.append(resident_bytes())

peak, done = [], threading.Event()
request = BuildRequest(
    recipe=sys.argv[3],
    weights=sys.argv[4] or None,
    map_url=sys.argv[1],
    photos=(sys.argv[2],),
    utm_zone="33U",
    limits=PhotoLimits(decode_timeout_s=120),
)
planned = plan_build(request, Settings(threads=1)).plan.memory_bytes
threading.Thread(target=watch, daemon=True).start()
built = run_build(request, Settings(threads=1))
done.set()
print(json.dumps({"photos": built.photos, "rejected": built.rejected, "planned": planned, "peak": max(peak)}))
"""


def white_png(width: int, height: int) -> bytes:
    """A picture that is small as a file, made row by row: grey of one bit a pixel, or colour where the limit allows that."""
    colour = width * height <= 64_000_000
    row = b"\0" + b"\xff" * (width * 3 if colour else width // 8)
    packer = zlib.compressobj(1)
    header = struct.pack(">IIBBBBB", width, height, 8 if colour else 1, 2 if colour else 0, 0, 0, 0)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@pytest.mark.parametrize("recipe", ["tiny", "fol_vits14"])
def test_the_largest_photos_allowed_take_no_more_memory_than_planned_and_larger_ones_none(tmp_path: Path, recipe: str):
    """All of them whole: a PNG cannot be decoded smaller, as a JPEG can. FoL's recipes have all colours as floats at once."""
    weights = ""
    if recipe != "tiny":
        weights = str(tmp_path / "weights.safetensors")
        save_file(seeded_weights(replace(recipe_named(recipe), seed=1)), weights)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "@500000@6100000@500 megapixels.png").write_bytes(white_png(25_000, 20_000))
    largest = white_png(8_000, 8_000)
    for number in range(4):
        (photos / f"@{500_001 + number}@6100000@64 megapixels.png").write_bytes(largest)

    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "map"), str(photos), recipe, weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    found = json.loads(done.stdout.splitlines()[-1])
    assert found["photos"] == 4
    assert found["rejected"] == {"too-many-pixels": 1}
    print(f"{recipe}: {found['peak'] / 1e9:.2f} of {found['planned'] / 1e9:.2f} GB planned")
    assert found["peak"] <= found["planned"]
