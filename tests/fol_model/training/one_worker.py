"""A process of its own, for tests that need another one: `python -m tests.fol_model.training.one_worker VERB FOLDER [RANK]`."""

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.numpy import save_file

from fol_model.training import distributed
from fol_model.training.learner import Batch, Learner
from tests.fol_model.training.small import batch_of, small_config, small_recipe


def resume(folder: Path) -> None:
    """Go on from step 2 to step 4 and save; then do one more and die while saving: the file is written, and not yet renamed."""
    learner = Learner.restore(folder / "run", small_recipe(), small_config(), device="cpu")
    for number in range(learner.steps_done, 4):
        learner.step(batch_of(number))
    learner.save(folder / "resumed")
    learner.step(batch_of(4))
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    learner.save(folder / "resumed")


def share(folder: Path, rank: int) -> None:
    """Learn as one of two workers, each from its half of the places."""
    with distributed.worker_group(f"file://{folder}/meeting", rank=rank, workers=2, timeout_s=60):
        learner = Learner(small_recipe(), None, small_config(), device="cpu", all_reduce=distributed.average, rank=rank)
        for number in range(3):
            whole = batch_of(number, places=8)
            half = slice(8 * rank, 8 * rank + 8)
            learner.step(Batch(images=whole.images[half], places=whole.places[half]))
        if rank == 0:
            save_file(learner.weights(), folder / "shared.safetensors")
        broken = batch_of(9)
        if rank == 1:
            broken.images[0, 0, 0, 0] = torch.nan
        try:
            learner.step(broken)
        except ValueError as error:
            (folder / f"stopped-{rank}").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, where, *rest = sys.argv[1:]
    {"resume": resume, "share": share}[verb](Path(where), *map(int, rest))
