"""A build as a flow, known to a real Prefect server on 127.0.0.1."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.conftest import City, Ran


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a fresh server."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, **environment, "PREFECT_API_URL": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_healthy(environment["PREFECT_API_URL"], server)
        yield environment
    finally:
        server.terminate()
        server.wait(30)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the Prefect server ended"
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the Prefect server did not answer within a minute")


def test_a_build_is_a_flow_run_with_its_numbers_as_artifacts(
    city: City, folio_process: Callable[..., Ran], prefect_api: dict[str, str], tmp_path: Path
) -> None:
    database = tmp_path / "database"
    database.mkdir()
    for photo in sorted(city.database.iterdir())[:20]:
        shutil.copy(photo, database)

    ran = folio_process("build", tmp_path / "map", database, "--recipe", "tiny", "--json", env=prefect_api)

    assert ran.code == 0, ran.err
    assert ran.json()["photos"] == 20
    api = prefect_api["PREFECT_API_URL"]
    (flow_run,) = httpx.post(f"{api}/flow_runs/filter", json={}).json()
    tasks = httpx.post(f"{api}/task_runs/filter", json={}).json()
    artifacts = {artifact["key"]: artifact["data"] for artifact in httpx.post(f"{api}/artifacts/filter", json={}).json()}
    assert flow_run["state"]["type"] == "COMPLETED"
    stages = ["catalog", "encode", "plan", "publish", "purge", "rewrite"]
    assert sorted(task["name"].split("-")[0] for task in tasks) == stages
    assert set(artifacts) == {"build-plan", "build-summary"}
    assert '"photos", "value": "20"' in artifacts["build-summary"]


def test_what_stops_a_flow_is_still_one_line(
    folio_process: Callable[..., Ran], prefect_api: dict[str, str], tmp_path: Path
) -> None:
    ran = folio_process("build", tmp_path / "map", tmp_path / "nowhere", env=prefect_api)

    assert ran.code == 1
    # On a slow machine Prefect adds, at the very end, that it is still sending its events.
    own = [line for line in ran.err.strip().splitlines() if "EventsWorker" not in line]
    assert "nowhere" in own[-1]
    assert not (tmp_path / "map").exists()


def test_a_server_that_does_not_answer_is_said_in_one_line(folio_process: Callable[..., Ran], tmp_path: Path) -> None:
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1"}

    ran = folio_process("build", tmp_path / "map", tmp_path, env=nobody)

    assert ran.code == 1
    assert "Prefect at http://127.0.0.1:9/api" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
