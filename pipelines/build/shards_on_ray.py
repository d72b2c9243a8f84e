"""The same shards, made on Ray."""

from collections.abc import Sequence

from infra.cluster import ray_cluster
from infra.observability import progress_bar
from infra.settings import Settings
from pipelines.build.shards import MakeShards, ShardTask
from pipelines.engine.run import run_on_ray
from schemas.errors import WorkError
from schemas.manifest import ObjectRef


def make_on_ray(map_url: str, settings: Settings) -> MakeShards:
    """Make shards on Ray's actors.

    Raises, when called:
        WorkError: Ray cannot be used, or a shard lost its workers again and again.
    """

    def make(tasks: Sequence[ShardTask]) -> list[ObjectRef]:
        made: dict[str, ObjectRef] = {}
        with (
            progress_bar(sum(task.photos for task in tasks), unit="photo", description="index") as bar,
            ray_cluster(settings) as cluster,
        ):
            from pipelines.build.actors import shard_actors  # here, because it imports Ray

            start, wanted = shard_actors(map_url, cluster), lambda unfinished: min(cluster.cpus, unfinished)
            for outcome in run_on_ray(tasks, start, wanted, on_task=lambda task: bar.update(task.photos)):
                if outcome.result is None:
                    raise WorkError(
                        f"{map_url}: a shard of {outcome.task.photos:,} photos lost its worker again and again. Nothing was "
                        "published; the other shards are kept. Give workers more memory, or run without --workers ray."
                    )
                made[outcome.task.key] = outcome.result
        return [made[task.key] for task in tasks]

    return make
