"""A real S3 server behind a proxy that fails three requests in ten: maps come out as if it had not."""

import time
from collections import Counter
from uuid import uuid4

import msgspec
import pytest

from infra import storage as storage_module
from infra.commits import list_versions, publish, read_receipts, write_receipt
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.build import run_build
from pipelines.maintain.versions import rollback
from schemas.manifest import Manifest, Receipt
from tests.faults.ceph import Gateway
from tests.faults.conftest import SmallCity
from tests.faults.profile import FULL, record, rounds
from tests.faults.proxy import SHARES, Fault, Plan, Proxy, once, seeded

BUILDS = rounds(quick=1, full=20)
PUBLISHES = rounds(quick=10, full=300)


def through(proxy: Proxy, name: str) -> Storage:
    return open_storage(f"s3://maps/{name}", Settings(threads=1, s3_endpoint_url=proxy.endpoint))


def counted(faults: Counter[Fault]) -> str:
    return ", ".join(f"{faults[fault]} {fault.name}" for fault in Fault)


@pytest.mark.timeout(3600 if FULL else 300)
def test_builds_finish_with_the_same_content_and_no_version_too_many(gateway: Gateway, small_city: SmallCity):
    began, faults, requests, failures = time.monotonic(), Counter[Fault](), 0, 0
    for seed in range(BUILDS):
        name = f"faults-{uuid4().hex}"
        with Proxy(gateway.endpoint, seeded(seed)) as proxy:
            settings = Settings(threads=2, s3_endpoint_url=proxy.endpoint)
            request = small_city.request(f"s3://maps/{name}")
            first, again = run_build(request, settings), run_build(request, settings)
            rollback(through(proxy, name), 1)
        faults += proxy.faults
        requests += len(proxy.requests)
        behind = open_storage(f"s3://maps/{name}", Settings(threads=1, s3_endpoint_url=gateway.endpoint))
        small_city.check(behind)
        attempts = {info.path.split("/")[2] for info in behind.list("segments")}
        failures += not first.published or again.published or list_versions(behind) != [1]
        failures += len(attempts) != len(read_receipts(behind))
    seconds = time.monotonic() - began
    record(
        "builds on an S3 that fails",
        rounds=BUILDS,
        failures=failures,
        seconds=seconds,
        note=f"{requests} requests: {counted(faults)}",
    )
    assert failures == 0


@pytest.mark.timeout(3600 if FULL else 300)
def test_publishes_are_neither_lost_nor_doubled_nor_taken_for_anothers(gateway: Gateway, small_city: SmallCity):
    """Nobody else writes here, so each conflict would be one with ourselves."""
    began, failures, name = time.monotonic(), 0, f"publishes-{uuid4().hex}"
    no_stalls = {fault: share for fault, share in SHARES.items() if fault != Fault.STALL}
    with Proxy(gateway.endpoint, seeded(0, no_stalls)) as proxy:
        storage = through(proxy, name)
        for number in range(PUBLISHES):
            made: list[int] = []

            def make(head: Manifest | None, number: int = number, made: list[int] = made) -> Manifest:
                made.append(number)
                return msgspec.structs.replace(small_city.undisturbed, configuration={"number": number})

            receipt = Receipt(
                segment_id=f"{number:032x}", attempt="0", model_fingerprint="f", rows=1, rejected=0, bbox=None, objects=[]
            )
            failures += write_receipt(storage, receipt).attempt != receipt.attempt
            failures += publish(storage, make).version != number + 1 or len(made) != 1
    behind = open_storage(f"s3://maps/{name}", Settings(threads=1, s3_endpoint_url=gateway.endpoint))
    failures += list_versions(behind) != list(range(1, PUBLISHES + 1)) or len(read_receipts(behind)) != PUBLISHES
    note = f"{len(proxy.requests)} requests: {counted(proxy.faults)}"
    record("publishes on an S3 that fails", rounds=PUBLISHES, failures=failures, seconds=time.monotonic() - began, note=note)
    assert failures == 0


@pytest.mark.parametrize("fault", Fault)
def test_a_create_whose_request_suffers_is_still_our_own(gateway: Gateway, fault: Fault):
    """Also where the client's HTTP library silently sends it again on a new connection, and is refused."""
    with Proxy(gateway.endpoint, once(fault, "PUT", "/first"), stall_s=0.2) as proxy:
        storage = through(proxy, uuid4().hex)
        storage.put("warm", b"so that the connection is one that was used before")

        assert storage.put_if_absent("first", b"mine")
        assert not storage.put_if_absent("first", b"another's")
        assert storage.get("first") == b"mine"
    assert proxy.faults == {fault: 1}


def test_a_server_that_does_not_answer_is_given_up_and_asked_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage_module, "READ_TIMEOUT_S", 0.5)
    with Proxy(gateway.endpoint, once(Fault.STALL, "PUT", "/first"), stall_s=2) as proxy:
        storage = through(proxy, uuid4().hex)

        assert storage.put_if_absent("first", b"mine")

        assert len([path for method, path in proxy.requests if method == "PUT"]) >= 2
        time.sleep(2)  # until the first request, which was held up, comes after all
        assert storage.get("first") == b"mine"


@pytest.mark.slow
def test_a_large_object_goes_up_and_comes_down_though_some_of_its_parts_fail(gateway: Gateway):
    content = bytes(range(256)) * (110 << 12)  # 110 MB: three parts up, seven down
    with Proxy(gateway.endpoint, failing_parts()) as proxy:
        storage = through(proxy, uuid4().hex)

        storage.put("large", content)

        assert storage.get("large") == content
    assert proxy.faults[Fault.LOST] == proxy.faults[Fault.ERROR_503] == 2


def failing_parts() -> Plan:
    """Lose the answers of one part and of its completion; refuse two reads."""
    plans = [
        once(Fault.LOST, "PUT", "partNumber=2"),
        once(Fault.LOST, "POST", "uploadId"),
        once(Fault.ERROR_503, "GET", "large"),
        once(Fault.ERROR_503, "GET", "large"),
    ]
    return lambda method, path: next((fault for plan in plans if (fault := plan(method, path))), None)
