"""A build killed at any moment loses nothing, shows nothing half done, and goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from infra.commits import list_versions, read_receipts
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.maintain.verify import verify
from tests.end_to_end.conftest import City


def start_build(place: Path, photos: Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pipelines.cli import main; main()",
            "build",
            str(place),
            str(photos),
            "--recipe",
            "tiny",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "FOLIO_THREADS": "2", **environment},
        start_new_session=True,
    )


def receipts(place: Path) -> set[str]:
    return set(read_receipts(open_storage(str(place), Settings(threads=1)))) if place.exists() else set()


def test_a_build_killed_half_way_goes_on_where_it_was(city: City, tmp_path: Path) -> None:
    place = tmp_path / "map"
    child = start_build(place, city.database)
    while len(receipts(place)) < 2 and child.poll() is None:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    finished = receipts(place)
    assert len(finished) >= 2
    assert list_versions(open_storage(str(place), Settings(threads=1))) == []

    summary = run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(city.database),)), Settings(threads=2))

    assert summary.photos == city.built.photos
    assert 0 < summary.encoded < city.built.encoded
    assert finished <= receipts(place)
    assert verify(open_storage(str(place), Settings(threads=1))).problems == []


@pytest.mark.parametrize(
    ("number", "everybody"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["Ctrl-C", "a container is stopped", "a service is stopped"],
)
def test_a_build_that_is_told_to_stop_ends_in_order_and_goes_on_where_it_was(
    city: City, tmp_path: Path, number: signal.Signals, everybody: bool
) -> None:
    place, numbers = tmp_path / "map", tmp_path / "folio.prom"
    child = start_build(place, city.database, FOLIO_METRICS_FILE=str(numbers))
    while len(receipts(place)) < 1 and child.poll() is None:
        time.sleep(0.02)
    decoders = subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=True).stdout.split()
    for pid in [*(int(decoder) for decoder in decoders if everybody), child.pid]:
        os.kill(pid, number)
    child.communicate(timeout=30)

    assert child.returncode == 1, "as the README says of what can be put right"
    assert [line[-3:] for line in numbers.read_text().splitlines() if line.startswith("folio_run_failed{")] == ["1.0"]
    assert not list(place.glob("runs/*/lease*")), "the next run need not wait"

    summary = run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(str(city.database),)), Settings(threads=2))

    assert (summary.photos, summary.rejected) == (city.built.photos, city.built.rejected)
    assert 0 < summary.encoded < city.built.encoded
    assert verify(open_storage(str(place), Settings(threads=1))).problems == []


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_and_double_nothing(city: City, tmp_path: Path) -> None:
    place, moments = tmp_path / "map", np.random.default_rng(7)
    for _ in range(20):
        child = start_build(place, city.database)
        try:
            child.communicate(timeout=float(moments.uniform(0.5, 8)))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
        if list_versions(open_storage(str(place), Settings(threads=1))):
            assert verify(open_storage(str(place), Settings(threads=1))).problems == []

    out, _ = start_build(place, city.database).communicate(timeout=200)

    summary = json.loads(out)
    assert summary["photos"] == city.built.photos
    assert summary["known"] + summary["encoded"] == city.built.photos
    assert verify(open_storage(str(place), Settings(threads=1))).problems == []
