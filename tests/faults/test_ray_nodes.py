"""A build on a Ray cluster of two machines goes on while actors are killed and machines vanish and join.

`make test-faults` kills 60 actors and 5 machines, `make test-slow` a few. Both machines are on 127.0.0.1.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from infra import cluster as ray_ground
from infra.commits import read_head, read_receipts
from infra.settings import Settings, changed_environment
from infra.storage import open_storage
from infra.tables import read_table
from pipelines.build.build import run_build
from pipelines.build.encode import EncodeJob
from pipelines.build.progress import EncodedSegment
from pipelines.build.request import BuildRequest
from pipelines.catalog.sample_city.photos import write_sample_city
from pipelines.engine.partition import Partition, PartitionConfig
from pipelines.engine.run import ATTEMPTS, run_on_ray
from pipelines.maintain.verify import verify
from schemas.errors import WorkError
from tests.end_to_end.test_ray import encode_actors
from tests.faults.profile import record, rounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

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


def test_every_segment_is_made_once_whatever_vanishes(machines: TwoMachines, tmp_path: Path) -> None:
    actors_to_kill, machines_to_kill = rounds(quick=3, full=60), rounds(quick=1, full=5)
    write_sample_city(tmp_path / "city", places=rounds(quick=12, full=90), queries=2, unmapped=0)
    of = {"recipe": "tiny", "photos": (str(tmp_path / "city" / "database"),), "partition": SMALL}
    here = run_build(BuildRequest(map_url=str(tmp_path / "here"), **of), Settings(threads=2))
    killed, vanished, began = list[int](), 0, time.monotonic()
    request = BuildRequest(map_url=str(tmp_path / "ray"), workers="ray", **of)
    with ThreadPoolExecutor(1) as pool:  # the bad night is here, as Ray starts machines in the main thread only
        building = pool.submit(run_build, request, Settings(threads=2, ray_address=machines.address))
        while not building.done():
            if vanished < machines_to_kill and len(killed) * machines_to_kill > vanished * actors_to_kill:
                machines.vanish()
                vanished += 1
                machines.join()
            for pid in encode_actors()[:1] if len(killed) < actors_to_kill else []:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            wait([building], 2)  # so that something is done in between
        on_ray = building.result()

    assert killed, "no actor was seen: the test would prove nothing"
    assert vanished
    ours, theirs = (open_storage(str(tmp_path / place), Settings(threads=1)) for place in ("here", "ray"))
    lost = set(read_receipts(ours)) - set(read_receipts(theirs))
    whole = on_ray.photos == here.photos and not lost and len(read_receipts(theirs)) == len(read_receipts(ours))
    what = "Ray's actors and machines killed in a build"
    note = f"{len(killed)} actors and {vanished} machines killed; {len(read_receipts(ours))} segments, each made once"
    record(what, rounds=len(killed) + vanished, failures=int(not whole), seconds=time.monotonic() - began, note=note)
    assert whole, f"{on_ray.photos} of {here.photos} photos, rejected {on_ray.rejected}, segments lost: {sorted(lost)}"
    assert sorted(entry.segment_id for entry in read_head(theirs).segments) == sorted(read_receipts(ours))
    assert verify(theirs).problems == []


class Sleeper:
    """Does nothing for a while."""

    def run(self, task: float) -> tuple[float, str]:
        import ray

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
        places, vanished_at = list[str](), 0
        for outcome in run_on_ray([0.3] * 200, actors_of(Sleeper).remote, cluster.workers, on_task=lambda _: None):
            places.append(outcome.result[1])
            if len(places) == 4:
                machines.join()
            if not vanished_at and len(places) - places.count(places[0]) == 4:
                machines.vanish()
                vanished_at = len(places)
        machines.join()

    assert len(places) == 200
    assert vanished_at, "the machine that joined got nothing"
    assert places[vanished_at + 10 :].count(places[0]) == 200 - vanished_at - 10


class Struck:
    """Ends its process the first so many times that a task is begun; every beginning is one more byte in a file."""

    def run(self, task: tuple[Path, int]) -> int:
        file, deaths = task
        with file.open("ab") as begun:
            begun.write(b".")
        time.sleep(0.2)  # what was done before is told by then
        if file.stat().st_size <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return file.stat().st_size


@pytest.mark.parametrize("deaths", [ATTEMPTS, 2 * ATTEMPTS - 1])
def test_a_task_whose_workers_are_killed_by_others_is_done_in_the_end(machines: TwoMachines, tmp_path: Path, deaths: int) -> None:
    """As many deaths as would look like its own fault if it were not tried alone."""
    tasks = [(tmp_path / "unlucky", deaths), *((tmp_path / f"{number}", 0) for number in range(8))]
    with ray_ground.ray_cluster(Settings(threads=1, ray_address=machines.address)) as cluster:
        outcomes = list(run_on_ray(tasks, actors_of(Struck).remote, cluster.workers, on_task=lambda _: None))

    assert sorted(outcome.task for outcome in outcomes) == sorted(tasks)
    assert [outcome.task for outcome in outcomes if outcome.result is None] == []
    assert outcomes[-1].task == tasks[0], "it was not the last, so it was not alone"
    assert outcomes[-1].result > deaths


def test_a_task_that_kills_its_worker_is_set_aside_and_costs_no_other_task_anything(
    machines: TwoMachines, tmp_path: Path
) -> None:
    tasks = [(tmp_path / "0", 0), (tmp_path / "poison", 99), *((tmp_path / f"{number}", 0) for number in range(1, 8))]
    with ray_ground.ray_cluster(Settings(threads=1, ray_address=machines.address)) as cluster:
        outcomes = list(run_on_ray(tasks, actors_of(Struck).remote, cluster.workers, on_task=lambda _: None))

    assert sorted(outcome.task for outcome in outcomes) == sorted(tasks)
    assert [outcome.task for outcome in outcomes if outcome.result is None] == [tasks[1]]
    assert outcomes[-1].task == tasks[1], "it was not the last, so it was not alone"
    assert (tmp_path / "poison").stat().st_size >= 2 * ATTEMPTS


class Poisoned:
    """The actor of a build, which one photo kills."""

    def __init__(self, job: EncodeJob, environment: Mapping[str, str]) -> None:
        from pipelines.build.actors import _EncodeActor

        self._actor = _EncodeActor(job, environment)

    def run(self, partition: Partition) -> EncodedSegment:
        if any(uri.endswith("poison.jpg") for uri in partition.images["uri"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._actor.run(partition)


def test_the_photos_of_a_segment_that_kills_its_workers_are_named_and_the_others_are_in_the_map(
    machines: TwoMachines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sample_city(tmp_path / "city", places=4, queries=1, unmapped=0)
    database = tmp_path / "city" / "database"
    photos = sorted(database.iterdir())
    photos[5].rename(photos[5].with_name("poison.jpg"))
    monkeypatch.setattr(
        "pipelines.build.actors.encode_actors",
        lambda job, cluster: lambda: actors_of(Poisoned).remote(job, cluster.worker_environment),
    )
    request = BuildRequest(recipe="tiny", map_url=str(tmp_path / "map"), photos=(str(database),), partition=SMALL, workers="ray")

    built = run_build(request, Settings(threads=1, ray_address=machines.address))

    storage = open_storage(str(tmp_path / "map"), Settings(threads=1))
    rejects = read_table(storage, built.rejects.removeprefix(f"{storage.url}/"), kind="rejects")
    assert "database/poison.jpg" in rejects["uri"].to_pylist()
    assert set(rejects["reason"].to_pylist()) == {"gave-up"}
    assert built.rejected == {"gave-up": len(rejects)}
    assert 1 <= len(rejects) <= SMALL.max_photos
    assert built.photos == len(photos) - len(rejects)
    assert verify(storage).problems == []


def test_a_worker_that_cannot_be_made_stops_the_run_and_says_why(machines: TwoMachines) -> None:
    with (
        ray_ground.ray_cluster(Settings(threads=1, ray_address=machines.address)) as cluster,
        pytest.raises(WorkError, match=r"(?s)a worker cannot start: .*no such weights.*2 tasks were not done"),
    ):
        list(run_on_ray([1, 2], actors_of(Failing).remote, cluster.workers, on_task=lambda _: None))
