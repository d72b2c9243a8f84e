"""A build and an archive are watched as Prometheus watches them: a real scrape, over HTTP, while they run."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.settings import Settings
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.engine.partition import PartitionConfig
from pipelines.geotag.geotag import GeotagRequest, run_geotag
from pipelines.query import answering
from schemas.errors import CatalogError
from tests.faults.noise_map import write_photos


@pytest.mark.parametrize("workers", ["here", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_scrape_during_a_build_shows_what_the_workers_have_done(tmp_path: Path, workers: Literal["here", "ray"]) -> None:
    database, file, port = write_photos(tmp_path / "database", range(12)), tmp_path / "folio.prom", free_port()
    with scraping(port) as scraped:
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


def test_a_night_whose_photos_cannot_be_listed_has_failed(tmp_path: Path) -> None:
    """What the night before wrote must not stay there as if all were well."""
    file, place = tmp_path / "folio.prom", str(tmp_path / "map")
    photos = write_photos(tmp_path / "database", range(4))
    settings = Settings(threads=1, metrics_file=file)
    run_build(BuildRequest(recipe="tiny", map_url=place, photos=(str(photos),)), settings)
    before = samples(file.read_text())

    with pytest.raises(CatalogError):
        run_build(BuildRequest(map_url=place, photos=(str(tmp_path / "nowhere"),)), settings)

    after = samples(file.read_text())
    assert (before["folio_run_failed"], after["folio_run_failed"]) == (0, 1)
    assert before["folio_run_finished_timestamp_seconds"] <= after["folio_run_started_timestamp_seconds"]


def test_a_scrape_while_an_archive_of_real_photos_is_geotagged_shows_how_far_it_is(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "CHUNK_PHOTOS", 2)
    lund = sorted((shared_data / "street" / "lund").glob("*.jpg"))
    for folder, photos in (("database", lund[20:]), ("archive", lund[:20])):
        (tmp_path / folder).mkdir()
        for photo in photos:
            (tmp_path / folder / photo.name).symlink_to(photo)
    (tmp_path / "archive" / "notes.jpg").write_text("no photo")
    place, port, file = str(tmp_path / "map"), free_port(), tmp_path / "folio.prom"
    run_build(BuildRequest(recipe="tiny", map_url=place, photos=(str(tmp_path / "database"),)), Settings(threads=1))
    request = GeotagRequest(map_url=place, photos=(str(tmp_path / "archive"),), out=str(tmp_path / "out"))

    with scraping(port) as scraped:
        summary = run_geotag(request, Settings(threads=1, metrics_port=port, metrics_file=file))

    known = [samples(text) for text in scraped]
    seen = [one.get("folio_photos_seen_total", 0) for one in known]
    assert seen == sorted(seen)
    assert len(set(seen)) > 2  # it grew while we looked
    left = [one["folio_photos_left"] for one in known if "folio_photos_left" in one]
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 2
    last = samples(file.read_text())
    assert last["folio_photos_searched_total"] == last["folio_photos_seen_total"] == summary.photos == 20
    assert (last["folio_photos_left"], last["folio_photos_known"]) == (0, 0)
    assert last["folio_photos_rejected_total"] == sum(summary.rejected.values()) == 1
    assert last["folio_photo_bytes_total"] == sum(photo.stat().st_size for photo in lund[:20])
    assert 0 < last["folio_network_seconds_total"] + last["folio_search_seconds_total"] < last["folio_worker_seconds_total"]
    assert (last["folio_map_version"], last["folio_map_photos"], last["folio_run_failed"]) == (summary.map_version, 9, 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def scraping(port: int) -> Iterator[list[str]]:
    """Scrape again and again while the block runs; what was read."""
    scraped: list[str] = []
    done = threading.Event()

    def scrape_on() -> None:
        while not done.wait(0.05):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                scraped.append(answer.read().decode())

    scraper = threading.Thread(target=scrape_on)
    scraper.start()
    try:
        yield scraped
    finally:
        done.set()
        scraper.join()


def samples(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
