"""Ray's head as `infra/deploy/compose.yaml` starts it, run for real on 127.0.0.1, and a build that joins it with its token.

The other nodes are missing: kept to 127.0.0.1, Ray lets nobody join by `ray start --address`. So the head is given a CPU here.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from infra.cluster import _loopback_only
from infra.settings import Settings
from tests.conftest import PROJECT
from tests.end_to_end.conftest import Ran

pytestmark = pytest.mark.slow

HEAD = yaml.safe_load((PROJECT / "infra" / "deploy" / "compose.yaml").read_text())["services"]["ray-head"]

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a driver of the cluster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with TemporaryDirectory(prefix="ray-") as home:  # and not pytest's folder: the names of Ray's sockets must be short
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-alone-7d1f0c55", "FOLIO_THREADS": "1"}
        environment = {**os.environ, **_loopback_only(Path(home), Settings(threads=1)), **token}
        here = ("--include-dashboard=false", f"--temp-dir={home}", "--node-ip-address=127.0.0.1")
        command = [part.replace("6379", port).replace("--num-cpus=0", "--num-cpus=1") for part in HEAD["command"][1:]]
        head = subprocess.Popen(
            [RAY, *command, *here],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until_healthy(head, port, environment)
            yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def wait_until_healthy(head: subprocess.Popen[bytes], port: str, environment: dict[str, str]) -> None:
    """By the health check of the compose file."""
    check = [part.replace("6379", port) for part in HEAD["healthcheck"]["test"][2:]]
    for _ in range(30):
        assert head.poll() is None, "Ray's head ended"
        if subprocess.run([RAY, *check], env=environment, capture_output=True, check=False).returncode == 0:
            return
    raise AssertionError("Ray's head was not healthy in time")


def test_a_build_joins_with_the_token_and_a_stranger_does_not(
    cluster: dict[str, str], folio_process: Callable[..., Ran], tmp_path: Path
):
    photos = PROJECT / "tests" / "golden_maps" / "photos"
    guessed = {**cluster, "RAY_AUTH_TOKEN": "guessed-token-of-a-stranger-1a2b3c4d"}

    stranger = folio_process("build", tmp_path / "map", photos, "--recipe", "tiny", "--workers", "ray", env=guessed)
    built = folio_process("build", tmp_path / "map", photos, "--recipe", "tiny", "--workers", "ray", "--json", env=cluster)

    assert stranger.code == 1
    assert stranger.err.splitlines()[-1].startswith("folio: Ray at 127.0.0.1:"), stranger.err
    assert built.code == 0, built.err
    assert built.json()["encoded"] == 3
