"""The Ray actor of a build: holds a network, encodes one partition after another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from infra.cluster import Cluster
from infra.settings import Settings, set_environment
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.engine.model import load_encoder
from pipelines.engine.partition import Partition
from pipelines.engine.threads import use_threads
from schemas.manifest import Receipt


class _EncodeActor:
    """A `SegmentWorker` with a network of its own."""

    def __init__(self, job: EncodeJob, environment: Mapping[str, str]) -> None:
        set_environment(environment)
        use_threads(1)  # one partition at a time, one core each: more cores are used by more actors
        encoder = load_encoder(job.recipe, weights=Path(job.weights) if job.weights else None, device=job.device)
        self._worker = SegmentWorker(job, encoder, Settings.from_environment())

    def run(self, partition: Partition) -> Receipt:
        """Encode a partition."""
        return self._worker.run(partition, lambda: None)


def start_actors(job: EncodeJob, cluster: Cluster, tasks: int) -> list[Any]:
    """Start actors that Ray brings back when they die; the driver gives their tasks out again."""
    actor = ray.remote(num_cpus=1, num_gpus=cluster.gpus_each, max_restarts=-1, max_task_retries=0)(_EncodeActor)
    return [actor.remote(job, cluster.worker_environment) for _ in range(cluster.workers(tasks))]
