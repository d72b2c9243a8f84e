"""A small city and its map, made once for all end-to-end tests, and the `folio` command as a child process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
