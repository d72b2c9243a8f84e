"""How far the encoding of a run has come: counted as segments finish, for Prometheus and, in the store, for `folio status`.

`runs/<run_id>/progress.json` is written by the run's driver a few times a minute and decides nothing: what is finished has a
receipt. It spares those who ask the reading of all receipts, so asking costs the same for a large run as for a small one.
"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from infra.metrics import (
    METRICS,
    NETWORK_SECONDS,
    PHOTO_BYTES,
    PHOTOS_ENCODED,
    PHOTOS_LEFT,
    PHOTOS_READY,
    PHOTOS_REJECTED,
    SEGMENTS_FINISHED,
    SEGMENTS_LEFT,
    SEGMENTS_SET_ASIDE,
    STORE_RETRIES,
    WAITED_SECONDS,
    WORKER_SECONDS,
)
from infra.storage import Storage
from schemas import layout
from schemas.errors import MapError, ObjectMissing, StorageError
from schemas.manifest import Receipt, decode_document, encode_json
from schemas.versions import FORMATS

WRITE_EVERY_S: Final = 10.0
"""How often the document is written at most: at the usual 0.005 dollars for a thousand writes, 0.2 cents an hour."""

_log = logging.getLogger(__name__)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """`runs/<run_id>/progress.json`: what a run has encoded so far, also before it was interrupted."""

    format_version: int = FORMATS["progress"]
    run_id: str
    mode: str
    """`build` or `backfill`."""
    recipe: str
    device: str
    """The kind of device of the network: cpu, or cuda."""
    segments_planned: int
    photos_planned: int
    """In these."""
    segments_finished: int = 0
    photos_finished: int = 0
    """In these, usable or not."""
    rejected: dict[str, int] = {}
    """By reason; `earlier` are those of which an earlier start of the run did not say why."""
    set_aside: int = 0
    """Segments given up since their workers died each time."""
    started_at_s: float
    """When the run was last started; this and the next are seconds since 1970, by the clock of the driver."""
    last_receipt_at_s: float | None = None
    """When a segment was last finished since then."""
    photos_since_start: int = 0
    """Finished since then."""
    bytes_since_start: int = 0
    """Of these photos, as they were listed."""
    worker_s: float = 0.0
    """Seconds that workers spent on them."""
    network_s: float = 0.0
    """Those of them in the network."""
    waited_s: float = 0.0
    """Those of them in which the network waited for photos."""
    segments_since_start: int = 0
    sha256: str = ""
    """The seal; see `schemas.manifest`. Empty until the document is written."""

    @property
    def photos_per_second(self) -> float | None:
        """Of all workers together since the run was last started; None: nothing was finished since then."""
        if self.last_receipt_at_s is None or self.last_receipt_at_s <= self.started_at_s:
            return None
        return self.photos_since_start / (self.last_receipt_at_s - self.started_at_s)

    @property
    def seconds_left(self) -> float | None:
        """Estimate from that rate what the encoding still takes."""
        rate = self.photos_per_second
        return (self.photos_planned - self.photos_finished) / rate if rate else None


@dataclass(kw_only=True, slots=True)
class SegmentTally:
    """What became of the photos of one segment, and what they took; filled in by the worker that encodes it."""

    photos: int = 0
    """Usable or not."""
    size_bytes: int = 0
    """Of the photos, as they were listed."""
    rejected: Counter[str] = field(default_factory=Counter)
    queued_s: float = 0.0
    """In which it was ready and another segment had the network; in none of the times below."""
    worker_s: float = 0.0
    network_s: float = 0.0
    waited_s: float = 0.0
    """Of that time, in which the network waited for photos."""
    ready: int = 0
    """Photos that were ready when one was taken, added up over the photos."""
    store_retries: dict[str, float] = field(default_factory=dict)
    """By verb; of a worker in a process of its own. One in the driver's process has counted them there already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSegment:
    """What a worker gives to the driver: small enough to send from anywhere."""

    receipt: Receipt
    tally: SegmentTally


