"""The protocol of a map under every order of events that Hypothesis can think of.

Runs of all kinds, which are the real code but for the network, are stopped after any request to the store, killed there, put to
sleep, woken later, refused, or lose an answer, while the store's clock is turned. After every event everything that a map
promises is looked at. One assumption is left: a run does not sleep between its last look at its own lease and the request that
follows.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from threading import Semaphore, Thread, local
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from infra import commits, leases
from infra.commits import (
    head_or_none,
    list_retired,
    list_tags,
    list_versions,
    manifest_path,
    publish,
    read_receipts,
    write_receipt,
)
from infra.leases import lease, wait_for_gc
from infra.storage import ObjectInfo, Storage
from infra.tables import put_object
from pipelines.maintain import gc as gc_module
from pipelines.maintain import tags, versions
from pipelines.maintain.gc import SAFE_AGE, gc
from schemas.errors import CommitConflict, CommitError, CommitUnknown, FolioError, MapError, StorageError, WorkError
from schemas.manifest import Manifest, ObjectRef, Receipt, SegmentEntry, decode_manifest
from tests.faults.profile import record, rounds
from tests.infra.clocked_storage import ClockedStorage
from tests.schemas import samples

NAMES = [f"s{number}" for number in range(5)]
"""Segments that runs may want; each has two photos, of which a takedown takes the first."""

BOX = (13.0, 55.0, 13.1, 55.1)
MOST_RUNS = 4
KINDS = st.sampled_from(["backfill", "backfill", "build", "takedown", "rollback", "rollback", "gc", "gc", "tag", "untag"])
WANTED = st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=3)
BACK = st.integers(0, 3)
"""How many versions a rollback or a tag goes back."""

REQUESTS = {"few": 8, "drafted": 10_000, "all": 10_000}


class KilledError(BaseException):
    """What ends a run here that is killed: no clean-up of its own reaches the store after it."""


class Run:
    """One run in a thread of its own, which stands still except when it is stepped."""

    def __init__(self, what: str, store: ClockedStorage, body: Callable[[Storage], Any]) -> None:
        self.what = what
        self.asleep = False
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.leases: set[str] = set()
        self.commits: set[str] = set()
        """Ids of the manifests that it tried to create."""
        self.silence_s = 0.0
        """How long it has slept since it last renewed its leases."""
        self.longest_silence_s = 0.0
        self._budget = 0
        self._until = ""
        self._fault: str | None = None
        self._dead = False
        self._go, self._stands = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._live, args=(body, _View(self, store)), daemon=True)
        self._thread.start()

    def step(self, requests: int, *, until: str = "", fault: str | None = None) -> None:
        """Let it make so many requests, or until one after which `until` says to stop.

        What `fault` says happens to the last of them, or to the first create on the way.
        """
        self.asleep = False
        self._budget, self._until, self._fault = requests, until, fault
        self._go.release()
        self._stands.acquire()

    def kill(self) -> None:
        self._dead = True
        self.step(1)
        assert self.ended

    def request(self, do: Callable[[], Any], path: str, kind: str) -> Any:
        """Called by its storage: make a request, then stand still if this was the last one allowed."""
        if self._dead:
            raise KilledError
        strikes = self._fault is not None and (self._budget == 1 or kind == "create")
        fault, self._fault = (self._fault, None) if strikes else (None, self._fault)
        if fault == "killed":
            self._dead = True
            raise KilledError
        if fault == "refused":
            self._stand(path)
            raise StorageError("503 SlowDown")
        try:
            return do()
        finally:
            self._stand(path)
            if fault == "answer lost" and kind != "read":
                raise StorageError("timeout")

    def wait(self) -> None:
        """Stand still until it is stepped again, whatever it is still allowed."""
        self._budget = 1
        self._stand("")

    def _stand(self, path: str) -> None:
        self._budget -= 1
        if self._budget == 0 or (self._until == "drafted" and self.leases and path.startswith(("indexes/", "retired"))):
            self._stands.release()
            self._go.acquire()
        if self._dead:
            raise KilledError

    def _live(self, body: Callable[[Storage], Any], view: "_View") -> None:
        HERE.run = self
        self._go.acquire()
        try:
            self.result = body(view)
        except BaseException as error:  # noqa: BLE001  the machine looks at it
            self.error = error
        self.ended = True
        self._stands.release()


class _View:
    """A run's own view of the store."""

    def __init__(self, run: Run, store: ClockedStorage) -> None:
        self.url = store.url
        self._run = run
        self._store = store

    def get(self, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        return self._run.request(lambda: self._store.get(path, start=start, stop=stop), path, "read")

    def put(self, path: str, data: bytes) -> None:
        if "/lease-" in path:
            self._run.leases.add(path)
        self._run.request(lambda: self._store.put(path, data), path, "write")

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if path.startswith("manifests/"):
            self._run.commits.add(decode_manifest(data, where=path).commit_id)
        return self._run.request(lambda: self._store.put_if_absent(path, data), path, "create")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from self._run.request(lambda: list(self._store.list(prefix)), prefix, "read")

    def leftovers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(())

    def info(self, path: str) -> ObjectInfo:
        return self._run.request(lambda: self._store.info(path), path, "read")

    def delete(self, path: str) -> None:
        self._run.leases.discard(path)
        self._run.request(lambda: self._store.delete(path), path, "write")


HERE = local()


def add_or_replace(storage: Storage, wanted: frozenset[str], action: str) -> Manifest:
    """A backfill or a build in small: encode what has no receipt, then publish."""
    with lease(storage, run_id=f"{action}-{unique()}", action=action) as held:
        base = head_or_none(storage)
        for name in sorted(wanted - read_receipts(storage).keys()):
            receipt = encoded(storage, name)
            held.require()
            write_receipt(storage, receipt)

        def make(head: Manifest | None) -> Manifest | None:
            if action == "build" and head is not None and (base is None or head.content_id != base.content_id):
                raise CommitConflict("another run has published")
            stored = read_receipts(storage)
            if not wanted <= stored.keys():
                raise WorkError("finished work is gone")
            kept = {entry.segment_id: entry for entry in head.segments} if head and action == "backfill" else {}
            added = {name: entry_of(stored[name]) for name in wanted - kept.keys()}
            draft = manifest_of(storage, head, kept | added, action)
            return None if head is not None and head.content_id == draft.content_id else draft

        return publish(storage, make, check=held.require)


def take_down(storage: Storage, name: str) -> Manifest | None:
    with lease(storage, run_id=f"takedown-{unique()}", action="takedown") as held:

        def make(head: Manifest | None) -> Manifest | None:
            assert head is not None
            table = put_object(storage, f"tombstones/{name}.parquet", name.encode())
            return (
                None if table in head.tombstones else without(storage, with_action(head, "takedown"), [*head.tombstones, table])
            )

        return publish(storage, make, check=held.require)


def without(storage: Storage, manifest: Manifest, tombstones: list[ObjectRef]) -> Manifest:
    """As `masking.without`, for tables that are the name of a segment."""
    down = {storage.get(ref.path).decode() for ref in tombstones}
    entries = {
        entry.segment_id: msgspec.structs.replace(entry, masked_rows=[(0, 1)] if entry.segment_id in down else [])
        for entry in manifest.segments
    }
    return msgspec.structs.replace(
        manifest, segments=list(entries.values()), tombstones=tombstones, content_id=content_of(entries, tombstones)
    )


def with_action(manifest: Manifest, action: Any) -> Manifest:
    return msgspec.structs.replace(manifest, action=action)


def encoded(storage: Storage, name: str) -> Receipt:
    attempt = unique()
    ref = put_object(storage, f"segments/{name}/{attempt}/images.parquet", f"photos of {name}".encode())
    return Receipt(
        segment_id=name, attempt=attempt, model_fingerprint="f", rows=2, rejected=0, bbox=BOX, objects=[ref], sha256=""
    )


def entry_of(receipt: Receipt) -> SegmentEntry:
    return SegmentEntry(segment_id=receipt.segment_id, attempt=receipt.attempt, rows=2, bbox=BOX, receipt_sha256=receipt.sha256)


def manifest_of(storage: Storage, head: Manifest | None, entries: dict[str, SegmentEntry], action: Any) -> Manifest:
    quantizer = put_object(storage, f"indexes/i/{unique()}/quantizer.faiss", b"a quantizer")
    sample = samples.manifest()
    draft = msgspec.structs.replace(
        sample,
        segments=list(entries.values()),
        index=msgspec.structs.replace(sample.index, quantizer=quantizer, shards=[]),
        tombstones=[],
        action=action,
    )
    return without(storage, draft, list(head.tombstones) if head else [])


def content_of(entries: dict[str, SegmentEntry], tombstones: list[ObjectRef]) -> str:
    seen = [sorted((name, one.masked_rows) for name, one in entries.items()), sorted(ref.path for ref in tombstones)]
    return hashlib.sha256(msgspec.json.encode(seen)).hexdigest()


def names_of(manifest: Manifest) -> set[str]:
    return {entry.segment_id for entry in manifest.segments}


class _Unique:
    """Names like those of uuid4, the same in every replay."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        return hashlib.sha256(str(self.made).encode()).hexdigest()[:12]


unique = _Unique()


@contextmanager
def replayable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No chance, no waiting and no clock but those of the machine."""
    made = lambda: SimpleNamespace(hex=unique() + unique())  # noqa: E731
    for module in (commits, leases, gc_module, versions, tags):
        monkeypatch.setattr(module, "uuid4", made)
    monkeypatch.setattr(commits, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(leases, "WAIT_PAUSE_S", 0.0)
    monkeypatch.setattr(leases, "wait_for_gc", lambda storage: wait_for_gc(storage, sleep=lambda _: HERE.run.wait()))
    monkeypatch.setattr(versions, "without", without)
    slept = lambda: max(HERE.run.longest_silence_s, HERE.run.silence_s)  # noqa: E731
    monkeypatch.setattr(leases, "time", SimpleNamespace(time=slept, sleep=lambda _: None))
    yield


class Protocol(RuleBasedStateMachine):
    """A map, runs at work on it, readers, and time."""

    def __init__(self) -> None:
        super().__init__()
        unique.made = 0
        self.store = ClockedStorage()
        self.running: list[Run] = []
        self.over: list[Run] = []
        self.commit_of: dict[int, str] = {}
        """What was seen at each number."""
        self.manifests: dict[int, Manifest] = {}
        self.failed: set[str] = set()
        """Commits of runs that said that nothing was published."""

    # What happens

    def collect(self, storage: Storage) -> Any:
        return gc(storage, delete=True)

    def start(self, what: str, wanted: frozenset[str], version: int) -> Run:
        name = min(wanted)
        body: Callable[[Storage], Any] = {
            "backfill": lambda storage: add_or_replace(storage, wanted, "backfill"),
            "build": lambda storage: add_or_replace(storage, wanted, "build"),
            "takedown": lambda storage: take_down(storage, name),
            "rollback": lambda storage: versions.rollback(storage, version),
            "tag": lambda storage: tags.tag(storage, f"tag-{version}", version),
            "untag": lambda storage: tags.delete_tag(storage, f"tag-{version}"),
            "gc": self.collect,
        }[what]
        run = Run(what, self.store, body)
        self.running.append(run)
        return run

    @initialize(days=st.sampled_from([0, 8]))
    def make_a_map_with_a_history(self, days: int) -> None:
        """Version 1 of s0 and s1, version 2 of s1 and s2."""
        for names in ("s0 s1", "s1 s2"):
            self._step(self.start("build", frozenset(names.split()), 0), REQUESTS["all"])
        self.store.turn(days=days)

    @precondition(lambda self: len(self.running) < MOST_RUNS)
    @rule(what=KINDS, wanted=WANTED, back=BACK, how_far=st.sampled_from(["few", "drafted", "all", "all"]))
    def begin(self, what: str, wanted: frozenset[str], back: int, how_far: str) -> None:
        """Start a run and let it go for a while, or to its end."""
        self._begin(what, wanted, back, how_far)

    @precondition(lambda self: len(self.running) < MOST_RUNS)
    @rule(
        what=st.sampled_from(["backfill", "build", "rollback", "takedown"]),
        wanted=WANTED,
        back=BACK,
        minutes=st.sampled_from([0, 0, 20]),
        others=st.lists(st.tuples(KINDS, WANTED, BACK), max_size=4),
        fault=st.sampled_from([None, None, "answer lost", "refused"]),
    )
    def is_overtaken(
        self,
        what: str,
        wanted: frozenset[str],
        back: int,
        minutes: int,
        others: list[tuple[str, frozenset[str], int]],
        fault: str | None,
    ) -> None:
        """A run that has made its draft stands still, perhaps asleep, while others run to their end; then it goes on."""
        slow = self._begin(what, wanted, back, "drafted")
        slow.asleep = True
        if minutes:
            self.time_passes(minutes)
        for other in others:
            self._begin(*other, "all")
            self.every_promise_holds()
        if not slow.ended:
            self._step(slow, REQUESTS["all"], fault=fault)

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0, MOST_RUNS - 1),
        requests=st.one_of(st.integers(1, 12), st.integers(1, 60), st.just(REQUESTS["all"])),
        until=st.sampled_from(["", "", "drafted"]),
        fault=st.sampled_from([None, None, None, "answer lost", "answer lost", "refused", "killed"]),
    )
    def go_on(self, which: int, requests: int, until: str, fault: str | None) -> None:
        """Let a run go on, and perhaps meet a fault."""
        self._step(self.running[which % len(self.running)], requests, until=until, fault=fault)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, MOST_RUNS - 1))
    def finish(self, which: int) -> None:
        """Let a run go on until it ends, or waits for another."""
        self._step(self.running[which % len(self.running)], REQUESTS["all"])

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, MOST_RUNS - 1))
    def kill(self, which: int) -> None:
        run = self.running[which % len(self.running)]
        run.kill()
        self._end(run)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, MOST_RUNS - 1), minutes=st.sampled_from([4, 20, 8 * 24 * 60]))
    def sleep(self, which: int, minutes: int) -> None:
        """A run sleeps, and its leases are not renewed until it is stepped again."""
        self.running[which % len(self.running)].asleep = True
        self.time_passes(minutes)

    @rule(minutes=st.sampled_from([1, 4 * 24 * 60, 8 * 24 * 60]))
    def time_passes(self, minutes: int) -> None:
        """Who is awake renews its lease all the while; nobody stays awake for days without a request."""
        self.store.turn(minutes=minutes)
        for run in self.running:
            if run.asleep or minutes > 24 * 60:
                run.silence_s += 60 * minutes
                continue
            run.longest_silence_s = max(run.longest_silence_s, run.silence_s)
            run.silence_s = 0.0
            for path in run.leases & self.store.paths("runs"):
                self.store.put(path, self.store.get(path))

    def _begin(self, what: str, wanted: frozenset[str], back: int, how_far: str) -> Run:
        run = self.start(what, wanted, max(1, list_versions(self.store)[-1] - back))
        self._step(run, REQUESTS[how_far], until=how_far)
        return run

    def _step(self, run: Run, requests: int, *, until: str = "", fault: str | None = None) -> None:
        run.step(requests, until=until, fault=fault)
        if run.ended:
            self._end(run)

    def _end(self, run: Run) -> None:
        self.running.remove(run)
        self.over.append(run)
        if run.error is not None and not isinstance(run.error, (FolioError, KilledError)):
            raise run.error
        if isinstance(run.error, (CommitConflict, MapError, CommitError)) and not isinstance(run.error, CommitUnknown):
            self.failed |= run.commits
        if isinstance(run.result, Manifest):
            self._note(run.result)

    def _note(self, manifest: Manifest) -> None:
        known = self.commit_of.setdefault(manifest.version, manifest.commit_id)
        assert known == manifest.commit_id, f"number {manifest.version} was given twice"
        self.manifests[manifest.version] = manifest

    # What must hold

    @invariant()
    def every_promise_holds(self) -> None:
        self._numbers_are_given_once_and_what_was_published_stays()  # first: it notes what there is
        self._every_version_is_made_from_the_one_before()
        self._who_said_that_nothing_was_published_published_nothing()
        self._every_version_that_needs_it_is_whole()

    def _numbers_are_given_once_and_what_was_published_stays(self) -> None:
        for version in list_versions(self.store):
            self._note(decode_manifest(self.store.get(manifest_path(version)), where="here"))
        head = head_or_none(self.store)
        if self.commit_of:
            assert head is not None, "everything published is gone"
            assert head.version == max(self.commit_of), (
                f"{max(self.commit_of)} was acknowledged, but {head.version} is the newest"
            )

    def _every_version_is_made_from_the_one_before(self) -> None:
        for version, manifest in self.manifests.items():
            assert manifest.parent == (version - 1 or None)
            before = self.manifests.get(version - 1)
            if before is None:
                continue
            if manifest.action in ("backfill", "takedown"):
                assert names_of(before) <= names_of(manifest), f"version {version} lost segments"
            taken = {ref.path for ref in before.tombstones}
            assert taken <= {ref.path for ref in manifest.tombstones}, f"version {version} forgot tombstones"
            for entry in manifest.segments:
                down = f"tombstones/{entry.segment_id}.parquet" in {ref.path for ref in manifest.tombstones}
                assert entry.masked_rows == ([(0, 1)] if down else []), f"version {version} brought a photo back"

    def _who_said_that_nothing_was_published_published_nothing(self) -> None:
        assert self.failed.isdisjoint(manifest.commit_id for manifest in self.manifests.values())

    def _every_version_that_needs_it_is_whole(self) -> None:
        """What is not retired, and what was the newest within the last days: readers may stand on it."""
        there, stored, retired = self.store.paths(), read_receipts(self.store), list_retired(self.store)
        assert retired.isdisjoint(list_tags(self.store).values()), "a tagged version was retired"
        for version, manifest in self.manifests.items():
            if version not in retired or self.store.now - self._replaced_at(version) < SAFE_AGE:
                self._require_whole(manifest, there, stored)

    def _replaced_at(self, version: int) -> datetime:
        """When a version stopped being the newest; now, where it has not."""
        successor = manifest_path(version + 1)
        if successor not in self.store.paths("manifests"):
            return self.store.now
        modified_at = self.store.info(successor).modified_at
        assert modified_at is not None
        return modified_at

    def _require_whole(self, manifest: Manifest, there: set[str], stored: dict[str, Receipt]) -> None:
        where = f"version {manifest.version}"
        assert manifest.index.quantizer is not None
        for path in [manifest.index.quantizer.path, *(ref.path for ref in manifest.tombstones)]:
            assert path in there, f"{where} names {path}, which is gone"
        for entry in manifest.segments:
            receipt = stored.get(entry.segment_id)
            assert receipt is not None, f"{where}: the receipt of {entry.segment_id} is gone"
            assert receipt.sha256 == entry.receipt_sha256, f"{where}: the receipt of {entry.segment_id} is another attempt's"
            assert {ref.path for ref in receipt.objects} <= there, f"{where}: objects of {entry.segment_id} are gone"

    def teardown(self) -> None:
        for run in list(self.running):
            run.kill()


