"""Eight publishers at once, on disk, in memory and on a real S3 server: of each round one is the winner, and all know which."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import msgspec
import pytest

from infra import commits
from infra.commits import list_versions, publish, read_head
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.build import run_build
from schemas.errors import ConditionsIgnored
from schemas.manifest import Manifest
from tests.faults.ceph import Gateway
from tests.faults.conftest import SmallCity
from tests.faults.profile import FULL, record, rounds

WRITERS = 8
ROUNDS = rounds(quick=10, full=1000)
ROUNDS_A_MAP = 50
"""Then a new map is begun, whose list of versions is short."""

OpenMap = Callable[[str], Storage]


@pytest.fixture(params=["disk", "memory", "S3"])
def open_map(request: pytest.FixtureRequest, tmp_path: Path) -> OpenMap:
    """Open a map by its name: each time as another process would, with connections of its own."""
    if request.param == "disk":
        return lambda name: open_storage(str(tmp_path / name), Settings(threads=1))
    unique = uuid4().hex
    if request.param == "memory":
        return lambda name: open_storage(f"memory://{unique}/{name}", Settings(threads=1))
    settings = Settings(threads=1, s3_endpoint_url=request.getfixturevalue("gateway").endpoint)
    return lambda name: open_storage(f"s3://maps/{unique}/{name}", settings)


def each_round(open_map: OpenMap) -> Iterator[tuple[int, list[Storage]]]:
    for round_ in range(ROUNDS):
        if round_ % ROUNDS_A_MAP == 0:
            storages = [open_map(f"map{round_}"), open_map(f"map{round_}")] * (WRITERS // 2)
        yield round_, storages


def note(request: pytest.FixtureRequest, what: str, seconds: float, failures: int) -> None:
    store = request.node.callspec.params["open_map"]
    record(f"eight {what} racing, {store}", rounds=ROUNDS, failures=failures, seconds=seconds, note="one winner each")


@pytest.mark.timeout(3600 if FULL else 300)
def test_of_eight_creators_of_an_object_one_is_told_that_it_did(open_map: OpenMap, request: pytest.FixtureRequest):
    start, began, failures = Barrier(WRITERS), time.monotonic(), 0

    def create(writer: int, storage: Storage, path: str) -> bool:
        start.wait()
        return storage.put_if_absent(path, f"writer {writer}".encode())

    with ThreadPoolExecutor(WRITERS) as pool:
        for round_, storages in each_round(open_map):
            path = f"objects/{round_}"
            won = list(pool.map(create, range(WRITERS), storages, [path] * WRITERS))
            failures += won.count(True) != 1 or storages[0].get(path) != f"writer {won.index(True)}".encode()

    note(request, "creators", time.monotonic() - began, failures)
    assert failures == 0


@pytest.mark.timeout(3600 if FULL else 300)
def test_of_eight_publishers_of_a_version_one_wins_and_all_others_see_it(
    open_map: OpenMap, request: pytest.FixtureRequest, small_city: SmallCity, monkeypatch: pytest.MonkeyPatch
):
    """Each wants to publish on top of the version before the round, and nothing where another was faster."""
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.001)
    start, began, failures = Barrier(WRITERS), time.monotonic(), 0

    def race(writer: int, storage: Storage, before: int) -> Manifest:
        def make(head: Manifest | None) -> Manifest | None:
            if (head.version if head else 0) > before:
                return None
            return msgspec.structs.replace(small_city.undisturbed, configuration={"writer": writer})

        start.wait()
        return publish(storage, make)

    with ThreadPoolExecutor(WRITERS) as pool:
        for round_, storages in each_round(open_map):
            before = round_ % ROUNDS_A_MAP
            seen = list(pool.map(race, range(WRITERS), storages, [before] * WRITERS))
            failures += len({manifest.commit_id for manifest in seen}) != 1 or seen[0].version != before + 1
            failures += list_versions(storages[0]) != list(range(1, before + 2))

    note(request, "publishers", time.monotonic() - began, failures)
    assert failures == 0


def test_a_bucket_that_ignores_conditions_is_refused_unless_there_is_one_writer_only(gateway: Gateway, small_city: SmallCity):
    """Ceph takes every create in a bucket with versioning for a new version of the object."""
    import boto3

    client = boto3.client("s3", endpoint_url=gateway.endpoint)
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    settings = Settings(threads=1, s3_endpoint_url=gateway.endpoint)

    storage, request = open_storage("s3://versioned/lund", settings), small_city.request("s3://versioned/lund")

    with pytest.raises(ConditionsIgnored, match=r"s3://versioned/lund: \d of 9 writers.*Nothing was published.*--single-writer"):
        run_build(request, settings)
    assert list_versions(storage) == []
    run_build(replace(request, single_writer=True), settings)
    assert read_head(storage).single_writer
