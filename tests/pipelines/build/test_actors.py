"""A worker whose GPU fails ends its process, so that Ray brings up another; any other error is told to the driver. The segments
that a worker holds share its decoders.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.faults.noise_map import write_photos

SCRIPT = """
from queue import SimpleQueue
from types import SimpleNamespace
from pipelines.build.actors import _EncodeActor
from schemas.errors import DeviceError, ModelError

def run(partition, on_photo):
    raise {error}("cuda:0: found a GPU that answers no more")

actor = _EncodeActor.__new__(_EncodeActor)
actor._workers = SimpleQueue()
actor._workers.put(SimpleNamespace(run=run))
actor.run(None)
"""


@pytest.mark.parametrize(("error", "status"), [("DeviceError", 75), ("ModelError", 1)])
def test_a_gpu_that_fails_ends_the_process_of_its_worker_and_the_log_says_why(error: str, status: int):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT.format(error=error))], capture_output=True, text=True, check=False
    )

    assert done.returncode == status
    assert "cuda:0: found a GPU that answers no more" in done.stderr


TWO_SEGMENTS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from pipelines.build.actors import _EncodeActor
from pipelines.build.encode import EncodeJob
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import list_photos
from pipelines.engine.partition import Partition
from infra.settings import Settings

started = []

class Counted(Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        started.append(self)

import subprocess
subprocess.Popen = Counted
place, photos = sys.argv[1:]
images = list_photos([photos], settings=Settings(threads=1), needs_position=True, limits=PhotoLimits()).images
listing = len(started)
job = EncodeJob(map_url=place, recipe="tiny", weights=None, device="cpu", limits=PhotoLimits(), run_id="r")
actor = _EncodeActor(job, {})
halves = [Partition(segment_id=name, images=images.slice(start, 6)) for name, start in (("a" * 32, 0), ("b" * 32, 6))]
with ThreadPoolExecutor(2) as both:
    rows = [done.receipt.rows for done in both.map(actor.run, halves)]
print(json.dumps([rows, len(started) - listing]))
"""


def test_the_segments_that_a_worker_holds_share_one_decoder_process(tmp_path: Path):
    """So many photos that none is added: that is decided after 16 of them."""
    photos = write_photos(tmp_path / "photos", range(12))
    done = subprocess.run(
        [sys.executable, "-c", TWO_SEGMENTS, str(tmp_path / "map"), str(photos)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[6, 6], 1]
