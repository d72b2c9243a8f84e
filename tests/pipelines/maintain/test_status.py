"""`folio status`: what people without Prometheus see. The maps are real but for the network, and made in a second."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from click.testing import CliRunner

from infra.leases import lease
from infra.metrics import METRICS, NEWEST_MANIFEST, PHOTOS_SEEN, SEGMENTS_LEFT
from infra.observability import in_time
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.encode import SegmentWorker
from pipelines.build.progress import EncodedSegment, progress_path, read_progress
from pipelines.cli import main
from pipelines.engine.partition import Partition
from pipelines.maintain.status import MapStatus, status
from pipelines.maintain.verify import verify
from schemas.errors import MapMissing
from schemas.manifest import encode_json
from tests.faults.noise_map import SETTINGS, build_noise_map, write_photos
from tests.faults.proxy import Proxy
from tests.schemas import samples


class Killed(BaseException):
    """What ends a run between two segments."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """48 photos, which become three segments."""
    return write_photos(tmp_path / "photos", range(48))


def interrupted(place: Path, photos: Path) -> Storage:
    """Start a build that loses a photo after it was listed, and dies after two of its three segments."""
    work, done = SegmentWorker.run, []

    def run(self: SegmentWorker, task: Partition, on_photo: Callable[[], None]) -> EncodedSegment:
        if len(done) == 2:
            raise Killed
        if not done:
            (photos.parent / task.images["uri"][0].as_py()).unlink()
        done.append(task)
        return work(self, task, on_photo)

    with patch.object(SegmentWorker, "run", run), pytest.raises(Killed):
        build_noise_map(str(place), photos)
    return open_storage(str(place), SETTINGS)


def test_a_finished_map_says_its_version_and_that_nothing_is_to_do(photos: Path, tmp_path: Path):
    build_noise_map(str(tmp_path / "map"), photos)

    found = status(open_storage(str(tmp_path / "map"), SETTINGS))

    assert found.newest
    assert (found.newest.version, found.newest.photos, found.newest.segments, found.newest.action) == (1, 48, 3, "build")
    assert 0 <= found.newest.age_s < 60
    assert (found.leases, found.unfinished) == ([], [])
    assert found.lines()[1] == "at work  nobody"
    assert found.lines()[-1].startswith("next     nothing is unfinished; bring it up to date: folio build ")


def test_an_interrupted_run_says_how_far_it_came_and_what_to_do(photos: Path, tmp_path: Path):
    found = status(interrupted(tmp_path / "map", photos))

    (run,) = found.unfinished
    assert found.newest is None
    # What ends the run may overtake the news of the second segment: the next start finds its receipt.
    assert run.segments_finished in (1, 2)
    assert (run.segments_planned, run.photos_finished, run.photos_planned) == (3, 16 * run.segments_finished, 48)
    assert not run.at_work
    assert run.seconds_left is None
    assert run.photos_per_second
    assert run.photos_per_second > 0
    assert run.network_share
    assert 0 < run.network_share < 1
    assert run.since_receipt_s is not None
    assert run.since_receipt_s < 60
    assert f"nobody goes on with run {run.run_id}: give the same command again (folio build" in found.next_step
    assert f"interrupted: {run.segments_finished} of 3 segments" in "\n".join(found.lines())


def test_the_run_goes_on_counting_where_it_was_interrupted_and_then_is_no_longer_told_of(photos: Path, tmp_path: Path):
    storage = interrupted(tmp_path / "map", photos)
    run_id = status(storage).unfinished[0].run_id
    write_photos(photos, range(48))

    build_noise_map(str(tmp_path / "map"), photos)

    progress = read_progress(storage, run_id)
    assert progress
    # The photo that was lost is back, and tried a second time in a segment of its own.
    assert (progress.segments_finished, progress.photos_finished, progress.photos_since_start) == (4, 49, 17)
    assert (progress.segments_planned, progress.photos_planned) == (4, 49)
    assert progress.rejected in ({"missing": 1}, {"earlier": 1})
    assert status(storage).unfinished == []
    assert verify(storage).problems == []


def test_who_is_at_work_is_named_with_an_estimate_of_the_time_left(tmp_path: Path):
    storage = open_storage(str(tmp_path), SETTINGS)
    progress = msgspec.structs.replace(samples.progress(), waited_s=1.0)
    storage.put(progress_path(progress.run_id), encode_json(progress))

    with lease(storage, run_id=progress.run_id, action="build"):
        found = status(storage)

    (run,) = found.unfinished
    assert [(one.action, one.run_id) for one in found.leases] == [("build", progress.run_id)]
    assert run.photos_per_second == 2.0  # 64 photos in the 32 s up to the last receipt
    assert run.seconds_left == 32.0  # of 192 photos 128 are finished
    assert (run.network_share, run.waiting_share) == (30 / 32, 1 / 32)
    assert "94% of the workers' time in the network, 3% waiting for photos" in "\n".join(found.lines())
    assert "about 32 s of encoding left" in "\n".join(found.lines())
    assert "at work  build, run 0011223344556677" in found.lines()


@pytest.mark.parametrize(("silent_s", "hangs"), [(60, False), (700, True)])
def test_a_run_at_work_that_has_long_finished_nothing_is_not_passed_over(tmp_path: Path, silent_s: float, hangs: bool):
    storage, now = open_storage(str(tmp_path), SETTINGS), time.time()
    progress = msgspec.structs.replace(samples.progress(), started_at_s=now - silent_s - 32, last_receipt_at_s=now - silent_s)
    storage.put(progress_path(progress.run_id), encode_json(progress))

    with lease(storage, run_id=progress.run_id, action="build"):
        assert ("look at its log" in status(storage).next_step) == hangs


def test_where_there_is_no_map_it_says_so_and_writes_nothing(tmp_path: Path):
    with pytest.raises(MapMissing, match=r"no map here.*Build one: folio build"):
        status(open_storage(str(tmp_path / "map"), SETTINGS))

    assert not (tmp_path / "map").exists()


def test_it_only_reads(photos: Path, tmp_path: Path):
    build_noise_map(str(tmp_path / "map"), photos)
    storage = open_storage(str(tmp_path / "map"), SETTINGS)
    before = list(storage.list())

    status(storage)

    assert list(storage.list()) == before


def test_on_s3_it_sends_as_many_requests_for_many_photos_as_for_few(s3_endpoint: str, tmp_path: Path):
    counted: list[int] = []
    with Proxy(s3_endpoint, lambda method, path: None) as proxy:
        for photos in (20, 200):
            place, url = str(tmp_path / str(photos)), f"s3://maps/status-{photos}"
            build_noise_map(place, write_photos(tmp_path / f"photos-{photos}", range(photos)))
            copy(open_storage(place, SETTINGS), open_storage(url, Settings(threads=1, s3_endpoint_url=s3_endpoint)))
            proxy.requests.clear()

            found = status(open_storage(url, Settings(threads=1, s3_endpoint_url=proxy.endpoint)))

            assert found.newest
            assert found.newest.photos == photos
            assert {method for method, _ in proxy.requests} == {"GET"}
            counted.append(len(proxy.requests))

    assert counted == [5, 5]  # four lists and the manifest


def test_the_command_prints_lines_for_people_and_json_for_programs(photos: Path, tmp_path: Path):
    build_noise_map(str(tmp_path / "map"), photos)

    shown = CliRunner().invoke(main, ["status", str(tmp_path / "map")])
    as_json = CliRunner().invoke(main, ["status", str(tmp_path / "map"), "--json"])

    assert shown.output.splitlines()[0].startswith("newest   version 1, ")
    assert msgspec.json.decode(as_json.output, type=MapStatus).newest
    assert json.loads(as_json.output)["unfinished"] == []


def test_a_build_counts_for_prometheus_what_it_did(photos: Path, tmp_path: Path):
    build_noise_map(str(tmp_path / "map"), photos)

    assert METRICS.value(PHOTOS_SEEN) == 48
    assert METRICS.value(SEGMENTS_LEFT) == 0
    newest = status(open_storage(str(tmp_path / "map"), SETTINGS)).newest
    assert newest
    assert METRICS.value(NEWEST_MANIFEST) == pytest.approx(time.time() - newest.age_s, abs=2)


def copy(here: Storage, there: Storage) -> None:
    for info in here.list():
        there.put(info.path, here.get(info.path))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89, "89 s"), (120, "2 min"), (7_200, "2.0 h"), (timedelta(days=3).total_seconds(), "3.0 days")],
)
def test_times_are_said_in_the_unit_of_their_size(seconds: float, said: str):
    assert in_time(seconds) == said
