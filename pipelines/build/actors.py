"""The Ray actors of a build: one holds a network and encodes one partition after another, the other makes shards."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from infra.cluster import Cluster
from infra.metrics import METRICS, STORE_RETRIES
from infra.observability import configure_logging
from infra.settings import Settings, set_environment
from infra.storage import open_storage
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.build.progress import EncodedSegment
from pipelines.build.shards import ShardTask, ShardWorker
from pipelines.engine.model import load_encoder
from pipelines.engine.partition import Partition
from pipelines.engine.threads import use_threads
from schemas.manifest import ObjectRef


class _EncodeActor:
    """A `SegmentWorker` with a network of its own."""

    def __init__(self, job: EncodeJob, environment: Mapping[str, str]) -> None:
        set_environment(environment)
        use_threads(1)  # one partition at a time, one core each: more cores are used by more actors
        settings = Settings.from_environment()
        configure_logging(settings.log_level, settings.log_format)
        encoder = load_encoder(job.recipe, weights=Path(job.weights) if job.weights else None, device=job.device)
        self._worker = SegmentWorker(job, encoder, settings)

    def run(self, partition: Partition) -> EncodedSegment:
        """Encode a partition. The driver counts what was done, so this process has no port or file of its own to watch."""
        METRICS.clear()
        done = self._worker.run(partition, lambda: None)
        done.tally.store_retries = {verb: count for (verb,), count in METRICS.samples(STORE_RETRIES)}
        return done


class _ShardActor:
    """A `ShardWorker` with a connection of its own."""

    def __init__(self, map_url: str, environment: Mapping[str, str]) -> None:
        set_environment(environment)
        self._worker = ShardWorker(open_storage(map_url, Settings.from_environment()), threads=1)

    def run(self, task: ShardTask) -> ObjectRef:
        """Make a shard."""
        return self._worker.run(task, lambda: None)


def encode_actors(job: EncodeJob, cluster: Cluster) -> Callable[[], Any]:
    """Say how to start actors that Ray brings back when they die; the driver gives their tasks out again."""
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)(_EncodeActor)
    return lambda: actor.options(num_gpus=cluster.gpus_each).remote(job, cluster.worker_environment)


def shard_actors(map_url: str, cluster: Cluster) -> Callable[[], Any]:
    """Say how to start actors that make shards; as `encode_actors`."""
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)(_ShardActor)
    return lambda: actor.remote(map_url, cluster.worker_environment)
