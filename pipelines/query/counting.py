"""What the answering of a catalog tells of itself while it goes on: to a progress bar, and to Prometheus (`infra.metrics`).

A chunk is counted once its answers are kept, so that what a run that is stopped has counted is what the next one takes over.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

from infra.metrics import (
    METRICS,
    NETWORK_SECONDS,
    PHOTO_BYTES,
    PHOTOS_KNOWN,
    PHOTOS_LEFT,
    PHOTOS_READY,
    PHOTOS_REJECTED,
    PHOTOS_SEARCHED,
    PHOTOS_SEEN,
    SEARCH_SECONDS,
    WAITED_SECONDS,
    WORKER_SECONDS,
)
from infra.observability import ProgressBar, Stopwatch
from pipelines.catalog.loading import Waiting
from pipelines.catalog.sources import Catalog
from schemas.errors import PhotoError

COUNTED: Final = (
    PHOTOS_SEEN,
    PHOTOS_SEARCHED,
    PHOTOS_REJECTED,
    PHOTO_BYTES,
    WORKER_SECONDS,
    NETWORK_SECONDS,
    WAITED_SECONDS,
    SEARCH_SECONDS,
)
"""Begin at zero when a catalog is answered again within a run, because a store did not answer: what the first try kept is known
from before then, as it is when a run goes on after another."""


class Counting:
    """Counts the photos of a catalog as they are done with, and where the time of each chunk went. For one thread."""

    def __init__(self, catalog: Catalog, bar: ProgressBar) -> None:
        self.clock = Stopwatch()
        """Of the chunk under way: `network` and `search`."""
        self.waiting: Final = Waiting()
        """For its photos."""
        self._bar = bar
        self._size_bytes = catalog.images["size_bytes"].to_numpy()
        self._left = len(catalog.images)
        self._since_s = time.perf_counter()
        METRICS.restart(*COUNTED)
        self._reject(catalog.rejects["reason"].to_pylist())

    def known(self, photos: int) -> None:
        """Count what was answered before. The time of the first chunk begins now."""
        METRICS.set(PHOTOS_KNOWN, photos)
        self._done(photos)
        self._since_s = time.perf_counter()

    def chunk(self, answered: Collection[int], unusable: Mapping[int, PhotoError]) -> None:
        """Count a chunk, by its rows of the catalog: those with an answer that is kept now, and those that cannot be used."""
        photos, seconds, now = len(answered) + len(unusable), self.clock.seconds(), time.perf_counter()
        METRICS.add(PHOTOS_SEEN, photos)
        METRICS.add(PHOTOS_SEARCHED, len(answered))
        METRICS.add(PHOTO_BYTES, float(self._size_bytes[[*answered, *unusable]].sum()))
        self._reject([error.reason.value for error in unusable.values()])
        METRICS.add(WORKER_SECONDS, now - self._since_s)
        METRICS.add(NETWORK_SECONDS, seconds.get("network", 0.0))
        METRICS.add(SEARCH_SECONDS, seconds.get("search", 0.0))
        METRICS.add(WAITED_SECONDS, self.waiting.waited_s)
        METRICS.set(PHOTOS_READY, self.waiting.ready / photos)
        self.clock, self._since_s = Stopwatch(), now
        self.waiting.waited_s, self.waiting.ready = 0.0, 0
        self._done(photos)

    def copies(self, photos: int) -> None:
        """Count those that have the answer of another photo."""
        METRICS.add(PHOTOS_SEEN, photos)
        self._done(photos)

    def _reject(self, reasons: Collection[str]) -> None:
        for reason, count in Counter(reasons).items():
            METRICS.add(PHOTOS_REJECTED, count, reason)

    def _done(self, photos: int) -> None:
        self._left -= photos
        METRICS.set(PHOTOS_LEFT, self._left)
        self._bar.update(photos)
