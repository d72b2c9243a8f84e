"""The nights of `infra/deploy/prefect.yaml`, on a real Prefect server and process worker on 127.0.0.1."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.commits import read_head
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.maintain.verify import verify
from tests.conftest import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PREFECT_YAML = PROJECT / "infra" / "deploy" / "prefect.yaml"

LEASE_S = 300
"""How long Prefect keeps the place of a run it hears nothing of."""


class Nights:
    """The deployments on a server, and the folders they work on."""

    def __init__(self, prefect: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.photos, self.map, self.geotags = folder / "photos", folder / "map", folder / "geotags"
        self.photos.mkdir()
        variables = {
            "FOLIO_MAP": str(self.map),
            "FOLIO_PHOTOS": str(self.photos),
            "FOLIO_ARCHIVE": str(folder / "archive"),
            "FOLIO_GEOTAGS": str(self.geotags),
            "FOLIO_WORKERS": "here",
            "FOLIO_THREADS": "1",
            "FOLIO_METRICS_FILE": str(folder / "folio-{action}.prom"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_LOGGING_LEVEL": "INFO",
        }
        self.environment = {**os.environ, **prefect, **variables}
        self._client = httpx.Client(base_url=prefect["PREFECT_API_URL"], timeout=30)

    def close(self) -> None:
        self._client.close()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the server, and again while its SQLite is busy."""
        for _ in range(20):
            answer = self._client.request(method, path, json=body)
            if answer.status_code != 503:
                break
            time.sleep(0.5)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deployment(self, name: str) -> dict[str, Any]:
        return self.api("GET", f"/deployments/name/{name}")

    def start(self, name: str, **parameters: Any) -> str:
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return self.api("POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"]

    def run(self, run_id: str) -> dict[str, Any]:
        return self.api("GET", f"/flow_runs/{run_id}")

    def runs(self, name: str) -> list[dict[str, Any]]:
        chosen = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self.api("POST", "/flow_runs/filter", chosen)

    def artifact(self, run_id: str, key: str) -> str:
        chosen = {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}}
        (found,) = self.api("POST", "/artifacts/filter", chosen)
        return found["data"]

    def numbers(self, action: str) -> dict[str, float]:
        """What the last run of a kind left for node-exporter."""
        text = (self.folder / f"folio-{action}.prom").read_text()
        found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {" ".join([each.name, *filter(None, [each.labels.get("decision")])]): each.value for each in found}

    def wait_for(self, run_id: str, *types: str, within_s: float = 240) -> dict[str, Any]:
        return eventually(lambda: run if (run := self.run(run_id))["state_type"] in types else None, within_s=within_s)

    def head(self) -> int:
        return read_head(open_storage(str(self.map), Settings(threads=1))).version

    def photos_in_map(self) -> int:
        return int(read_head(open_storage(str(self.map), Settings(threads=1))).statistics["photos"])

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A worker in a folder without a checkout."""
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "folio", "--type", "process"]
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, cwd=work, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it takes minutes to end by itself, and has nothing to lose
            process.wait()


def eventually(look: Callable[[], Any], *, within_s: float) -> Any:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {within_s:.0f} s")


def at(time_: str) -> datetime:
    return datetime.fromisoformat(time_)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def nights(prefect_api: dict[str, str], tmp_path: Path) -> Iterator[Nights]:
    found = Nights(prefect_api, tmp_path)
    if "folio" not in found.prefect("work-pool", "ls"):
        found.prefect("work-pool", "create", "folio", "--type", "process")
    found.prefect("deploy", "--all", "--prefect-file", str(PREFECT_YAML))
    yield found
    found.close()


def test_a_schedule_runs_nights_one_at_a_time_and_cancels_those_that_find_another_at_work(photos: Path, nights: Nights):
    for photo in sorted((photos / "database").iterdir())[:24]:
        shutil.copy(photo, nights.photos)
    nightly = nights.deployment("build/nightly-rebuild")
    assert nightly["pull_steps"] == []
    assert nightly["entrypoint"] == "pipelines.build.flow.build_flow"
    every_few_seconds = [{"schedule": {"interval": 4}, "active": True}]
    nights.api("POST", f"/deployments/{nightly['id']}/schedules", every_few_seconds)

    with nights.worker():
        eventually(lambda: states(nights)[:40].count("COMPLETED") >= 2 and "CANCELLED" in states(nights), within_s=240)
        for one in nights.deployment("build/nightly-rebuild")["schedules"]:
            nights.api("DELETE", f"/deployments/{nightly['id']}/schedules/{one['id']}")

        assert set(states(nights)) <= {"COMPLETED", "CANCELLED", "RUNNING", "PENDING", "SCHEDULED"}
        done = sorted(
            (at(run["start_time"]), at(run["end_time"])) for run in nights.runs("build/nightly-rebuild") if completed(run)
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(done))
        assert nights.head() == 1, "the second night found nothing to do"

        shutil.copytree(photos / "queries", nights.folder / "archive")
        answered = nights.wait_for(nights.start("geotag-archive/geotag-archive"), "COMPLETED")
        assert (nights.geotags / "report.html").exists()
        assert (nights.geotags / "report.html").as_uri() in nights.artifact(answered["id"], "geotag-report")
        photos_of = {row["photos"]: row["number"] for row in json.loads(nights.artifact(answered["id"], "geotag-photos"))}
        build, archive = nights.numbers("build"), nights.numbers("geotag")
        assert (build["folio_run_failed"], build["folio_map_photos"], archive["folio_map_photos"]) == (0, 24, 24)
        assert archive["folio_run_failed"] == archive["folio_photos_left"] == 0
        assert archive["folio_photos_seen_total"] == photos_of["seen"]
        assert archive["folio_archive_photos answered"] == photos_of["answered"]

        new = sorted((photos / "database").iterdir())[24:28]
        nights.prefect("deployment", "run", "backfill/backfill", "--param", f"photos={json.dumps([str(new[0]), str(new[1])])}")
        nights.start("backfill/backfill", photos=[str(new[2]), str(new[3])])
        for run in nights.runs("backfill/backfill"):  # one waits for the other
            nights.wait_for(run["id"], "COMPLETED")
        assert nights.photos_in_map() == 28


def states(nights: Nights) -> list[str]:
    return [run["state_type"] for run in nights.runs("build/nightly-rebuild")]


def completed(run: dict[str, Any]) -> bool:
    return run["state_type"] == "COMPLETED"


def test_a_night_that_is_cancelled_or_killed_leaves_the_old_map_and_the_next_one_finishes(photos: Path, nights: Nights):
    database = sorted((photos / "database").iterdir())
    for photo in database[:8]:
        shutil.copy(photo, nights.photos)
    with nights.worker() as worker:
        nights.wait_for(nights.start("build/nightly-rebuild"), "COMPLETED")
        assert nights.head() == 1
        for photo in database[8:]:
            shutil.copy(photo, nights.photos)

        cancelled = begun(nights)
        nights.prefect("flow-run", "cancel", cancelled)
        nights.wait_for(cancelled, "CANCELLED")
        is_intact(nights, 8)
        said = nights.artifact(cancelled, "build-failed")
        assert f"Readers of {nights.map} see version 1" in said
        assert "prefect deployment run 'build/nightly-rebuild'" in said
        assert nights.numbers("build")["folio_run_failed"] == 1

        killed = begun(nights)
        for child in children(worker.pid):
            os.kill(child, signal.SIGKILL)
        nights.wait_for(killed, "CRASHED")
        is_intact(nights, 8)
        assert "folio_run_failed" not in nights.numbers("build"), "it could say nothing more, and nobody said it had ended well"

        orphaned = begun(nights)
        os.killpg(worker.pid, signal.SIGKILL)  # as when the machine goes: nobody is left to say that the run has ended
        worker.wait()
    is_intact(nights, 8)

    with nights.worker():
        too_early = nights.start("build/nightly-rebuild")
        nights.wait_for(too_early, "CANCELLED")
        assert nights.run(orphaned)["state_type"] == "RUNNING"

        time.sleep(LEASE_S)
        last = nights.start("build/nightly-rebuild")
        nights.wait_for(last, "COMPLETED", within_s=400)

    is_intact(nights, len(database))
    assert nights.head() == 2
    assert nights.numbers("build")["folio_run_failed"] == 0
    assert '"photos": "known before", "number": 0' not in nights.artifact(last, "build-photos"), "what was finished is kept"


def begun(nights: Nights) -> str:
    """Start a night and wait until it encodes."""
    run = nights.start("build/nightly-rebuild")
    before = set((nights.map / "segments").iterdir())
    eventually(lambda: set((nights.map / "segments").iterdir()) - before, within_s=240)
    assert nights.run(run)["state_type"] == "RUNNING"
    return run


def is_intact(nights: Nights, photos: int) -> None:
    assert nights.photos_in_map() == photos
    assert verify(open_storage(str(nights.map), Settings(threads=1))).problems == []
