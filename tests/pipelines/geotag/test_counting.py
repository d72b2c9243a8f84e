"""What Prometheus gets to see of an archive: the numbers of the summary, and none twice, whatever stopped an earlier run."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from infra.commits import read_head
from infra.metrics import ARCHIVE_PHOTOS, METRICS, PHOTOS_LEFT, STORE_RETRIES
from infra.storage import LocalStorage
from pipelines.cli import main
from pipelines.geotag.geotag import GeotagSummary, geotag_archive, watched
from pipelines.geotag.kept import KeptAnswers
from pipelines.query.answering import Chunk
from schemas.errors import CatalogError, FolioError, MapError, StorageError, WorkError
from tests.faults.noise_map import SETTINGS, build_noise_map, write_photos
from tests.pipelines.geotag.noise_archives import CHUNK, geotag, request, small_chunks

MAP_PHOTOS = 40
ARCHIVE = range(0, 44, 2)
COPIES = ("0002-copy.jpg", "0004-copy.jpg", "0004-again.jpg")
DAMAGED = "without-pixels.jpg"
NO_PHOTO = "notes.jpg"


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """map/, and archive/: 22 photos, three copies, one that cannot be decoded and one that the listing rejects."""
    folder = tmp_path_factory.mktemp("noise")
    build_noise_map(str(folder / "map"), write_photos(folder / "photos", range(MAP_PHOTOS)))
    archive = write_photos(folder / "archive", ARCHIVE)
    for name in COPIES:
        shutil.copy(archive / f"{name[:4]}.jpg", archive / name)
    whole = (archive / "0000.jpg").read_bytes()
    (archive / DAMAGED).write_bytes(whole[: whole.index(b"\xff\xda")] + b"\xff\xd9")
    (archive / NO_PHOTO).write_text("no photo")
    return folder


class Watched:
    """Geotags the archive with a file for node-exporter."""

    def __init__(self, noise: Path, folder: Path) -> None:
        self.map, self.archive, self.out, self.file = noise / "map", noise / "archive", folder / "out", folder / "folio.prom"
        self.settings = replace(SETTINGS, metrics_file=self.file)

    def run(self, **options: object) -> GeotagSummary:
        return geotag(self.map, self.archive, self.out, settings=self.settings, **options)

    def stop(self, after: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        """Run until so many chunks are kept."""
        with monkeypatch.context() as patched:
            patched.setattr(KeptAnswers, "keep", keeping(after, error))
            with pytest.raises(type(error)):
                self.run()

    def numbers(self) -> dict[str, float]:
        """What the file says, by name and label; each is of this map and of an archive."""
        found = {}
        for family in text_string_to_metric_families(self.file.read_text()):
            for sample in family.samples:
                assert (sample.labels.pop("map"), sample.labels.pop("action")) == (str(self.map), "geotag")
                found[" ".join([sample.name.removeprefix("folio_"), *sample.labels.values()])] = sample.value
        return found


def keeping(chunks: int, error: BaseException) -> Callable[[KeptAnswers, Chunk], None]:
    """Keep so many chunks, then fail."""
    real, kept = KeptAnswers.keep, []

    def keep(self: KeptAnswers, chunk: Chunk) -> None:
        if len(kept) == chunks:
            raise error
        kept.append(chunk)
        real(self, chunk)

    return keep


@pytest.fixture
def nightly(noise: Path, tmp_path: Path) -> Watched:
    return Watched(noise, tmp_path)


def of(kind: str, numbers: dict[str, float]) -> dict[str, float]:
    """The parts of one metric, those that are none left out."""
    return {name.split()[1]: value for name, value in numbers.items() if name.startswith(f"{kind} ") and value}


def region(folder: Path, *, south_deg: float, north_deg: float) -> str:
    """A file of one polygon round the meridian on which all photos stand."""
    ring = [[2.0, south_deg], [3.0, south_deg], [3.0, north_deg], [2.0, north_deg], [2.0, south_deg]]
    path = folder / "never.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return str(path)


def test_the_file_says_of_a_run_what_its_summary_says(nightly: Watched):
    summary = nightly.run()
    numbers = nightly.numbers()

    assert (summary.photos, summary.duplicates) == (25, 3)
    assert of("photos_rejected_total", numbers) == summary.rejected == {"damaged": 1, "not-an-image": 1}
    assert numbers["photos_searched_total"] == summary.photos - summary.duplicates == 22
    assert numbers["photos_seen_total"] == 26  # all but what was no photo when it was listed
    assert (numbers["photos_known"], numbers["photos_left"]) == (0, 0)
    opened = [photo for photo in nightly.archive.iterdir() if photo.name not in (NO_PHOTO, *COPIES)]
    assert numbers["photo_bytes_total"] == sum(photo.stat().st_size for photo in opened)
    decided = {"answered": summary.answered, "unknown": summary.unknown, "interpolated": summary.interpolated}
    assert of("archive_photos", numbers) == {status: photos for status, photos in decided.items() if photos}
    head = read_head(LocalStorage(str(nightly.map)))
    assert (numbers["map_version"], numbers["map_photos"]) == (summary.map_version, MAP_PHOTOS) == (head.version, 40)
    assert (numbers["run_failed"], numbers["photos_encoded_total"], numbers["segments_finished_total"]) == (0, 0, 0)
    assert numbers["run_started_timestamp_seconds"] <= numbers["run_finished_timestamp_seconds"]


def test_times_of_an_archive_are_shares_of_the_time_its_chunks_took(nightly: Watched):
    nightly.run()
    numbers = nightly.numbers()

    parts = [numbers[f"{part}_seconds_total"] for part in ("network", "waiting", "search")]
    took = numbers["run_finished_timestamp_seconds"] - numbers["run_started_timestamp_seconds"]
    assert min(parts) > 0
    assert sum(parts) < numbers["worker_seconds_total"] < took


def test_what_is_withheld_is_told_from_what_is_unknown(nightly: Watched, tmp_path: Path):
    """Photos 0 to 6 and the three copies of those say that they were taken there."""
    summary = nightly.run(never_in=region(tmp_path, south_deg=54.0, north_deg=54.7 + 7 * 0.006 / 60))
    decided = of("archive_photos", nightly.numbers())

    assert decided["withheld"] == 7
    assert decided.get("unknown", 0) == summary.unknown - 7
    assert sum(decided.values()) == summary.photos


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("the store does not answer")], ids=["Ctrl-C", "store"])
def test_what_a_run_takes_over_from_one_that_was_stopped_is_not_counted_twice(
    nightly: Watched, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    nightly.stop(3, monkeypatch, error)
    stopped = nightly.numbers()
    summary = nightly.run()
    resumed = nightly.numbers()

    assert stopped["run_failed"] == 1
    assert stopped["run_finished_timestamp_seconds"] <= resumed["run_started_timestamp_seconds"]
    assert not of("archive_photos", stopped), "nothing was decided yet"
    assert 0 < stopped["photos_searched_total"] <= stopped["photos_seen_total"] <= 3 * CHUNK
    assert stopped["photos_left"] == 26 - stopped["photos_seen_total"]
    assert resumed["photos_known"] == summary.answered_before == stopped["photos_searched_total"]
    assert stopped["photos_searched_total"] + resumed["photos_searched_total"] == 22
    assert (resumed["run_failed"], resumed["photos_left"]) == (0, 0)
    assert resumed["photos_seen_total"] == 26 - resumed["photos_known"]
    assert of("photos_rejected_total", resumed) == summary.rejected  # nobody keeps them: they were tried again
    assert sum(of("archive_photos", resumed).values()) == summary.photos == 25


def test_a_run_that_finds_everything_known_has_searched_nothing_and_says_what_was_decided(nightly: Watched):
    nightly.run()
    first = nightly.numbers()
    summary = nightly.run()
    second = nightly.numbers()

    assert (second["photos_known"], second["photos_searched_total"]) == (summary.answered_before, 0) == (25, 0)
    assert (second["photos_seen_total"], second["photos_left"]) == (1, 0)  # the one that cannot be decoded, once more
    assert of("archive_photos", second) == of("archive_photos", first)


def test_a_stage_that_is_tried_again_within_its_run_is_counted_as_its_last_try_beside_the_requests_made_again(
    nightly: Watched, monkeypatch: pytest.MonkeyPatch
):
    """As Prefect does when a store did not answer: the run has not failed, and what cannot be used is not there twice."""
    asked = request(nightly.map, nightly.archive, nightly.out)
    with small_chunks(), watched(asked, nightly.settings):
        with monkeypatch.context() as patched:
            patched.setattr(KeptAnswers, "keep", keeping(5, StorageError("the store does not answer")))
            with pytest.raises(StorageError):
                geotag_archive(asked, nightly.settings)
        METRICS.add(STORE_RETRIES, 10, "put")  # as the store does that gives up
        summary = geotag_archive(asked, nightly.settings)
    numbers = nightly.numbers()

    assert (numbers["run_failed"], numbers["store_retries_total put"]) == (0, 10)
    assert of("photos_rejected_total", numbers) == summary.rejected
    assert 0 < summary.answered_before == numbers["photos_known"]
    assert numbers["photos_known"] + numbers["photos_searched_total"] + summary.duplicates == summary.photos


def test_a_run_that_cannot_begin_has_failed(nightly: Watched, tmp_path: Path):
    nightly.archive = tmp_path / "nowhere"
    with pytest.raises(CatalogError):
        nightly.run()
    assert nightly.numbers()["run_failed"] == 1

    nightly.map = tmp_path / "no map"
    with pytest.raises(MapError):
        nightly.run()
    assert nightly.numbers()["run_failed"] == 1


def test_a_run_on_an_older_version_says_nothing_of_the_newest(nightly: Watched):
    """It would have to look, and what it says of an older one would be taken for how far the map lags behind."""
    nightly.run(version=1)
    numbers = nightly.numbers()

    assert not {"map_version", "map_photos", "newest_manifest_timestamp_seconds"} & set(numbers)
    assert numbers["photos_searched_total"] == 22


def test_the_command_counts_and_an_evaluation_leaves_what_the_last_night_wrote(nightly: Watched):
    environment = {**os.environ, "FOLIO_THREADS": "1", "FOLIO_METRICS_FILE": str(nightly.file)}
    with small_chunks():
        nights = CliRunner().invoke(
            main, ["geotag", str(nightly.map), str(nightly.archive), "--out", str(nightly.out)], env=environment
        )
        written = nightly.file.read_bytes()
        evaluate = ["evaluate", str(nightly.map), str(nightly.archive), "--out", str(nightly.out)]
        evaluated = CliRunner().invoke(main, evaluate, env=environment)

    assert (nights.exit_code, evaluated.exit_code) == (0, 0), nights.output + evaluated.output
    assert nightly.numbers()["photos_searched_total"] == 22
    assert nightly.file.read_bytes() == written


def test_a_file_that_cannot_be_written_is_said_before_a_photo_is_read(nightly: Watched, tmp_path: Path):
    nightly.settings = replace(SETTINGS, metrics_file=tmp_path / "nowhere" / "folio.prom")

    with pytest.raises(WorkError, match=r"FOLIO_METRICS_FILE.*Nothing was started"):
        nightly.run()

    assert not nightly.out.exists()


def test_counting_goes_on_where_nobody_looks(nightly: Watched):
    with pytest.raises(FolioError):
        geotag(nightly.map, nightly.archive.parent / "nowhere", nightly.out)
    summary = geotag(nightly.map, nightly.archive, nightly.out)

    assert METRICS.value(ARCHIVE_PHOTOS) == summary.photos
    assert METRICS.value(PHOTOS_LEFT) == 0
    assert not nightly.file.exists()
