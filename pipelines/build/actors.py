"""The Ray actors of a build: one holds a network and encodes one partition after another, the other makes shards."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, Final

import ray

from infra.cluster import Cluster
from infra.machine import keep_freed_memory
from infra.metrics import METRICS, STORE_RETRIES
from infra.observability import configure_logging
from infra.settings import Settings, set_environment
from infra.storage import open_storage
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.build.progress import EncodedSegment
from pipelines.build.shards import ShardTask, ShardWorker
from pipelines.catalog.loading import photo_loader
from pipelines.engine.model import load_encoder
from pipelines.engine.partition import Partition
from pipelines.engine.run import IN_FLIGHT
from pipelines.engine.threads import use_threads
from schemas.errors import DeviceError
from schemas.manifest import ObjectRef

DEVICE_LOST: Final = 75
"""Exit status of an actor whose GPU fails: EX_TEMPFAIL, try again."""

_log = logging.getLogger(__name__)


class _EncodeActor:
    """A network and its decoders, and workers that take turns at them: while one writes what it has encoded, the next goes on."""

    def __init__(self, job: EncodeJob, environment: Mapping[str, str]) -> None:
        set_environment(environment)
        keep_freed_memory()
        use_threads(1)  # one partition at a time, one core each: more cores are used by more actors
        settings = Settings.from_environment()
        configure_logging(settings.log_level, settings.log_format)
        weights = Path(job.weights) if job.weights else None
        encoder = load_encoder(job.recipe, weights=weights, device=job.device, arithmetic=settings.arithmetic)
        turn, loader = Lock(), photo_loader(encoder, settings, job.limits)
        self._workers: SimpleQueue[SegmentWorker] = SimpleQueue()
        for _ in range(IN_FLIGHT):
            self._workers.put(SegmentWorker(job, encoder, settings, turn=turn, loader=loader))

    def run(self, partition: Partition) -> EncodedSegment:
        """Encode a partition. The driver counts what was done, so this process has no port or file of its own to watch.

        A GPU that fails ends this process: Ray starts another, on another GPU if need be, and the partition is given out again,
        as when the machine is lost.
        """
        worker = self._workers.get()
        try:
            done = worker.run(partition, lambda: None)
        except DeviceError as error:
            _log.error("worker ends: %s", error)
            os._exit(DEVICE_LOST)
        finally:
            self._workers.put(worker)
        done.tally.store_retries = {verb: count for (verb,), count in METRICS.samples(STORE_RETRIES)}
        METRICS.clear()  # each is told once, with whichever segment ends next
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
    return lambda: actor.options(num_gpus=cluster.gpus_each, max_concurrency=IN_FLIGHT).remote(job, cluster.worker_environment)


def shard_actors(map_url: str, cluster: Cluster) -> Callable[[], Any]:
    """Say how to start actors that make shards; as `encode_actors`."""
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)(_ShardActor)
    return lambda: actor.remote(map_url, cluster.worker_environment)
