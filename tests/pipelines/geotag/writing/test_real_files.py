"""Photos of real cameras, and files made to break readers: each is written and taken back, or refused by name; none damaged."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipelines.geotag.writing.undo import run_folder, undo
from pipelines.geotag.writing.write import WriteRequest, run_writing
from tests.pipelines.geotag.writing.archives import SETTINGS, content, geotag_row, write_geotags


def scan(data: bytes) -> bytes:
    """From the first scan on, found by walking the segments."""
    at = 2
    while data[at + 1] != 0xDA:
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at:]


@pytest.mark.parametrize("kind", ["exif", "sidecar"])
@pytest.mark.parametrize(("name", "files", "written"), [("exif", 70, 58), ("malformed", 269, 54)])
def test_no_file_is_damaged(shared_data: Path, tmp_path: Path, kind: str, name: str, files: int, written: int):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in (shared_data / name).iterdir():
        if path.suffix not in (".md", ".csv"):
            shutil.copyfile(path, folder / path.name)
    before = content(folder)
    assert len(before) == files
    out = write_geotags(tmp_path / "out", [geotag_row(name, str(folder)) for name in sorted(before)])

    done = run_writing(WriteRequest(out=out, kind=kind, dry_run=False, overwrite=True), SETTINGS)

    after = content(folder)
    changed = {name for name in before if after[name] != before[name]}
    if kind == "sidecar":
        assert (done.created, changed) == (files, set())
    else:
        assert len(changed) == done.changed >= written
        assert all(scan(after[name]) == scan(before[name]) for name in changed)
        with Path(out, "writes.csv").open(newline="", encoding="utf-8") as file:
            report = {row["uri"]: row for row in csv.DictReader(file)}
        left = {name for name, row in report.items() if row["outcome"] == "left"}
        assert left == set(before) - changed
        assert all(report[name]["reason"] and report[name]["detail"] for name in left)
        assert Counter(report[name]["reason"] for name in left) == done.left
    assert done.run
    taken_back = undo(run_folder(done.run, None))
    assert taken_back.left == []
    assert content(folder) == before
