"""A training killed at any moment, and one shared by workers of a Ray cluster, ends as one that nobody touched."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from infra.settings import Settings
from pipelines.train.train import run_training
from schemas.errors import ModelError
from tests.end_to_end.conftest import City, Ran
from tests.pipelines.train.photos import small_request, write_labelled

OPTIONS = [
    *(
        "--recipe",
        "tiny",
        "--places",
        "4",
        "--photos-per-place",
        "2",
        "--input-size",
        "126",
        "--blocks",
        "all",
        "--learning-rate",
        "1e-4",
    ),
    *("--epochs", "3", "--validate", "0.2", "--checkpoint-minutes", "0", "--device", "cpu", "--json"),
]


RAY_WARNS = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
"""Ray Train sets up Ray Data, which warns of its own settings."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("photos"), places=16, photos=3)


def start(table: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from pipelines.cli import main; main()", "train", str(table), "--out", str(out), *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "FOLIO_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def steps_done(out: Path) -> int:
    progress = out / "progress.json"
    return int(json.loads(progress.read_text())["steps"]) if progress.exists() else 0


@pytest.mark.slow
def test_a_training_killed_three_times_ends_with_the_bytes_of_one_that_was_not(table: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out, err = start(table, whole).communicate(timeout=280)
    steps = json.loads(out)["steps"]
    reached = []
    for number in range(1, 4):
        child = start(table, killed)
        while steps_done(killed) < number * steps // 4 and child.poll() is None:
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        reached.append(steps_done(killed))

    out, err = start(table, killed).communicate(timeout=280)

    assert json.loads(out)["steps"] == steps, err.decode()
    assert 0 < reached[0] < reached[1] < reached[2] < steps
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    logged = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if line["kind"] == "step"] == list(range(1, steps + 1))


@pytest.mark.slow
def test_a_map_is_built_with_weights_that_were_just_trained(
    city: City, folio: Callable[..., Ran], table: Path, tmp_path: Path
) -> None:
    trained = folio("train", city.database, "--out", tmp_path / "run", *OPTIONS, "--epochs", "1")

    built = folio("build", tmp_path / "map", city.queries, "--recipe", "tiny", "--weights", trained.json()["weights"], "--json")

    assert built.json()["trained"] is True
    assert built.json()["photos"] == 16


@RAY_WARNS
@pytest.mark.slow
def test_two_workers_learn_what_one_learns_from_the_same_batches_in_two_parts(table: Path, tmp_path: Path) -> None:
    """Pairs are mined within a part, so one worker with two micro-batches is the same sum in another order."""
    one = run_training(small_request(table, tmp_path / "one", accumulate=2), Settings(threads=1))

    two = run_training(small_request(table, tmp_path / "two", workers=2), Settings(threads=2))

    ours, theirs = load_file(one.weights), load_file(two.weights)
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) < 1e-5
    assert two.steps == one.steps


def training_workers() -> list[int]:
    """Process ids of the Ray workers that train."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it ended while we looked
            if title.startswith(b"ray::") and b"TrainWorker" in title:
                found.append(int(folder.name))
    return found


@RAY_WARNS
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_costs_nothing_but_time(table: Path, tmp_path: Path) -> None:
    request = small_request(table, tmp_path / "killed", workers=2, epochs=4, checkpoint_minutes=0.0)
    one = run_training(small_request(table, tmp_path / "one", accumulate=2, epochs=4), Settings(threads=1))
    killed: list[int] = []
    done = threading.Event()

    def kill_one() -> None:
        while not done.wait(0.05) and not killed:
            if steps_done(tmp_path / "killed") >= 2:
                for pid in training_workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        two = run_training(request, Settings(threads=2))
    finally:
        done.set()
        killer.join()

    assert killed, "no worker was seen: the test would prove nothing"
    assert two.steps == one.steps
    ours, theirs = load_file(one.weights), load_file(two.weights)
    assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) < 1e-5


@RAY_WARNS
@pytest.mark.slow
def test_what_the_user_can_put_right_is_said_by_workers_as_by_one(table: Path, tmp_path: Path) -> None:
    save_file({"something": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    request = small_request(table, tmp_path / "run", workers=2, start=str(tmp_path / "other.safetensors"))

    with pytest.raises(ModelError, match=r"other\.safetensors.*Nothing was trained"):
        run_training(request, Settings(threads=2))
