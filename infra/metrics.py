"""What a run counts about itself, and how Prometheus gets to see it: a port to scrape, or a file for node-exporter.

Counting is a dictionary and a lock, so it is done whether anybody looks or not. prometheus_client is imported only where a port
(FOLIO_METRICS_PORT) or a file (FOLIO_METRICS_FILE) is asked for. The driver of a run counts for all its workers: what a worker on
another machine has done comes back with each segment.

A run counts what it does itself. What an interrupted one had finished it takes over and does not count again, so the counters of
both together say what was done. Photos of an archive that cannot be used are kept by neither: each tries and counts them.

A point in time is given as a timestamp and not as an age, as an age in a file would stand still when the run ends: lag is
`time() - folio_newest_manifest_timestamp_seconds`.
"""

import errno
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Final, Literal

from infra.settings import Settings
from schemas.errors import WorkError
from schemas.manifest import Manifest

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

FILE_EVERY_S: Final = 15.0
"""How often the file is written anew: as often as Prometheus usually looks."""

ACTION: Final = "{action}"
"""Stands in the name of the file for what the run does: `build`, `backfill` or `geotag`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """The declaration of one metric. A counter only grows while a run goes on; a gauge is what it is now."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind="counter", help=text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind="gauge", help=text, labels=labels)


PHOTOS_SEEN: Final = _counter(
    "folio_photos_seen_total", "Photos done with, usable or not; on Ray a segment at a time, of an archive a chunk at a time."
)
PHOTOS_ENCODED: Final = _counter("folio_photos_encoded_total", "Photos of finished segments.")
PHOTOS_SEARCHED: Final = _counter(
    "folio_photos_searched_total", "Photos of an archive that were looked for in the map; not copies, nor those known before."
)
PHOTOS_REJECTED: Final = _counter(
    "folio_photos_rejected_total",
    "Photos that cannot be used: of finished segments; of an archive, also those that its listing rejects.",
    "reason",
)
PHOTO_BYTES: Final = _counter(
    "folio_photo_bytes_total", "Bytes of the photos of finished segments, or of an archive's chunks, as they were listed."
)
SEGMENTS_FINISHED: Final = _counter("folio_segments_finished_total", "Segments with a receipt since this run was started.")
SEGMENTS_SET_ASIDE: Final = _counter("folio_segments_set_aside_total", "Segments given up because their workers died each time.")
SEGMENT_RETRIES: Final = _counter("folio_segment_retries_total", "Segments and shards given out again because their worker died.")
STORE_RETRIES: Final = _counter("folio_store_retries_total", "Requests to a store made again after a failure.", "verb")
WORKER_SECONDS: Final = _counter(
    "folio_worker_seconds_total", "Seconds that workers spent on finished segments, or an archive's run on its chunks."
)
NETWORK_SECONDS: Final = _counter("folio_network_seconds_total", "Those of them that they spent in the network.")
WAITED_SECONDS: Final = _counter("folio_waiting_seconds_total", "Those of them in which the network waited for photos.")
SEARCH_SECONDS: Final = _counter("folio_search_seconds_total", "Those of them in which photos were looked for in the map.")
PHOTOS_READY: Final = _gauge("folio_photos_ready", "Decoded photos waiting for the network: mean of the last segment, or chunk.")
SEGMENTS_LEFT: Final = _gauge("folio_segments_left", "Segments of this run without a receipt.")
PHOTOS_LEFT: Final = _gauge("folio_photos_left", "Photos of these segments, or of the archive, that are not done with.")
PHOTOS_KNOWN: Final = _gauge(
    "folio_photos_known", "Photos of the archive that an earlier run, or an earlier try of this one, had looked for."
)
ARCHIVE_PHOTOS: Final = _gauge(
    "folio_archive_photos", "Photos of the whole archive by what was decided on them; absent until that is written.", "decision"
)
MAP_VERSION: Final = _gauge("folio_map_version", "Newest version of the map; to an archive's run, when that was started.")
MAP_PHOTOS: Final = _gauge("folio_map_photos", "Photos of that version.")
NEWEST_MANIFEST: Final = _gauge("folio_newest_manifest_timestamp_seconds", "When that version was published.")
RUN_STARTED: Final = _gauge("folio_run_started_timestamp_seconds", "When this run was started.")
RUN_FINISHED: Final = _gauge("folio_run_finished_timestamp_seconds", "When this run ended, well or not; absent while it goes on.")
RUN_FAILED: Final = _gauge(
    "folio_run_failed", "1 after a run that ended with an error or was interrupted, 0 after one that was not; absent meanwhile."
)

DECLARED: Final = (
    PHOTOS_SEEN,
    PHOTOS_ENCODED,
    PHOTOS_SEARCHED,
    PHOTOS_REJECTED,
    PHOTO_BYTES,
    SEGMENTS_FINISHED,
    SEGMENTS_SET_ASIDE,
    SEGMENT_RETRIES,
    STORE_RETRIES,
    WORKER_SECONDS,
    NETWORK_SECONDS,
    WAITED_SECONDS,
    SEARCH_SECONDS,
    PHOTOS_READY,
    SEGMENTS_LEFT,
    PHOTOS_LEFT,
    PHOTOS_KNOWN,
    ARCHIVE_PHOTOS,
    MAP_VERSION,
    MAP_PHOTOS,
    NEWEST_MANIFEST,
    RUN_STARTED,
    RUN_FINISHED,
    RUN_FAILED,
)
"""Everything that can be scraped."""


