"""A build as a flow, known to a real Prefect server on 127.0.0.1."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.end_to_end.conftest import City, Ran


def test_a_build_is_a_flow_run_with_its_numbers_as_artifacts(
    city: City, folio_process: Callable[..., Ran], prefect_api: dict[str, str], tmp_path: Path
) -> None:
    database = tmp_path / "database"
    database.mkdir()
    for photo in sorted(city.database.iterdir())[:20]:
        shutil.copy(photo, database)
    (database / "notes.jpg").write_text("no photo")

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
    assert set(artifacts) == {"build-plan", "build-progress", "build-photos", "build-seconds", "build-summary"}
    assert '"photos", "value": "20"' in artifacts["build-summary"]
    assert artifacts["build-progress"] == 100
    rows = json.loads(artifacts["build-photos"])
    assert {row["photos"]: row["number"] for row in rows} == {
        "seen": 21,
        "encoded": 20,
        "known before": 0,
        "kept in the map": 20,
        "dropped from it": 0,
        "rejected: not-an-image": 1,
    }
    assert {row["stage"] for row in json.loads(artifacts["build-seconds"])} == {
        "catalog",
        "encode",
        "rewrite",
        "publish",
        "purge",
    }


def test_what_stops_a_flow_is_still_one_line_and_an_artifact_says_what_to_do(
    folio_process: Callable[..., Ran], prefect_api: dict[str, str], tmp_path: Path
) -> None:
    ran = folio_process("build", tmp_path / "map", tmp_path / "nowhere", env=prefect_api)

    assert ran.code == 1
    # On a slow machine Prefect adds, at the very end, that it is still sending its events.
    own = [line for line in ran.err.strip().splitlines() if "EventsWorker" not in line]
    assert "nowhere" in own[-1]
    assert not (tmp_path / "map").exists()
    api = prefect_api["PREFECT_API_URL"]
    (said,) = (one["data"] for one in httpx.post(f"{api}/artifacts/filter", json={}).json() if one["key"] == "build-failed")
    assert f"{tmp_path / 'map'} has no version yet. Nothing of this run can be seen, and what it finished is kept." in said
    assert "The line above says what to set right. Then: run the same command again." in said


def test_a_server_that_does_not_answer_is_said_in_one_line(folio_process: Callable[..., Ran], tmp_path: Path) -> None:
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1"}

    ran = folio_process("build", tmp_path / "map", tmp_path, env=nobody)

    assert ran.code == 1
    assert "Prefect at http://127.0.0.1:9/api" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_the_server_runs_what_a_schedule_says(prefect_api: dict[str, str]) -> None:
    """With SQLAlchemy 2.1 it took schedules and never ran one: the pins of pyproject.toml are of versions that do."""
    api = prefect_api["PREFECT_API_URL"]
    flow = httpx.post(f"{api}/flows/", json={"name": "scheduled"}).raise_for_status().json()
    hourly = {"name": "hourly", "flow_id": flow["id"], "schedules": [{"schedule": {"interval": 3600}, "active": True}]}
    httpx.post(f"{api}/deployments/", json=hourly).raise_for_status()
    of_flow = {"flows": {"id": {"any_": [flow["id"]]}}}

    for _ in range(60):
        if httpx.post(f"{api}/flow_runs/count", json=of_flow).json():
            return
        time.sleep(0.5)
    raise AssertionError("no run was scheduled within half a minute")
