"""Several workers through Ray Train: each runs `loop.train` on its share of every batch, and gradients are averaged.

A worker that dies takes the others with it: Ray starts all of them again, and they go on from the run's last checkpoint, which
any worker can read. The folder of the run must therefore lie where all workers see it.
"""

import shutil
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from fol_model.training.distributed import average
from fol_model.training.learner import AllReduce
from infra.cluster import Cluster
from infra.settings import Settings, set_environment
from pipelines.engine.threads import use_threads
from pipelines.train.loop import Run, train
from pipelines.train.run_folder import RunFolder
from schemas.errors import FolioError, ModelError, WorkError

RESTARTS: Final = 3
"""How often lost workers are started again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayTeam:
    """The workers of a Ray Train run, seen from one of them."""

    rank: int
    size: int
    all_reduce: AllReduce | None = average

    def first_says(self, value: bool) -> bool:
        """See `loop.Team`."""
        return bool(broadcast_from_rank_zero(value))


def train_on_ray(run: Run, workers: int, cluster: Cluster, settings: Settings) -> None:
    """Train on several workers of a cluster that is connected.

    Raises:
        ModelError: as `loop.train`.
        WorkError: workers were lost more than `RESTARTS` times.
    """
    folder = RunFolder(run.request.out, settings)
    work = {"run": ray.put(run), "environment": cluster.worker_environment}
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # the annotation is older than what it may return
        train_loop_config=work,
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=cluster.gpus > 0, resources_per_worker={"CPU": 1, **_gpu(cluster)}
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(folder.path.absolute()), failure_config=FailureConfig(max_failures=RESTARTS)
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.gpus else "gloo"),
    )
    try:
        problem = trainer.fit().return_value  # type: ignore[attr-defined]  # of its second version
    except TrainingFailedError as error:
        raise WorkError(
            f"{folder.path}: the workers failed {RESTARTS + 1} times, at last by: {_cause(error)}. The last checkpoint is whole. "
            "Run the same command again to go on."
        ) from error
    finally:
        shutil.rmtree(folder.path / "ray", ignore_errors=True)
    if problem:
        raise ModelError(_with_photos(str(problem), folder))


def _work(config: dict[Any, Any]) -> str | None:
    """Be one worker. An error that the user can fix is an answer, not a reason to start the workers again."""
    set_environment(config["environment"])
    use_threads(1)  # a worker has one core; more cores are used by more workers
    context = get_context()
    team = RayTeam(rank=context.get_world_rank(), size=context.get_world_size())
    try:
        train(ray.get(config["run"]), team, Settings.from_environment())
    except FolioError as error:
        return str(error)
    return None


def _gpu(cluster: Cluster) -> dict[str, float]:
    return {"GPU": cluster.gpus_each} if cluster.gpus else {}


def _cause(error: TrainingFailedError) -> str:
    """The last line of what one of the workers said."""
    failures = list(getattr(error, "worker_failures", {}).values())
    said = [line.strip() for line in str(failures[0] if failures else error).splitlines() if line.strip()]
    return said[-1].rstrip(".") if said else type(error).__name__


def _with_photos(problem: str, folder: RunFolder) -> str:
    """The first worker answers for all; what another one met stands in a file."""
    found = folder.diverged() if "another worker" in problem else None
    return (
        problem
        if found is None
        else f"{problem} It met {found['term']} that is NaN or infinite on {', '.join(found['photos'][:8])}."
    )
