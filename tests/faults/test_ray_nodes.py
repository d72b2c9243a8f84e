"""A build on a Ray cluster of two machines goes on while actors are killed and machines vanish and join.

`make test-faults` kills 60 actors and 5 machines; the plain tests a few. Both machines are on 127.0.0.1.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from infra import cluster as ray_ground
from infra.commits import read_head, read_receipts
from infra.settings import Settings, changed_environment
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.engine.partition import PartitionConfig
from pipelines.engine.run import run_on_ray
from schemas.errors import WorkError
from tests.end_to_end.conftest import City
from tests.end_to_end.test_ray import encode_actors

FULL = os.environ.get("FOLIO_FAULTS") == "full"
SMALL = PartitionConfig(max_photos=4, min_photos=1)
QUICKLY_MISSED = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A machine that is gone is missed after two seconds, not after half a minute."""


class TwoMachines:
    """A head and another machine, each with one CPU."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._cluster.add_node(**self._machine(), include_dashboard=False, _system_config=QUICKLY_MISSED)
        self._other: Any = None
        self.join()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def join(self) -> None:
        self._other = self._cluster.add_node(**self._machine())

    def vanish(self) -> None:
        self._cluster.remove_node(self._other, allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()

    @staticmethod
    def _machine() -> dict[str, Any]:
        return {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def machines() -> Iterator[TwoMachines]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="folio-ray-")))
        stack.enter_context(changed_environment(ray_ground._loopback_only(home, Settings(threads=1))))
        both = TwoMachines()
        stack.callback(both.stop)
        yield both


def photos_of(city: City, folder: Path, count: int) -> str:
    folder.mkdir()
    for photo in sorted(city.database.iterdir())[:count]:
        (folder / photo.name).symlink_to(photo)
    return str(folder)


def test_every_segment_is_made_once_whatever_vanishes(city: City, machines: TwoMachines, tmp_path: Path) -> None:
    actors_to_kill, machines_to_kill = (60, 5) if FULL else (3, 1)
    photos = photos_of(city, tmp_path / "photos", 360 if FULL else 60)
    here = run_build(
        BuildRequest(recipe="tiny", map_url=str(tmp_path / "here"), photos=(photos,), partition=SMALL), Settings(threads=2)
    )
    killed, vanished = list[int](), list[float]()
    done = threading.Event()

    def make_a_bad_night() -> None:
        while not done.wait(0.3):
            if len(vanished) < machines_to_kill and len(killed) * machines_to_kill >= len(vanished) * actors_to_kill + 1:
                machines.vanish()
                vanished.append(time.monotonic())
                done.wait(3)
                machines.join()
            for pid in encode_actors()[:1] if len(killed) < actors_to_kill else []:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                done.wait(1 if FULL else 2)  # so that something is done in between

    night = threading.Thread(target=make_a_bad_night)
    night.start()
    request = BuildRequest(recipe="tiny", map_url=str(tmp_path / "ray"), photos=(photos,), partition=SMALL, workers="ray")
    try:
        on_ray = run_build(request, Settings(threads=2, ray_address=machines.address))
        again = run_build(request, Settings(threads=2, ray_address=machines.address)) if on_ray.photos < here.photos else on_ray
    finally:
        done.set()
        night.join()

    assert killed, "no actor was seen: the test would prove nothing"
    assert vanished
    assert again.photos == here.photos
    ours, theirs = (open_storage(str(tmp_path / place), Settings(threads=1)) for place in ("here", "ray"))
    assert sorted(read_receipts(ours)) == sorted(read_receipts(theirs))
    segments = [entry.segment_id for entry in read_head(theirs).segments]
    assert len(segments) == len(set(segments))
    assert sorted(segments) == sorted(entry.segment_id for entry in read_head(ours).segments)


class Sleeper:
    """Does nothing for a while, or ends its process."""

    def run(self, task: float) -> tuple[float, str]:
        import ray

        if task < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(task)
        return task, ray.get_runtime_context().get_node_id()


class Failing:
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no such weights")


def actors_of(kind: type[Any]) -> Any:
    import ray

    return ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)(kind)


def test_a_machine_that_joins_gets_work_and_one_that_vanishes_keeps_none(machines: TwoMachines) -> None:
    machines.vanish()
    with ray_ground.ray_cluster(Settings(threads=1, ray_address=machines.address)) as cluster:
        while cluster.cpus > 1:
            time.sleep(0.2)
        places = []
        for number, outcome in enumerate(
            run_on_ray([0.5] * 60, actors_of(Sleeper).remote, cluster.workers, on_task=lambda _: None)
        ):
            places.append(outcome.result[1])
            if number == 3:
                machines.join()
            if number == 40:
                machines.vanish()
        machines.join()

    assert len(places) == 60
    assert len(set(places[:4])) == 1
    assert len(set(places)) == 2, "the machine that joined got nothing"


def test_a_task_that_kills_its_worker_is_set_aside_and_costs_no_other_task_anything(machines: TwoMachines) -> None:
    tasks = [0.01, -1.0, *([0.02] * 6), -2.0, 0.03]
    with ray_ground.ray_cluster(Settings(threads=1, ray_address=machines.address)) as cluster:
        outcomes = list(run_on_ray(tasks, actors_of(Sleeper).remote, cluster.workers, on_task=lambda _: None))

    assert sorted(outcome.task for outcome in outcomes) == sorted(tasks)
    assert sorted(outcome.task for outcome in outcomes if outcome.result is None) == [-2.0, -1.0]


def test_a_worker_that_cannot_be_made_stops_the_run_and_says_why(machines: TwoMachines) -> None:
    with (
        ray_ground.ray_cluster(Settings(threads=1, ray_address=machines.address)) as cluster,
        pytest.raises(WorkError, match=r"(?s)a worker cannot start: .*no such weights.*2 tasks were not done"),
    ):
        list(run_on_ray([1, 2], actors_of(Failing).remote, cluster.workers, on_task=lambda _: None))