class Metrics:
    """The numbers of this process, for any number of threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}

    def add(self, metric: Metric, amount: float = 1.0, *labels: str) -> None:
        """Count something; `labels` are the values of the metric's labels."""
        with self._lock:
            key = metric.name, labels
            self._values[key] = self._values.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Say what a gauge is now; `labels` as in `add`."""
        with self._lock:
            self._values[metric.name, labels] = value

    def value(self, metric: Metric) -> float:
        """Read a metric, over all its labels; 0 where nothing was counted."""
        return sum(value for _, value in self.samples(metric))

    def samples(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        """Read a metric by the values of its labels."""
        with self._lock:
            return [(labels, value) for (name, labels), value in sorted(self._values.items()) if name == metric.name]

    def restart(self, *metrics: Metric) -> None:
        """Count some again from nothing: what they are of is tried again."""
        names = {metric.name for metric in metrics}
        with self._lock:
            self._values = {key: value for key, value in self._values.items() if key[0] not in names}

    def clear(self) -> None:
        """Begin again from nothing."""
        with self._lock:
            self._values.clear()


METRICS: Final = Metrics()
"""Of this process. What counts is scattered over all layers, down to the store, so it is not handed through all of them."""


@contextmanager
def exported(settings: Settings, labels: Mapping[str, str]) -> Iterator[None]:
    """Count one run, and show the numbers on the port or in the file that the settings name, if they name any.

    The port is closed at the end; the file stays, with the numbers of the end. Counting begins at zero.

    Args:
        settings: the port and address, the file, or none of them.
        labels: `map` and `action`, put on every metric: so that the files of two maps, or of a build and an archive, can be told
            apart on one machine.

    Raises:
        WorkError: the port or the file cannot be used; nothing was started. Not where the port is only in use, as by another run
            that has not ended: a night shall not fail because nobody can watch it, so that is a warning.
    """
    METRICS.clear()
    METRICS.set(RUN_STARTED, time.time())
    failed = 1.0
    with _port(settings, labels), _file(settings, labels):
        try:
            yield
            failed = 0.0
        finally:
            METRICS.set(RUN_FAILED, failed)
            METRICS.set(RUN_FINISHED, time.time())


def show_version(manifest: Manifest) -> None:
    """Tell Prometheus which version of the map is the newest, and from when: what the map lags behind."""
    METRICS.set(MAP_VERSION, manifest.version)
    METRICS.set(MAP_PHOTOS, manifest.statistics["photos"])
    METRICS.set(NEWEST_MANIFEST, datetime.fromisoformat(manifest.created_at).timestamp())


class _Collector:
    """Gives the numbers to prometheus_client at the moment somebody looks."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)

    def collect(self) -> "Iterator[Family]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric in DECLARED:
            family_type = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = family_type(metric.name, metric.help, labels=[*self._labels, *metric.labels])
            samples = METRICS.samples(metric)
            if not samples and metric.kind == "counter" and not metric.labels:
                samples = [((), 0.0)]  # a counter that is absent until it first counts has no rate
            for values, value in samples:
                family.add_metric([*self._labels.values(), *values], value)
            yield family


def _registry(labels: Mapping[str, str]) -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(_Collector(labels))
    return registry


@contextmanager
def _port(settings: Settings, labels: Mapping[str, str]) -> Iterator[None]:
    if settings.metrics_port is None:
        yield
        return
    if (opened := _opened_port(settings.metrics_port, settings.metrics_address, labels)) is None:
        yield
        return
    server, thread = opened
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _opened_port(port: int, address: str, labels: Mapping[str, str]) -> "tuple[WSGIServer, Thread] | None":
    """Listen; None where the port is in use.

    Raises:
        WorkError: it cannot be used at all.
    """
    from prometheus_client import ProcessCollector, start_http_server

    registry = _registry(labels)
    ProcessCollector(registry=registry)  # memory and CPU of the driver; not in the file, where node-exporter has its own
    try:
        return start_http_server(port, addr=address, registry=registry)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise WorkError(
                f"FOLIO_METRICS_PORT: port {port} of {address} cannot be used: {error.strerror}. Nothing was started. "
                "Name another port or address."
            ) from error
    _log.warning(
        "FOLIO_METRICS_PORT: port %d of %s is in use, maybe by another run: this one goes on and is not counted there. Give runs "
        "that may meet a port each, or a FOLIO_METRICS_FILE.",
        port,
        address,
    )
    return None


@contextmanager
def _file(settings: Settings, labels: Mapping[str, str]) -> Iterator[None]:
    if settings.metrics_file is None:
        yield
        return
    from prometheus_client import write_to_textfile

    path = Path(str(settings.metrics_file).replace(ACTION, labels["action"]))
    registry, done = _registry(labels), Event()

    def write_on() -> None:
        while not done.wait(FILE_EVERY_S):
            try:
                write_to_textfile(str(path), registry)
            except OSError as error:
                _log.warning("FOLIO_METRICS_FILE: %s could not be written, trying again: %s", path, error.strerror)

    try:
        write_to_textfile(str(path), registry)  # a temporary file beside it, then its name
    except OSError as error:
        raise WorkError(
            f"FOLIO_METRICS_FILE: {path} cannot be written: {error.strerror}. Nothing was started. "
            "Make its folder, or name another."
        ) from error
    writer = Thread(target=write_on, name="metrics file", daemon=True)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()
        with suppress(OSError):  # it has been warned about, and must not hide what ended the run
            write_to_textfile(str(path), registry)
