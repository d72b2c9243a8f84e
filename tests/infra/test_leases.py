"""Who is at work, by the store's clock."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from infra import leases
from infra.leases import HeldLease, lease, live_leases, store_now, wait_for_gc
from infra.storage import Storage
from schemas.errors import StorageError, WorkError
from schemas.manifest import Lease, encode_json
from tests.infra.clocked_storage import ClockedStorage


def at_work(storage: Storage) -> list[str]:
    return [one.run_id for one in live_leases(storage)]


@pytest.fixture
def clocked() -> ClockedStorage:
    return ClockedStorage()


def killed(storage: Storage, run_id: str, action: str) -> HeldLease:
    """A run that wrote its lease once and then neither renewed nor ended it."""
    held = HeldLease(storage, Lease(run_id=run_id, action=action))
    held.renew()
    return held


def test_a_run_is_at_work_from_the_start_to_the_end_of_the_block_and_leaves_nothing(storage: Storage):
    with lease(storage, run_id="r1", action="rollback", pins=[3, 2]):
        assert [(one.run_id, one.action, one.pins) for one in live_leases(storage)] == [("r1", "rollback", [2, 3])]

    assert list(storage.list()) == []


def test_a_run_that_fails_is_not_at_work_any_more(clocked: ClockedStorage):
    with pytest.raises(KeyError), lease(clocked, run_id="r1", action="build"):
        raise KeyError

    assert at_work(clocked) == []


def test_two_processes_that_do_the_same_run_do_not_end_each_others_lease(clocked: ClockedStorage):
    with lease(clocked, run_id="r1", action="build"):
        with lease(clocked, run_id="r1", action="build"):
            pass
        assert at_work(clocked) == ["r1"]


def test_the_lease_of_a_killed_run_ends_by_itself_after_a_quarter_of_an_hour(clocked: ClockedStorage):
    killed(clocked, "r1", "build")

    clocked.turn(minutes=14, seconds=59)
    assert at_work(clocked) == ["r1"]
    clocked.turn(seconds=1)
    assert at_work(clocked) == []


def test_a_beat_renews_the_lease_also_after_one_that_failed(clocked: ClockedStorage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    beats: list[datetime] = []
    write = clocked.put

    def put(path: str, data: bytes) -> None:
        if "lease-" in path:
            beats.append(clocked.now)
            if len(beats) == 2:
                raise StorageError("503")
        write(path, data)

    monkeypatch.setattr(clocked, "put", put)
    with lease(clocked, run_id="r1", action="build"):
        clocked.turn(minutes=20)
        while len(beats) < 4:
            pass
        assert at_work(clocked) == ["r1"]


def test_a_damaged_lease_counts_until_its_time_is_over(clocked: ClockedStorage):
    clocked.put("runs/r1/lease-0a.json", b"{")
    clocked.put("runs/r2/lease.json", encode_json(Lease(run_id="r2", action="build"))[:-40])

    assert [(one.run_id, one.action) for one in live_leases(clocked)] == [("r1", "unknown"), ("r2", "unknown")]
    clocked.turn(minutes=15)
    assert at_work(clocked) == []


def test_other_objects_of_runs_are_no_leases(clocked: ClockedStorage):
    clocked.put("runs/r1/plan.json", b"{}")

    assert at_work(clocked) == []


def test_the_time_is_the_stores_not_the_hosts(clocked: ClockedStorage):
    assert store_now(clocked) == datetime(2026, 11, 1, tzinfo=UTC)
    assert clocked.paths() == set()


def test_every_store_tells_the_time(storage: Storage):
    assert abs(store_now(storage) - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_run_waits_for_gc_and_says_so(clocked: ClockedStorage, caplog: pytest.LogCaptureFixture):
    killed(clocked, "gc-1", "gc")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clocked.turn(seconds=seconds)

    with caplog.at_level(logging.WARNING):
        wait_for_gc(clocked, sleep=sleep)

    assert sum(waited) == 180  # a killed gc holds others up for three minutes
    assert caplog.text.count("folio gc is at work (gc-1); waiting") == 1


def test_a_gc_that_never_ends_is_not_waited_for_for_ever(clocked: ClockedStorage):
    gc = killed(clocked, "gc-1", "gc")

    with pytest.raises(WorkError, match=r"folio gc \(gc-1\) is still at work after 15 minutes.*Nothing was changed"):
        wait_for_gc(clocked, sleep=lambda _: gc.renew())


def test_a_run_that_meets_gc_has_its_own_lease_while_it_waits(clocked: ClockedStorage, monkeypatch: pytest.MonkeyPatch):
    """Else gc, which looks after it has written its lease, would see nobody."""
    seen: list[list[str]] = []
    monkeypatch.setattr(leases, "wait_for_gc", lambda storage: seen.append(at_work(storage)))

    with lease(clocked, run_id="r1", action="build"), lease(clocked, run_id="gc-1", action="gc"):
        pass

    assert seen == [["r1"]]  # gc itself does not wait


@pytest.mark.parametrize(("action", "limit_s"), [("build", 14 * 60), ("gc", 2 * 60)])
def test_a_run_that_slept_too_long_may_not_go_on(
    clocked: ClockedStorage, monkeypatch: pytest.MonkeyPatch, action: str, limit_s: int
):
    host = [1000.0]
    monkeypatch.setattr("infra.leases.time.time", lambda: host[0])
    held = killed(clocked, "r1", action)

    def slept(seconds: float) -> Callable[[], None]:
        host[0] += seconds
        return held.require

    slept(limit_s - 1)()
    with pytest.raises(WorkError, match=r"asleep or cut off from the store for .* minutes.*Run the same command again"):
        slept(1)()
    held.renew()
    with pytest.raises(WorkError):  # renewed or not: it had lapsed, and others may have cleaned up
        held.require()