@cache
def read_once(data: bytes) -> Manifest:
    return decode_manifest(data, where="here")


def profile(*, examples: int, steps: int) -> settings:
    """The same examples every time, and no time spent on making one that fails smaller."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


@pytest.fixture(autouse=True)
def _replayable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with replayable(monkeypatch):
        yield


@pytest.mark.timeout(3600)
def test_the_protocol_keeps_its_promises():
    started, examples, steps = time.monotonic(), rounds(quick=10, full=200), rounds(quick=30, full=75)

    run_state_machine_as_test(Protocol, settings=profile(examples=examples, steps=steps))

    record(
        "any order of publish, crash, sleep, lost answer, gc, rollback, tag, takedown",
        rounds=examples,
        failures=0,
        seconds=time.monotonic() - started,
        note=f"Hypothesis examples of {steps} steps",
    )


def believes(storage: Storage, path: str, data: bytes, check: Callable[[], None] = lambda: None) -> bytes:
    """`_create_or_read` without the read-back: no answer is taken for success."""
    check()
    try:
        return data if storage.put_if_absent(path, data) else storage.get(path)
    except StorageError:
        return data


def despairs(storage: Storage, path: str, data: bytes, check: Callable[[], None] = lambda: None) -> bytes:
    """The same, but no answer is taken for failure."""
    check()
    try:
        return data if storage.put_if_absent(path, data) else storage.get(path)
    except StorageError as error:
        raise CommitError("nothing was published") from error


class NumbersAreUsedAgain(Protocol):
    """A gc that cleans up old manifests too; versions without one are nobody's any more."""

    def collect(self, storage: Storage) -> Any:
        done = gc(storage, delete=True)
        for version in list_versions(storage)[:-1]:
            storage.delete(manifest_path(version))
        return done

    def _every_version_that_needs_it_is_whole(self) -> None:
        return


