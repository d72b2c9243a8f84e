"""What Prometheus gets to see: over a real port, and in a real file."""

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.metrics import (
    ARCHIVE_PHOTOS,
    DECLARED,
    METRICS,
    PHOTOS_REJECTED,
    PHOTOS_SEEN,
    RUN_FAILED,
    RUN_FINISHED,
    SEGMENTS_LEFT,
    Metrics,
    exported,
)
from infra.settings import Settings, settings_from
from schemas.errors import FolioError, WorkError

LABELS = {"map": "s3://maps/lund", "action": "build"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def samples(text: str) -> dict[tuple[str, str], float]:
    """By name and reason."""
    return {
        (sample.name, sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def count_until_it_fails(settings: Settings, *, during: Callable[[], None] = lambda: None) -> None:
    with exported(settings, LABELS):
        during()
        METRICS.add(PHOTOS_SEEN, 7)
        raise RuntimeError("boom")


def test_a_scrape_while_a_run_goes_on_reads_what_was_counted_up_to_now():
    port = free_port()
    with exported(Settings(threads=1, metrics_port=port), LABELS):
        METRICS.add(PHOTOS_SEEN, 3)
        METRICS.add(PHOTOS_REJECTED, 2, "truncated")
        METRICS.set(SEGMENTS_LEFT, 5)
        first = scrape(port)
        METRICS.add(PHOTOS_SEEN)
        second = scrape(port)

    assert 'folio_photos_seen_total{action="build",map="s3://maps/lund"} 3.0' in first
    assert samples(first)["folio_photos_rejected_total", "truncated"] == 2
    assert samples(first)["folio_segments_left", ""] == 5
    assert samples(first)["folio_segments_finished_total", ""] == 0  # there from the start, or its first step has no rate
    assert samples(first)["process_resident_memory_bytes", ""] > 1e6
    assert samples(second)["folio_photos_seen_total", ""] == 4
    with pytest.raises(urllib.error.URLError):
        scrape(port)  # closed with the run


def test_the_port_listens_on_this_machine_alone_unless_told_otherwise():
    port = free_port()

    assert settings_from({}).metrics_address == "127.0.0.1"
    elsewhere = ("127.0.0.2", port)  # another address of the same machine
    with exported(Settings(threads=1, metrics_port=port), LABELS), pytest.raises(OSError):
        socket.create_connection(elsewhere, timeout=2)


def test_a_run_whose_port_is_in_use_goes_on_and_says_so_and_its_file_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with exported(Settings(threads=1, metrics_port=(port := free_port())), LABELS):
        both = Settings(threads=1, metrics_port=port, metrics_file=tmp_path / "folio.prom")
        with pytest.raises(RuntimeError, match="boom"):
            count_until_it_fails(both)

        assert f"port {port} of 127.0.0.1 is in use" in caplog.text
        assert samples((tmp_path / "folio.prom").read_text())["folio_photos_seen_total", ""] == 7
        assert scrape(port), "the first run is still there"


def test_a_port_that_cannot_be_used_is_said_before_anything_is_started():
    with pytest.raises(WorkError, match=r"port \d+ of 192\.0\.2\.1 cannot be used.*Nothing was started"):
        count_until_it_fails(Settings(threads=1, metrics_port=free_port(), metrics_address="192.0.2.1"))


def test_the_file_stays_after_the_run_and_says_how_it_ended(tmp_path: Path):
    file, seen = tmp_path / "folio.prom", dict[tuple[str, str], float]()

    with pytest.raises(RuntimeError, match="boom"):
        count_until_it_fails(Settings(threads=1, metrics_file=file), during=lambda: seen.update(samples(file.read_text())))

    after = samples(file.read_text())
    assert RUN_FINISHED.name not in {name for name, _ in seen}
    assert after["folio_photos_seen_total", ""] == 7
    assert after[RUN_FAILED.name, ""] == 1
    assert after[RUN_FINISHED.name, ""] >= after["folio_run_started_timestamp_seconds", ""]
    assert not any(name.startswith("process_") for name, _ in after)  # node-exporter has its own
    assert [path.name for path in tmp_path.iterdir()] == ["folio.prom"]  # nothing half written beside it


def test_a_build_and_an_archive_with_the_same_settings_have_a_file_each(tmp_path: Path):
    """Else the night's archive would write over what the night's build came to."""
    settings = Settings(threads=1, metrics_file=tmp_path / "folio-{action}.prom")
    with pytest.raises(RuntimeError, match="boom"):
        count_until_it_fails(settings)
    with exported(settings, {**LABELS, "action": "geotag"}):
        METRICS.set(ARCHIVE_PHOTOS, 5, "answered")
        METRICS.set(ARCHIVE_PHOTOS, 2, "unknown")

    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(files) == {"folio-build.prom", "folio-geotag.prom"}
    assert samples(files["folio-build.prom"])[RUN_FAILED.name, ""] == 1
    assert samples(files["folio-geotag.prom"])[RUN_FAILED.name, ""] == 0
    assert 'folio_archive_photos{action="geotag",decision="answered",map="s3://maps/lund"} 5.0' in files["folio-geotag.prom"]
    assert 'folio_archive_photos{action="geotag",decision="unknown",map="s3://maps/lund"} 2.0' in files["folio-geotag.prom"]
    assert "folio_archive_photos{" not in files["folio-build.prom"]


def test_a_file_that_cannot_be_written_is_said_before_anything_is_started(tmp_path: Path):
    nowhere = tmp_path / "nowhere" / "folio.prom"

    with pytest.raises(WorkError, match=r"folio.prom cannot be written: No such file.*Nothing was started"):
        count_until_it_fails(Settings(threads=1, metrics_file=nowhere))


def test_a_second_run_of_a_process_counts_from_zero():
    METRICS.add(PHOTOS_SEEN, 7)

    with exported(Settings(threads=1), LABELS):
        assert METRICS.value(PHOTOS_SEEN) == 0


def test_a_metric_is_read_by_label_and_over_all_of_them():
    metrics = Metrics()
    metrics.add(PHOTOS_REJECTED, 2, "truncated")
    metrics.add(PHOTOS_REJECTED, 1, "no_position")

    assert metrics.samples(PHOTOS_REJECTED) == [(("no_position",), 1), (("truncated",), 2)]
    assert metrics.value(PHOTOS_REJECTED) == 3


def test_what_is_tried_again_is_counted_from_nothing_and_the_rest_goes_on():
    metrics = Metrics()
    metrics.add(PHOTOS_REJECTED, 2, "truncated")
    metrics.add(PHOTOS_SEEN, 3)
    metrics.set(SEGMENTS_LEFT, 5)

    metrics.restart(PHOTOS_REJECTED, SEGMENTS_LEFT)

    assert [metrics.value(metric) for metric in (PHOTOS_REJECTED, SEGMENTS_LEFT, PHOTOS_SEEN)] == [0, 0, 3]


def test_names_are_as_prometheus_wants_them():
    """A counter ends with _total; units are seconds and bytes; and each says what it is."""
    for metric in DECLARED:
        assert re.fullmatch(r"folio_[a-z_]+[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
    assert len({metric.name for metric in DECLARED}) == len(DECLARED)


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("FOLIO_METRICS_PORT", "0", "from 1 to 65535"),
        ("FOLIO_METRICS_PORT", "http", "from 1 to 65535"),
        ("FOLIO_METRICS_FILE", "folio.txt", "ending with .prom"),
        ("FOLIO_LOG_FORMAT", "xml", "text or json"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, value: str, needed: str):
    with pytest.raises(FolioError, match=f"{name}: found '{value}'.*{needed}"):
        settings_from({name: value})


def test_settings_say_where_the_numbers_go():
    settings = settings_from({"FOLIO_METRICS_PORT": "9101", "FOLIO_METRICS_ADDRESS": "0.0.0.0", "FOLIO_METRICS_FILE": "a.prom"})

    assert (settings.metrics_port, settings.metrics_address, settings.metrics_file) == (9101, "0.0.0.0", Path("a.prom"))
