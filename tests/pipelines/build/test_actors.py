"""A worker whose GPU fails ends its process, so that Ray brings up another; any other error is told to the driver."""

import subprocess
import sys
import textwrap

import pytest

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
