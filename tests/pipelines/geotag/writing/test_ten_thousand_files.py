"""Ten thousand photos written, undone and compared byte for byte. Prints what a file takes: pytest -s -m slow."""

import os
import time
from pathlib import Path

import pytest

from pipelines.geotag.writing.undo import run_folder, undo
from pipelines.geotag.writing.write import WriteRequest, run_writing
from tests.pipelines.geotag.writing.archives import SETTINGS, content, geotag_row, jpeg, write_geotags
from tests.pipelines.geotag.writing.test_exif import GPS, photo
from tests.pipelines.geotag.writing.test_xmp import RATED

FILES = 10_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["sidecar", "exif"])
def test_ten_thousand_files_are_written_and_taken_back_byte_for_byte(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
):
    """Photos without metadata, of a camera, and with a position; each hundredth with a sidecar."""
    folder = tmp_path / "photos"
    models = [jpeg(1), photo(), photo(endian=">", gps={tag: value for tag, value in GPS.items() if tag > 4})]
    for number in range(FILES):
        path = folder / f"{number // 500}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(models[number % 3] + os.urandom(16).hex().encode() * (number % 3 == 0))
        if number % 100 == 0:
            path.with_name(f"{path.name}.xmp").write_bytes(RATED)
    before = content(folder)
    names = sorted(name for name in before if name.endswith(".jpg"))
    out = write_geotags(tmp_path / "out", [geotag_row(name, str(folder), lat_deg=i / 200) for i, name in enumerate(names, 1)])

    start = time.perf_counter()
    done = run_writing(WriteRequest(out=out, kind=kind, dry_run=False), SETTINGS)
    written_s = time.perf_counter() - start
    after = content(folder)
    assert (done.created + done.changed, done.left) == (FILES, {})
    assert sum(after[name] != before.get(name) for name in after) == FILES
    assert done.run
    start = time.perf_counter()
    taken_back = undo(run_folder(done.run, None))
    undone_s = time.perf_counter() - start

    assert (taken_back.restored + taken_back.removed, taken_back.left) == (FILES, [])
    assert content(folder) == before
    kept = Path(done.run, "originals.bin").stat().st_size + Path(done.run, "journal.jsonl").stat().st_size
    with capsys.disabled():
        print(
            f"\n{FILES:,} files ({kind}): written in {written_s / FILES * 1e3:.1f} ms a file, undone in "
            f"{undone_s / FILES * 1e3:.1f}, {kept / FILES:,.0f} bytes kept a file"
        )