def search(machine: type[Protocol], number: int) -> None:
    """Search for a fault, beginning where it is found soon, so that this takes a moment; it would be found from anywhere."""
    run_state_machine_as_test(seed(number)(type("Seeded", (machine,), {})), settings=profile(examples=300, steps=40))


@pytest.mark.parametrize("mutated", [believes, despairs])
def test_without_the_read_back_the_machine_finds_the_fault(monkeypatch: pytest.MonkeyPatch, mutated: Callable[..., bytes]):
    monkeypatch.setattr(commits, "_create_or_read", mutated)

    with pytest.raises(AssertionError):
        search(Protocol, 3)


def test_with_numbers_that_are_used_again_the_machine_finds_the_fault():
    with pytest.raises(AssertionError, match=r"given twice|acknowledged"):
        search(NumbersAreUsedAgain, 2)


def test_without_a_look_at_the_own_lease_the_machine_finds_the_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leases.HeldLease, "require", lambda held: None)

    with pytest.raises(AssertionError, match="gone"):
        search(Protocol, 8)


def test_with_a_gc_that_does_not_look_for_runs_the_machine_finds_the_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gc_module, "live_leases", lambda storage: [])

    with pytest.raises(AssertionError, match=r"gone|retired"):
        search(Protocol, 1)