class ProgressKeeper:
    """Counts the segments of a run as they finish. For the driver's one thread."""

    def __init__(self, storage: Storage, progress: Progress) -> None:
        self._storage = storage
        self._progress = progress
        self._written_s = 0.0
        self._show_what_is_left()
        self.write()

    def finished(self, segment: EncodedSegment) -> None:
        """Count a segment that now has a receipt."""
        tally, before = segment.tally, self._progress
        METRICS.add(SEGMENTS_FINISHED)
        METRICS.add(PHOTOS_ENCODED, tally.photos - tally.rejected.total())
        METRICS.add(PHOTO_BYTES, tally.size_bytes)
        METRICS.add(WORKER_SECONDS, tally.worker_s)
        METRICS.add(NETWORK_SECONDS, tally.network_s)
        METRICS.add(WAITED_SECONDS, tally.waited_s)
        METRICS.set(PHOTOS_READY, tally.ready / tally.photos if tally.photos else 0.0)
        for reason, count in tally.rejected.items():
            METRICS.add(PHOTOS_REJECTED, count, reason)
        for verb, tries in tally.store_retries.items():
            METRICS.add(STORE_RETRIES, tries, verb)
        self._progress = msgspec.structs.replace(
            before,
            segments_finished=before.segments_finished + 1,
            photos_finished=before.photos_finished + tally.photos,
            rejected=dict(Counter(before.rejected) + tally.rejected),
            last_receipt_at_s=time.time(),
            photos_since_start=before.photos_since_start + tally.photos,
            segments_since_start=before.segments_since_start + 1,
            bytes_since_start=before.bytes_since_start + tally.size_bytes,
            worker_s=before.worker_s + tally.worker_s,
            network_s=before.network_s + tally.network_s,
            waited_s=before.waited_s + tally.waited_s,
        )
        self._changed()

    def set_aside(self) -> None:
        """Count a segment that was given up."""
        METRICS.add(SEGMENTS_SET_ASIDE)
        self._progress = msgspec.structs.replace(self._progress, set_aside=self._progress.set_aside + 1)
        self._changed()

    def write(self) -> None:
        """Write the document now. What fails is told in the log alone: the run can do without."""
        self._written_s = time.monotonic()
        try:
            self._storage.put(progress_path(self._progress.run_id), encode_json(self._progress))
        except StorageError as error:
            _log.warning("how far the run has come could not be written: %s", error)

    def _changed(self) -> None:
        self._show_what_is_left()
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self.write()

    def _show_what_is_left(self) -> None:
        one = self._progress
        METRICS.set(SEGMENTS_LEFT, one.segments_planned - one.segments_finished)
        METRICS.set(PHOTOS_LEFT, one.photos_planned - one.photos_finished)


def begin(progress: Progress, finished: Mapping[str, Receipt], before: Progress | None) -> Progress:
    """Count what a run finds finished when it is started.

    Args:
        progress: the run, with nothing finished.
        finished: its segments that have a receipt, by id.
        before: the document of its last start, which knows the reasons; None: there is none.
    """
    rejected = Counter(before.rejected if before else {})
    unexplained = sum(receipt.rejected for receipt in finished.values()) - rejected.total()
    if unexplained > 0:
        rejected["earlier"] += unexplained
    return msgspec.structs.replace(
        progress,
        segments_finished=len(finished),
        photos_finished=sum(receipt.rows + receipt.rejected for receipt in finished.values()),
        rejected=dict(rejected) if unexplained >= 0 else {},
    )


def progress_path(run_id: str) -> str:
    """Name the document of a run."""
    return f"{layout.run_folder(run_id)}/{layout.PROGRESS}"


def read_progress(storage: Storage, run_id: str) -> Progress | None:
    """Read how far a run has come; None: it has not said so, or not so that it can be read."""
    path = progress_path(run_id)
    try:
        return decode_progress(storage.get(path), where=f"{storage.url}/{path}")
    except ObjectMissing:
        return None
    except MapError as error:  # it decides nothing
        _log.warning("how far an earlier run had come cannot be told: %s", error)
        return None


def decode_progress(data: bytes, *, where: str) -> Progress:
    """Read a stored document.

    Raises:
        DamagedError: it is not what was written.
        FormatError: it is something else, or of a format this Folio does not read.
    """
    return decode_document(data, Progress, "progress", where=where)
