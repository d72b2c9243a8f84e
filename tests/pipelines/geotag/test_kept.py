"""A run that is stopped goes on where it was, a second one answers new photos only, and nobody can tell from the tables."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.storage import LocalStorage
from infra.tables import read_table
from pipelines.geotag.geotag import GeotagSummary
from pipelines.geotag.kept import KeptAnswers
from pipelines.locate.position import PositionConfig
from pipelines.query import answering
from pipelines.query.answering import Chunk
from pipelines.query.prior import Prior
from schemas import layout
from schemas.results import RESULTS
from tests.faults.noise_map import build_noise_map, write_photos
from tests.faults.profile import record
from tests.faults.victim import Death, die_of, operations_of
from tests.pipelines.geotag.noise_archives import CHUNK, GeotagJob, files, geotag
from tests.schemas import samples

MAP_PHOTOS = 40
ARCHIVE = range(0, 44, 2)
"""Of which the last two are not in the map."""

OUTPUTS = {
    "queries.parquet",
    "results.parquet",
    "rejects.parquet",
    "coverage.parquet",
    "geotags.geojson",
    "geotags.parquet",
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """map/, archive/ with a photo that cannot be decoded, and tables/, what one run makes of it."""
    folder = tmp_path_factory.mktemp("noise")
    build_noise_map(str(folder / "map"), write_photos(folder / "photos", range(MAP_PHOTOS)))
    archive = write_photos(folder / "archive", ARCHIVE)
    whole = (archive / "0000.jpg").read_bytes()
    (archive / "half.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    summary = geotag(folder / "map", archive, folder / "tables")
    assert (summary.photos, summary.answered_before, summary.duplicates) == (len(ARCHIVE), 0, 0)
    assert sum(summary.rejected.values()) == 1
    assert set(files(folder / "tables")) == OUTPUTS
    return folder


def part_of(noise: Path, to: Path, numbers: range) -> Path:
    """An archive of some of the photos."""
    to.mkdir()
    for number in numbers:
        shutil.copy(noise / "archive" / f"{number:04d}.jpg", to)
    return to


def rows(folder: Path, table: str = "geotags") -> list[dict[str, object]]:
    found: list[dict[str, object]] = read_table(LocalStorage(str(folder)), f"{table}.parquet", kind=table).to_pylist()
    return found


# -------------------------------------------------------------------------------------------------------- a second run


def test_a_second_run_answers_only_new_photos_and_leaves_the_tables_of_a_first(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:9])
    first = geotag(noise / "map", archive, tmp_path / "out")
    shutil.rmtree(archive)
    shutil.copytree(noise / "archive", archive)

    second = geotag(noise / "map", archive, tmp_path / "out")
    third = geotag(noise / "map", archive, tmp_path / "out")

    assert (first.photos, first.answered_before) == (9, 0)
    assert (second.photos, second.answered_before) == (len(ARCHIVE), 9)
    assert (third.photos, third.answered_before, third.photos_per_second) == (len(ARCHIVE), len(ARCHIVE), 0)
    assert "22 were known from before" in "\n".join(third.lines())
    geotag(noise / "map", archive, tmp_path / "fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_photos_that_vanished_vanish_and_one_that_changed_is_answered_anew(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:6])
    geotag(noise / "map", archive, tmp_path / "out")
    (archive / "0000.jpg").unlink()
    shutil.copy(archive / "0008.jpg", archive / "0004.jpg")
    (archive / "0008.jpg").unlink()

    again = geotag(noise / "map", archive, tmp_path / "out")

    assert again.answered_before == 3
    matched = {row["uri"]: row["matched_uri"] for row in rows(tmp_path / "out")}
    assert matched == {f"archive/{n:04d}.jpg": f"photos/{8 if n == 4 else n:04d}.jpg" for n in (2, 4, 6, 10)}
    geotag(noise / "map", archive, tmp_path / "fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_another_precision_answers_nothing_anew_and_another_part_of_the_map_everything(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:5])
    geotag(noise / "map", archive, tmp_path / "out")

    decided = geotag(noise / "map", archive, tmp_path / "out", position=PositionConfig(precision=0.5))
    elsewhere = geotag(noise / "map", archive, tmp_path / "out", prior=Prior(boxes=((2.0, 54.0, 3.0, 54.702),)))

    assert decided.answered_before == 5
    assert elsewhere.answered_before == 0
    assert f"{tmp_path}/out: holds answers that rest on another part of the map: all are made anew" in elsewhere.notes


def test_answers_of_an_older_version_are_made_anew_unless_that_is_asked_for(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:5])
    shutil.copytree(noise / "map", tmp_path / "map")
    geotag(tmp_path / "map", archive, tmp_path / "out")
    build_noise_map(str(tmp_path / "map"), write_photos(tmp_path / "more", range(100, 110)), mode="backfill")

    pinned = geotag(tmp_path / "map", archive, tmp_path / "out", version=1)
    newest = geotag(tmp_path / "map", archive, tmp_path / "out")

    assert (pinned.map_version, pinned.answered_before) == (1, 5)
    assert (newest.map_version, newest.answered_before) == (2, 0)
    (note,) = [note for note in newest.notes if "made anew" in note]
    assert note.endswith(
        "holds answers from version 1 of the map, and this is version 2: all are made anew. --version 1 would keep them"
    )


def test_what_rested_on_damage_is_answered_anew(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:8])
    for photo in list(archive.iterdir()):
        shutil.copy(photo, archive / f"copy-{photo.name}")
    shutil.copytree(noise / "map", tmp_path / "map")
    whole = {path: path.read_bytes() for path in (tmp_path / "map").rglob(f"{layout.LOCAL_FEATURES}/c/0/0/0")}
    for path, content in whole.items():
        path.write_bytes(bytes(len(content) // 4) + content[len(content) // 4 :])
    damaged = geotag(tmp_path / "map", archive, tmp_path / "out")
    for path, content in whole.items():
        path.write_bytes(content)

    repaired = geotag(tmp_path / "map", archive, tmp_path / "out")

    (note,) = [note for note in damaged.notes if "without usable local features" in note]
    assert repaired.answered_before == 16 - int(note.split()[0]) < 16
    assert repaired.duplicates == 8
    geotag(tmp_path / "map", archive, tmp_path / "fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_tables_that_are_damaged_or_do_not_belong_together_are_not_used(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:4])
    out = tmp_path / "out"
    geotag(noise / "map", archive, out)
    tables = files(out)

    (out / "results.parquet").write_bytes(tables["results.parquet"][:-9])
    damaged = geotag(noise / "map", archive, out)
    shutil.copy(noise / "tables" / "queries.parquet", out / "queries.parquet")
    mixed = geotag(noise / "map", archive, out)

    assert damaged.answered_before == mixed.answered_before == 0
    assert any("answers of an earlier run are not used again" in note for note in damaged.notes)
    assert files(out) == tables


# --------------------------------------------------------------------------------------------------- the same bytes


def test_photos_with_the_same_bytes_are_answered_once_and_keep_their_own_names(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:3])
    shutil.copy(archive / "0002.jpg", archive / "copy.jpg")
    shutil.copy(archive / "0002.jpg", archive / "0000-copy.jpg")

    summary = geotag(noise / "map", archive, tmp_path / "out")

    assert (summary.photos, summary.duplicates) == (5, 2)
    of = {row["uri"]: row for row in rows(tmp_path / "out")}
    names = ["archive/0002.jpg", "archive/copy.jpg", "archive/0000-copy.jpg"]
    (first,) = [name for name in names if of[name]["duplicate_of"] is None]
    own = {"query_id", "uri", "duplicate_of"}
    for name in set(names) - {first}:
        assert of[name]["duplicate_of"] == of[first]["query_id"]
        assert {key: value for key, value in of[name].items() if key not in own} == {
            key: value for key, value in of[first].items() if key not in own
        }
    found = rows(tmp_path / "out", "results")
    assert len(found) == 5 * MAP_PHOTOS
    assert [row["query_id"] for row in found[::MAP_PHOTOS]] == [row["query_id"] for row in rows(tmp_path / "out")]
    assert geotag(noise / "map", archive, tmp_path / "out").answered_before == 5


def test_a_copy_of_a_photo_that_cannot_be_used_is_tried_itself(noise: Path, tmp_path: Path):
    archive = part_of(noise, tmp_path / "archive", ARCHIVE[:1])
    shutil.copy(noise / "archive" / "half.jpg", archive / "half.jpg")
    shutil.copy(noise / "archive" / "half.jpg", archive / "again-half.jpg")

    summary = geotag(noise / "map", archive, tmp_path / "out")

    assert (summary.photos, summary.duplicates, sum(summary.rejected.values())) == (1, 0, 2)


# ------------------------------------------------------------------------------------------------------ stopped runs


def chunk(names: list[str], basis: dict[str, object]) -> Chunk:
    wanted = [row | {"query_id": name} for name in names for row in samples.results().to_pylist()[:1]]
    return Chunk(
        photo_keys={name: f"key of {name}" for name in names},
        results=samples.results().from_pylist(wanted, RESULTS),
        basis=basis,
        without_features=tuple(name for name in names if name == "d"),
    )


@given(cuts=st.lists(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4), max_size=5))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_whatever_was_kept_each_photo_is_found_once_if_it_is_the_same(
    cuts: list[list[str]], tmp_path_factory: pytest.TempPathFactory
):
    """Two processes that answer the same photos may both keep them. Those named d rested on damage, f is another photo now."""
    kept, basis = KeptAnswers(LocalStorage(str(tmp_path_factory.mktemp("kept")))), {"map_version": 1, "manifest": "x"}
    for names in cuts:
        kept.keep(chunk(names, basis))
    kept.keep(chunk(["a", "b"], {"map_version": 2, "manifest": "y"}))

    found = list(kept.find(basis, {name: f"key of {name}" for name in "abcde"} | {"f": "another"}))

    names = [name for one in found for name in one.photo_keys]
    assert sorted(names) == sorted({name for cut in cuts for name in cut} - {"d", "f"})
    assert sorted(name for one in found for name in one.results["query_id"].to_pylist()) == sorted(names)


def kill_again_and_again(noise: Path, folder: Path, kills: int) -> None:
    """Kill runs at moments spread over their operations on stores, each up to three times, and let the next one finish.

    Every other one finds the tables of an earlier run on half of the archive.
    """
    half = part_of(noise, folder / "half", ARCHIVE[:11])
    half = half.rename(folder / "archive")
    geotag(noise / "map", half, folder / "earlier")
    shutil.rmtree(half)
    shutil.copytree(noise / "archive", half)
    job = GeotagJob(map_url=noise / "map", archive=half, out=folder / "counted")
    operations = operations_of(job)
    expected = files(job.out)
    random, start, done, taken_over, broken = np.random.default_rng(20261122), time.monotonic(), 0, 0, []
    while done < kills:
        job = replace(job, out=folder / f"out-{done}")
        if done % 2:
            shutil.copytree(folder / "earlier", job.out)
        for _ in range(int(random.integers(1, 4))):
            late = operations - int(random.integers(24)) if random.random() < 0.5 else int(random.integers(operations))
            done += die_of(job, Death(operation=late, moment=random.choice(["before", "during", "after"])))
            broken += [f"{path}: half written" for path in job.out.rglob("*.parquet") if not is_whole(path)]
        taken_over += job.run().answered_before
        if files(job.out) != expected:
            broken.append(f"{job.out}: {sorted(files(job.out))}")
        shutil.rmtree(job.out)
    record(
        "kill -9, geotag", rounds=done, failures=len(broken), seconds=time.monotonic() - start, note=f"{taken_over} taken over"
    )
    assert not broken, "\n".join(broken)
    assert taken_over > 0


def is_whole(path: Path) -> bool:
    """Whether a file is a table of ours as it was written; one that is removed meanwhile is."""
    kind = json.loads(pq.read_schema(path).metadata[b"folio"])["kind"]
    return len(read_table(LocalStorage(str(path.parent)), path.name, kind=kind)) >= 0


def test_runs_killed_at_any_moment_go_on_and_end_with_the_same_bytes(noise: Path, tmp_path: Path):
    kill_again_and_again(noise, tmp_path, 6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_runs_killed_at_any_moment_end_with_the_same_bytes(noise: Path, tmp_path: Path):
    kill_again_and_again(noise, tmp_path, 200)


@pytest.mark.parametrize(("chunk_s", "chunk_photos"), [(1e6, CHUNK), (0.0, 1)], ids=["quick", "slow network"])
def test_a_run_that_is_stopped_keeps_the_chunks_it_had_answered(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_s: float, chunk_photos: int
):
    """And nothing of them stays once it is done."""
    real, kept = KeptAnswers.keep, []

    def full(self: KeptAnswers, chunk: Chunk) -> None:
        real(self, chunk)
        kept.append(chunk)
        if len(kept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(KeptAnswers, "keep", full)
    monkeypatch.setattr(answering, "CHUNK_S", chunk_s)
    with pytest.raises(KeyboardInterrupt):
        geotag(noise / "map", noise / "archive", tmp_path / "out")
    assert {path.split("/")[0] for path in files(tmp_path / "out")} == {"parts"}
    monkeypatch.undo()

    summary: GeotagSummary = geotag(noise / "map", noise / "archive", tmp_path / "out")

    assert 2 * chunk_photos < summary.answered_before <= 3 * chunk_photos
    assert files(tmp_path / "out") == files(noise / "tables")
