"""The S3 server dies in the middle of a build and comes back: the build goes on, or says what to do, and that completes it."""

import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import uuid4

import pytest

from infra import storage as storage_module
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildSummary
from schemas.errors import CommitUnknown, FolioError, StorageError
from tests.faults.ceph import PARTS, Gateway, Part
from tests.faults.conftest import SmallCity
from tests.faults.profile import FULL, record, rounds

KILLS = rounds(quick=1, full=10)
KILLED: dict[str, tuple[Part, ...]] = {"the gateway": ("rgw",), "all of it": PARTS}
if FULL:
    KILLED["what keeps the bytes"] = ("osd",)


def objects(storage: Storage) -> int:
    return sum(1 for _ in storage.list())


@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize("parts", KILLED.values(), ids=KILLED)
def test_a_build_outlives_a_server_killed_in_the_middle_of_it(
    gateway: Gateway, small_city: SmallCity, parts: tuple[Part, ...], request: pytest.FixtureRequest
):
    began, moments, rode_out = time.monotonic(), random.Random(7), 0
    settings = Settings(threads=1, s3_endpoint_url=gateway.endpoint)
    for _ in range(KILLS):
        url = f"s3://maps/killed-{uuid4().hex}"
        storage = open_storage(url, settings)
        with ThreadPoolExecutor(
            1
        ) as pool:  # this thread kills and starts: children live no longer than the thread that made them
            build = pool.submit(run_build, small_city.request(url), settings)
            until = moments.randrange(1, 10 * len(small_city.undisturbed.segments))
            while objects(storage) < until and not build.done():
                time.sleep(0.02)
            gateway.kill(*parts)
            time.sleep(moments.uniform(0, 1))
            gateway.start(*parts)
            rode_out += finished(build)
        run_build(small_city.request(url), settings)
        small_city.check(storage)
    what = f"S3 server killed and restarted in a build: {request.node.callspec.id}"
    note = f"{rode_out} builds rode it out, the others resumed"
    record(what, rounds=KILLS, failures=0, seconds=time.monotonic() - began, note=note)


def test_a_build_whose_server_stays_away_says_what_to_do_and_that_completes_it(
    gateway: Gateway, small_city: SmallCity, monkeypatch: pytest.MonkeyPatch
):
    url, settings = f"s3://maps/away-{uuid4().hex}", Settings(threads=1, s3_endpoint_url=gateway.endpoint)
    storage = open_storage(url, settings)
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as impatient:
        impatient.setattr(storage_module, "ATTEMPTS", 3)
        build = pool.submit(run_build, small_city.request(url), settings)
        while objects(storage) < 10:
            time.sleep(0.02)
        gateway.kill("rgw")
        try:
            assert not finished(build)
        finally:
            gateway.start("rgw")
    run_build(small_city.request(url), settings)
    small_city.check(storage)


def finished(build: "Future[BuildSummary]") -> bool:
    """Whether a build came to its end; an error must be one that a user can do something about."""
    error = build.exception()
    if error is None:
        return True
    assert isinstance(error, StorageError | CommitUnknown), error
    assert isinstance(error, FolioError)
    assert "run the same command again" in str(error).lower()
    assert "\n" not in str(error)
    return False
