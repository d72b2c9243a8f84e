"""Join a Ray cluster, or start one on this machine that talks to 127.0.0.1 only.

Left to itself Ray asks cloud metadata addresses and DNS at each start, binds to the machine's outside address and reports usage.
The settings here were checked with strace: no packet leaves the loopback interface.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from infra.settings import S3_ENDPOINT, Settings, changed_environment
from schemas.errors import WorkError

OBJECT_STORE_BYTES: Final = 256 << 20
"""Of a local cluster. Tasks are tables of file names and results are receipts; photos never pass through it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What a run may ask Ray for."""

    worker_environment: dict[str, str]
    """What an actor sets before it works: the S3 server of the map, and on this machine our own HOME, where AWS credentials are,
    in place of the one Ray was started with."""

    @property
    def cpus(self) -> int:
        """Of all machines that are there now."""
        return int(self._resources().get("CPU", 1))

    @property
    def gpus(self) -> int:
        """Likewise."""
        return int(self._resources().get("GPU", 0))

    @property
    def gpus_each(self) -> float:
        """Share of a GPU an actor gets: a whole one where there are any."""
        return 1.0 if self.gpus else 0.0

    def workers(self, tasks: int) -> int:
        """Number of actors worth having now: one a GPU, or one a CPU, but no more than there are tasks."""
        return max(1, min(self.gpus or self.cpus, tasks))

    def _resources(self) -> dict[str, float]:
        import ray  # here, as below

        return ray.cluster_resources()  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def ray_cluster(settings: Settings) -> Iterator[Cluster]:
    """Connect to Ray while the block runs.

    Raises:
        WorkError: the cluster named by RAY_ADDRESS cannot be joined.
    """
    own_environment = {} if settings.ray_address else {"HOME": str(Path.home())}
    if settings.s3_endpoint_url:
        own_environment[S3_ENDPOINT] = settings.s3_endpoint_url
    with TemporaryDirectory(prefix="folio-ray-") as home, changed_environment(_loopback_only(Path(home), settings)):
        import ray  # here, because Ray reads its environment on import, and most commands do not need it

        try:
            if settings.ray_address:
                ray.init(address=settings.ray_address, log_to_driver=False, logging_level=logging.WARNING)
            else:
                ray.init(
                    address="local",  # not that of another run which is under way on this machine
                    num_cpus=settings.threads,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
        except (ConnectionError, ValueError) as error:
            raise WorkError(
                f"Ray at {settings.ray_address or 'this machine'}: {error}. Nothing was encoded. "
                "Check RAY_ADDRESS, or run without --workers ray."
            ) from error
        try:
            yield Cluster(worker_environment=own_environment)
        finally:
            ray.shutdown()


def _loopback_only(home: Path, settings: Settings) -> dict[str, str]:
    """The environment of a local cluster; a cluster that is joined has its own."""
    if settings.ray_address:
        return {}
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps({}))  # else Ray looks for a cloud to ask who it is
    return {
        "HOME": str(home),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
        "RAY_AUTH_MODE": "disabled",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",  # workers that train together find each other here
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # today's default changes in a later Ray, and it warns until one chooses
    }
