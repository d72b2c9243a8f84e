"""Leases: how runs on any machine show gc that they are at work, without a lock service.

A run writes `runs/<run_id>/lease-<8 hex digits>.json` and again every minute. It counts for a quarter of an hour after it was
written last, by the store's clock, so a killed run's lease ends by itself and a wrong clock of a host does no harm. The digits
keep two processes that do the same run from ending each other's lease.

A run writes its lease first and looks for gc then; gc writes its own first and looks for runs then. So at least one of the two
sees the other: gc that sees a run removes nothing that anything names, and a run that sees gc waits. This spares runs the loss
of finished work. That no version is ever damaged does not rest on leases and clocks, but on `commits.fence`.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Final
from uuid import uuid4

from infra.storage import ObjectInfo, Storage
from schemas import layout
from schemas.errors import MapError, ObjectMissing, StorageError, WorkError
from schemas.manifest import Lease, decode_lease, encode_json

BEAT_S: Final = 60.0
"""How often a lease is written again."""

LIFETIME_S: Final = 15 * BEAT_S
"""How long a lease counts after it was written last."""

GC_LIFETIME_S: Final = 3 * BEAT_S
"""The same for gc, for which others wait; should it wake later, `commits.fence` keeps it harmless."""

MARGIN_S: Final = BEAT_S
"""How long before its end a run no longer counts on its lease: the request that follows takes time too."""

WAIT_S: Final = LIFETIME_S
"""How long a run waits for gc."""

WAIT_PAUSE_S: Final = 2.0

GC: Final = "gc"
"""The action of gc's lease."""

_LEASE: Final = re.compile(r"runs/([^/]+)/lease(-[0-9a-f]+)?\.json")

_log = logging.getLogger(__name__)


class HeldLease:
    """A lease of this process."""

    def __init__(self, storage: Storage, lease: Lease) -> None:
        self.path: Final = f"{layout.run_folder(lease.run_id)}/lease-{uuid4().hex[:8]}.json"
        self._storage = storage
        self._lease = lease
        self._written_at: float | None = None
        self._longest_silence_s = 0.0

    def renew(self) -> None:
        """Write the lease now.

        Raises:
            StorageError: it could not be written; it still counts as long as the last time it was.
        """
        # Before the request, and not a monotonic clock: it must not seem younger than it is, nor stop when the machine sleeps.
        now = time.time()
        self._storage.put(self.path, encode_json(self._lease))
        self._longest_silence_s = max(self._longest_silence_s, self._silence_s(now))
        self._written_at = now

    def require(self) -> None:
        """Make sure that the lease has never lapsed, so that what the run found in the store at its start is still there.

        Raises:
            WorkError: it may have.
        """
        silence_s = max(self._longest_silence_s, self._silence_s(time.time()))
        lifetime_s = (GC_LIFETIME_S if self._lease.action == GC else LIFETIME_S) - MARGIN_S
        if silence_s >= lifetime_s:
            raise WorkError(
                f"{self._storage.url}: this run was asleep or cut off from the store for {silence_s / 60:.0f} minutes, needed "
                f"less than {lifetime_s / 60:.0f}: others may have cleaned up since. It publishes nothing more, finished work is "
                "kept. Run the same command again."
            )

    def _silence_s(self, now: float) -> float:
        return 0.0 if self._written_at is None else now - self._written_at


@contextmanager
def lease(storage: Storage, *, run_id: str, action: str, pins: Sequence[int] = (), waits: bool = True) -> Iterator[HeldLease]:
    """Show that a run is at work, from here to the end of the block. Every run but gc first waits for a gc to finish.

    Args:
        storage: of the map.
        run_id: whose folder in the store gc leaves alone.
        action: the command at work.
        pins: versions that gc must leave whole.
        waits: False for a run that only needs what the newest version names, and has no time to lose.

    Raises:
        StorageError: the lease cannot be written.
        WorkError: a gc did not finish in a quarter of an hour.
    """
    held = HeldLease(storage, Lease(run_id=run_id, action=action, pins=sorted(pins)))
    held.renew()
    done = Event()
    heart = Thread(target=_beat, args=(held, done), name=f"lease of {run_id}", daemon=True)
    heart.start()
    try:
        if waits and action != GC:
            wait_for_gc(storage)
        yield held
    finally:
        done.set()
        heart.join()  # else its last beat could come after the end
        with suppress(StorageError):  # then it ends by itself
            storage.delete(held.path)


def live_leases(storage: Storage, *, now: datetime | None = None) -> list[Lease]:
    """List the leases that count now, by path. One that is damaged counts too, as one of an action `unknown`.

    Args:
        storage: of the map.
        now: what time it is, for who may not write; None: by the store's clock, which is asked by writing.

    Raises:
        StorageError: the store cannot be asked.
    """
    now = now or store_now(storage)
    ages_s = {info.path: _age_s(info, now) for info in storage.list("runs") if _LEASE.fullmatch(info.path)}
    live = [(_read(storage, path), age_s) for path, age_s in ages_s.items() if age_s < LIFETIME_S]
    return [one for one, age_s in live if one and (one.action != GC or age_s < GC_LIFETIME_S)]


def wait_for_gc(storage: Storage, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until no gc is at work.

    Args:
        storage: of the map; the caller's own lease is in it already.
        sleep: waits so many seconds.

    Raises:
        WorkError: there still is one after a quarter of an hour.
    """
    waited_s = 0.0
    while at_work := [one.run_id for one in live_leases(storage) if one.action == GC]:
        if not waited_s:
            _log.warning("%s: folio gc is at work (%s); waiting until it has finished", storage.url, ", ".join(at_work))
        if waited_s >= WAIT_S:
            raise WorkError(
                f"{storage.url}: folio gc ({', '.join(at_work)}) is still at work after {WAIT_S / 60:.0f} minutes, needed it to "
                "finish. Nothing was changed. Wait for it, or stop it and run this command again three minutes later."
            )
        sleep(WAIT_PAUSE_S)
        waited_s += WAIT_PAUSE_S


def store_now(storage: Storage) -> datetime:
    """Read the store's clock: the time it gives to an object that is written now. In memory that is the host's.

    Raises:
        StorageError: nothing can be written there.
    """
    path = layout.run_folder(f"clock-{uuid4().hex[:8]}")
    storage.put(path, b"Folio asks for the time.")
    try:
        return storage.info(path).modified_at or datetime.now(UTC)
    finally:
        storage.delete(path)


def _beat(held: HeldLease, done: Event) -> None:
    while not done.wait(BEAT_S):
        try:
            held.renew()
        except StorageError as error:
            _log.warning("a lease could not be renewed, trying again in %.0f s: %s", BEAT_S, error)


def _read(storage: Storage, path: str) -> Lease | None:
    try:
        return decode_lease(storage.get(path), where=f"{storage.url}/{path}")
    except ObjectMissing:  # it has just ended
        return None
    except MapError:
        return Lease(run_id=path.split("/")[1], action="unknown")


def _age_s(info: ObjectInfo, now: datetime) -> float:
    """Tell how long ago an object was written; where the store does not say, it counts as new."""
    return (now - (info.modified_at or now)) / timedelta(seconds=1)
