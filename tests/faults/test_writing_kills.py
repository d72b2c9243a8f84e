"""kill -9 at random points while geotags are written into files and while that is taken back: no file half-written, none lost.

After each kill every file is, by its sha256, the one before or the one the journal announced. Then the same command again
finishes the job, or the run is undone as it stands; either way the archive ends as it began, byte for byte.
"""

import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.settings import Settings
from pipelines.geotag.writing.journal import opened_journal, runs_in, sha256
from pipelines.geotag.writing.undo import undo
from pipelines.geotag.writing.write import BATCH, WriteRequest, run_writing
from tests.faults.profile import record, rounds
from tests.faults.writing_victim import WritingDeath, calls_of, die_writing
from tests.pipelines.geotag.writing.archives import content, geotag_row, jpeg, write_geotags
from tests.pipelines.geotag.writing.test_xmp import RATED

PHOTOS = BATCH + 4
"""So that there are two batches."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, some with a sidecar."""
    folder = tmp_path_factory.mktemp("writing") / "photos"
    folder.mkdir()
    for number in range(PHOTOS):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        if number % 3 == 0:
            (folder / f"{number}.jpg.xmp").write_bytes(RATED)
    return folder


def laid_out(archive: Path, place: Path, kind: str) -> WriteRequest:
    """A fresh copy of the archive and its geotags."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(archive, place / "photos")
    out = write_geotags(place / "out", [geotag_row(f"{number}.jpg", str(place / "photos")) for number in range(PHOTOS)])
    return WriteRequest(out=out, kind=kind, dry_run=False)


def runs_of(request: WriteRequest) -> list[Path]:
    """The newest first; more than one where a death came too late, and the same was asked again."""
    writes = Path(request.out, "writes")
    return [writes / name for name in reversed(runs_in(writes))]


def check_whole(place: Path, before: dict[str, bytes], request: WriteRequest) -> None:
    """Every file is the one before or the one announced."""
    announced: set[tuple[str, str]] = set()
    for run in runs_of(request):
        with opened_journal(run) as journal:
            announced |= {(change.path, change.after_sha256) for change in journal.changes}
    for name, data in content(place / "photos").items():
        if not name.endswith(".folio-tmp"):
            assert data == before.get(name) or (str(place / "photos" / name), sha256(data)) in announced, name
    assert {name for name in before if not (place / "photos" / name).exists()} == set()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["sidecar", "exif"])
def test_kills_while_writing_and_undoing_leave_every_file_whole(archive: Path, tmp_path: Path, kind: str):
    start, chance, met = time.monotonic(), np.random.default_rng(20_261_122), Counter[str]()
    before = content(archive)
    undisturbed = laid_out(archive, tmp_path / "whole", kind)
    write_calls = calls_of(undisturbed)
    undo_calls = calls_of(runs_of(undisturbed)[0])
    assert content(tmp_path / "whole" / "photos") == before
    assert min(write_calls, undo_calls) > PHOTOS

    def some_death(calls: int) -> WritingDeath:
        return WritingDeath(
            call=int(chance.integers(calls)), after_s=[None, 0.0, float(chance.uniform(0, 0.01))][chance.integers(3)]
        )

    total = rounds(quick=2, full=100)
    for _ in range(total):
        place = tmp_path / "round"
        request = laid_out(archive, place, kind)
        met["killed writing"] += die_writing(request, some_death(write_calls))
        check_whole(place, before, request)
        if chance.integers(2):
            met["killed going on"] += die_writing(request, some_death(write_calls))
            check_whole(place, before, request)
            met["went on with it"] += run_writing(request, Settings(threads=1)).resumed
            after = content(place / "photos")
            assert sum(after[name] != before.get(name) for name in after) == PHOTOS
            assert not [name for name in content(place / "photos") if name.endswith(".folio-tmp")]
        for run in runs_of(request):
            met["killed undoing"] += die_writing(run, some_death(undo_calls))
            check_whole(place, before, request)
            assert undo(run).left == []
        assert content(place / "photos") == before
    assert met["killed writing"] >= total // 2
    note = ", ".join(f"{count} {what}" for what, count in met.items())
    record(f"kill -9 while geotags are written ({kind})", rounds=total, failures=0, seconds=time.monotonic() - start, note=note)


def test_a_request_that_differs_is_a_run_of_its_own(archive: Path, tmp_path: Path):
    request = laid_out(archive, tmp_path / "place", "exif")
    assert die_writing(request, WritingDeath(call=40, after_s=0.0))

    other = run_writing(replace(request, overwrite=True), Settings(threads=1))

    assert not other.resumed
    assert len(runs_in(Path(request.out, "writes"))) == 2
