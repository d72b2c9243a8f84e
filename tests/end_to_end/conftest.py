"""A small city and its map, made once for all end-to-end tests, and the `folio` command as a child process."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from infra.settings import Settings
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest, BuildSummary
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.cli import main


@dataclass(frozen=True, kw_only=True)
class City:
    """Photos of the sample city, and a map built from its database."""

    database: Path
    queries: Path
    map: Path
    built: BuildSummary


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(threads=2)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """database/ and queries/ of the sample city."""
    directory = tmp_path_factory.mktemp("city")
    write_sample_city(directory, places=66, queries=16, unmapped=2)  # 264 photos: just enough to train a quantizer
    return directory


@pytest.fixture(scope="session")
def city(photos: Path, tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> City:
    place = tmp_path_factory.mktemp("map") / "map"
    built = run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(photos / "database"),)), settings)
    return City(database=photos / "database", queries=photos / "queries", map=place, built=built)


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a `folio` command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def folio() -> Callable[..., Ran]:
    """Run the command in this process, which saves importing torch each time."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Ran:
        done = CliRunner().invoke(
            main, [str(argument) for argument in arguments], prog_name="folio", env={"FOLIO_THREADS": "2", **(env or {})}
        )
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Ran(code=done.exit_code, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def folio_process() -> Callable[..., Ran]:
    """Run the command as a user does: another process, no terminal."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-c", "from pipelines.cli import main; main(prog_name='folio')", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "FOLIO_THREADS": "2", **(env or {})},
        )
        return Ran(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


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
