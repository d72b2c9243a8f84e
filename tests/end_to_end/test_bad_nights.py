"""Nights on which something happens to the photos between being listed and being encoded, each through a whole build."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infra.commits import read_receipts
from infra.settings import Settings
from infra.storage import open_storage
from infra.tables import read_table
from pipelines.build.build import encode, prepare, run_build, survey
from pipelines.build.publishing import publish_version
from pipelines.build.request import BuildRequest, Published
from pipelines.engine.partition import PartitionConfig
from pipelines.maintain.verify import verify

SMALL = PartitionConfig(max_photos=4, min_photos=4)


@pytest.fixture
def dozen(photos: Path, tmp_path: Path) -> Path:
    """Twelve photos: three segments."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted((photos / "database").iterdir())[:12]:
        shutil.copy(photo, folder)
    return folder


def build_of(dozen: Path) -> BuildRequest:
    return BuildRequest(recipe="tiny", map_url=str(dozen.parent / "map"), photos=(str(dozen),), partition=SMALL)


def bad_night(dozen: Path, settings: Settings, event: Callable[[], object]) -> Published:
    """A build during which something happens after the photos were listed."""
    prepared = prepare(survey(build_of(dozen), settings), settings)
    event()
    return publish_version(prepared, encode(prepared, settings), settings=settings)


def reasons(dozen: Path, rejects: str) -> dict[str, str]:
    storage = open_storage(str(dozen.parent / "map"), Settings(threads=1))
    rows = read_table(storage, rejects.removeprefix(f"{storage.url}/"), kind="rejects").to_pylist()
    return {Path(row["uri"]).name: row["reason"] for row in rows}


def whole(dozen: Path) -> bool:
    return verify(open_storage(str(dozen.parent / "map"), Settings(threads=1))).problems == []


def test_photos_that_vanish_and_change_are_named_and_in_the_map_of_the_next_night(dozen: Path, settings: Settings):
    first, second, *others = sorted(dozen.iterdir())
    away, content = dozen.parent / "away.jpg", second.read_bytes()

    def event() -> None:
        first.rename(away)
        shutil.copy(others[0], second)

    night = bad_night(dozen, settings, event)
    assert reasons(dozen, night.rejects) == {first.name: "missing", second.name: "changed"}
    assert night.manifest.statistics["photos"] == len(others)

    away.rename(first)
    second.write_bytes(content)
    after = run_build(build_of(dozen), settings)

    assert (after.photos, after.rejected) == (len(others) + 2, {})
    assert after.encoded == 2, "what had been encoded was encoded again"
    assert whole(dozen)


@pytest.mark.parametrize("nights", [1, 3])
def test_a_disk_that_goes_away_costs_a_night_and_no_photo(dozen: Path, settings: Settings, nights: int):
    """Also when the same photos are away on more nights than one, and nothing is published meanwhile."""
    names = sorted(photo.name for photo in dozen.iterdir())
    away = dozen.parent / "away"
    away.mkdir()
    for name in names[6:]:
        (dozen / name).rename(away / name)
    assert run_build(build_of(dozen), settings).photos == 6

    for _ in range(nights):
        for name in names[6:]:
            (away / name).rename(dozen / name)
        night = bad_night(dozen, settings, lambda: [(dozen / name).rename(away / name) for name in names[6:]])
        assert reasons(dozen, night.rejects) == dict.fromkeys(names[6:], "missing")
        assert night.manifest.statistics["photos"] == 6
    for name in names[6:]:
        (away / name).rename(dozen / name)
    after = run_build(build_of(dozen), settings)
    again = run_build(build_of(dozen), settings)

    assert (after.photos, after.rejected, after.encoded) == (12, {}, 6)
    assert (again.encoded, again.published) == (0, False)
    assert whole(dozen)


def test_a_photo_that_stays_away_is_named_every_night_and_leaves_nothing_in_the_store_after_the_first(
    dozen: Path, settings: Settings
):
    photo, away = min(dozen.iterdir()), dozen.parent / "away.jpg"
    first = bad_night(dozen, settings, lambda: photo.rename(away))
    kept = contents(dozen, settings)

    for _ in range(3):
        away.rename(photo)
        night = bad_night(dozen, settings, lambda: photo.rename(away))
        assert reasons(dozen, night.rejects) == {photo.name: "missing"}
        assert night.manifest == first.manifest
        assert contents(dozen, settings) == kept

    away.rename(photo)
    assert run_build(build_of(dozen), settings).photos == 12
    assert whole(dozen)


def contents(dozen: Path, settings: Settings) -> list[str]:
    storage = open_storage(str(dozen.parent / "map"), settings)
    return [info.path for folder in ("receipts", "segments") for info in storage.list(folder)]


def test_a_second_attempt_that_is_interrupted_goes_on_where_it_was(dozen: Path, settings: Settings):
    away = dozen.parent / "away"
    bad_night(dozen, settings, lambda: [dozen.rename(away), dozen.mkdir(), shutil.copy(min(away.iterdir()), dozen)])
    shutil.copytree(away, dozen, dirs_exist_ok=True)
    prepared = prepare(survey(build_of(dozen), settings), settings)
    assert sorted(len(partition.images) for partition in prepared.partitions) == [3, 4, 4]
    encode(replace(prepared, partitions=prepared.partitions[:1]), settings)

    after = run_build(build_of(dozen), settings)

    assert (after.photos, after.rejected) == (12, {})
    assert after.encoded == 11 - len(prepared.partitions[0].images)
    assert whole(dozen)


def test_a_photo_that_is_really_bad_is_not_tried_again(dozen: Path, settings: Settings):
    photo = min(dozen.iterdir())
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    first = run_build(build_of(dozen), settings)
    receipts = set(read_receipts(open_storage(first.map, settings)))

    again = run_build(build_of(dozen), settings)

    assert first.rejected == again.rejected == {"truncated": 1}
    assert set(read_receipts(open_storage(first.map, settings))) == receipts
