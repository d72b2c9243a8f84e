"""A build is watched as Prometheus watches it: a real scrape, over HTTP, while it runs."""

import socket
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.settings import Settings
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.engine.partition import PartitionConfig
from tests.faults.noise_map import write_photos


@pytest.mark.parametrize("workers", ["here", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_scrape_during_a_build_shows_what_the_workers_have_done(tmp_path: Path, workers: Literal["here", "ray"]) -> None:
    database, file = write_photos(tmp_path / "database", range(12)), tmp_path / "folio.prom"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scraped: list[str] = []
    done = threading.Event()

    def scrape_on() -> None:
        while not done.wait(0.1):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                scraped.append(answer.read().decode())

    scraper = threading.Thread(target=scrape_on)
    scraper.start()
    try:
        run_build(
            BuildRequest(
                recipe="tiny",
                map_url=str(tmp_path / "map"),
                photos=(str(database),),
                partition=PartitionConfig(max_photos=4, min_photos=1),
                workers=workers,
            ),
            Settings(threads=1, metrics_port=port, metrics_file=file),
        )
    finally:
        done.set()
        scraper.join()

    seen = [samples(text).get("folio_photos_seen_total", 0) for text in scraped]
    assert seen == sorted(seen)
    assert len(set(seen)) > 2  # it grew while we looked
    last = samples(file.read_text())
    assert last["folio_photos_seen_total"] == last["folio_photos_encoded_total"] == 12
    assert last["folio_segments_finished_total"] == 12
    assert 0 < last["folio_network_seconds_total"] < last["folio_worker_seconds_total"]
    assert last["folio_photo_bytes_total"] == sum(photo.stat().st_size for photo in database.iterdir())
    assert (last["folio_segments_left"], last["folio_photos_left"]) == (0, 0)
    assert (last["folio_map_version"], last["folio_map_photos"], last["folio_run_failed"]) == (1, 12, 0)


def samples(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
