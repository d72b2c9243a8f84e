"""A run that was stopped goes on as if it had not been, and workers together learn as one would."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

from fol_model.training.config import AugmentConfig
from fol_model.training.learner import Learner
from tests.conftest import PROJECT
from tests.fol_model.training.small import batch_of, small_config, small_recipe

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def start(verb: str, folder: Path, *rest: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.fol_model.training.one_worker", verb, str(folder), *map(str, rest)]
    return subprocess.Popen(command, cwd=PROJECT, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> int:
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def run_of(steps: int, **changed: object) -> Learner:
    learner = Learner(small_recipe(), None, small_config(**changed), device="cpu")
    for number in range(steps):
        learner.step(batch_of(number))
    return learner


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """For the checkpoint all tests share, too: sums come out in other last bits with another number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two steps."""
    path = tmp_path_factory.mktemp("checkpoint") / "run"
    run_of(2).save(path)
    return path


@pytest.fixture(scope="module")
def resumed(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What another process made of the checkpoint: two more steps, saved; one more, killed while saving."""
    folder = tmp_path_factory.mktemp("resumed")
    (folder / "run").write_bytes(saved.read_bytes())
    assert finish(start("resume", folder)) == -signal.SIGKILL
    return folder / "resumed"


def contents(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What the file says of itself, and a digest of each tensor's bytes, short enough to be printed where two differ."""
    with safe_open(path, framework="np") as file:
        return file.metadata(), {name: sha256(file.get_tensor(name).tobytes()).hexdigest() for name in file.keys()}  # noqa: SIM118


def test_a_run_resumed_in_another_process_equals_one_that_was_not_stopped_bit_for_bit(resumed: Path, tmp_path: Path):
    """All of the file is compared: weights, running mean, AdamW's moments, steps, checksum."""
    run_of(4).save(tmp_path / "straight")

    assert contents(resumed) == contents(tmp_path / "straight")


def test_a_run_killed_while_it_saves_leaves_the_earlier_checkpoint_whole(resumed: Path):
    assert resumed.with_name("resumed.partial").exists()

    learner = Learner.restore(resumed, small_recipe(), small_config(), device="cpu")
    assert learner.steps_done == 4
    learner.save(resumed)

    assert not resumed.with_name("resumed.partial").exists()


@pytest.mark.slow
def test_two_workers_learn_what_one_learns_from_both_halves(tmp_path: Path):
    """One worker takes the halves as two micro-batches, so pairs are mined within each, as by the workers.

    Then one worker meets a NaN: both stop, and only the one that met it can say where.
    """
    workers = [start("share", tmp_path, rank) for rank in (0, 1)]
    alone = Learner(small_recipe(), None, small_config(accumulate=2), device="cpu")
    for number in range(3):
        alone.step(batch_of(number, places=8))
    assert [finish(worker) for worker in workers] == [0, 0]

    together = load_file(tmp_path / "shared.safetensors")
    for name, weight in alone.weights().items():
        np.testing.assert_allclose(together[name], weight, rtol=1e-5, atol=1e-6)
    assert "another worker stopped" in (tmp_path / "stopped-0").read_text()
    assert "step 4: loss" in (tmp_path / "stopped-1").read_text()


def test_a_checkpoint_keeps_what_is_not_learnt_too(saved: Path):
    straight, restored = run_of(2), Learner.restore(saved, small_recipe(), small_config(), device="cpu")

    assert restored.steps_done == 2
    for ema in (True, False):
        expected = straight.weights(ema=ema)
        assert all(np.array_equal(weight, expected[name]) for name, weight in restored.weights(ema=ema).items())


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_refused_by_name(saved: Path, tmp_path: Path, kept: int):
    path = tmp_path / "short"
    path.write_bytes(saved.read_bytes()[:kept])

    with pytest.raises(ValueError, match="short: expected a checkpoint of a training, found a file that is truncated or none"):
        Learner.restore(path, small_recipe(), small_config(), device="cpu")


def test_a_flipped_bit_is_noticed(saved: Path, tmp_path: Path):
    content = bytearray(saved.read_bytes())
    content[-100] ^= 1
    path = tmp_path / "flipped"
    path.write_bytes(content)

    with pytest.raises(ValueError, match="flipped: the checksum does not match"):
        Learner.restore(path, small_recipe(), small_config(), device="cpu")


def test_a_checkpoint_that_is_not_there_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ValueError, match="none-such: expected a checkpoint"):
        Learner.restore(tmp_path / "none-such", small_recipe(), small_config(), device="cpu")


def test_weights_are_no_checkpoint(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file({"upconv.bias": torch.zeros(3)}, path)

    with pytest.raises(ValueError, match=r"found weights or other tensors. Weights alone start a new run"):
        Learner.restore(path, small_recipe(), small_config(), device="cpu")


def test_a_checkpoint_of_another_version_is_refused(saved: Path, tmp_path: Path):
    with safe_open(saved, framework="pt") as file:
        said = file.metadata() | {"version": "99"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "newer", metadata=said)

    with pytest.raises(ValueError, match="newer: a checkpoint of format version 99, this Folio reads version 1"):
        Learner.restore(tmp_path / "newer", small_recipe(), small_config(), device="cpu")


def test_a_checkpoint_of_other_settings_is_refused_with_the_difference(saved: Path):
    other = replace(small_config(learning_rate=2e-3), augment=AugmentConfig(night=0.5))

    with pytest.raises(ValueError, match="another training setting") as refusal:
        Learner.restore(saved, small_recipe(), other, device="cpu")

    assert "learning_rate is 0.001 in the file and 0.002 now" in str(refusal.value)
    assert "augment.night is 0.25 in the file and 0.5 now" in str(refusal.value)


def test_a_checkpoint_of_another_recipe_is_refused_with_the_difference(saved: Path):
    with pytest.raises(ValueError, match="run: a checkpoint of another recipe: clusters is 6 in the file and 7 now"):
        Learner.restore(saved, small_recipe(clusters=7), small_config(), device="cpu")
