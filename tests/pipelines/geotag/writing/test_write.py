"""Nothing is touched without being asked, nothing is touched without being logged, and everything can be taken back."""

import csv
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.geotag.writing import write
from pipelines.geotag.writing.journal import JOURNAL, Undone, opened_journal, runs_in
from pipelines.geotag.writing.undo import UndoSummary, run_folder, undo
from pipelines.geotag.writing.write import WriteRequest, WriteSummary, run_writing
from pipelines.geotag.writing.xmp import read_properties
from schemas.errors import CatalogError, DamagedError, StorageError, WorkError
from tests.pipelines.geotag.writing.archives import LAT_DEG, LON_DEG, SETTINGS, content, geotag_row, jpeg, position, write_geotags
from tests.pipelines.geotag.writing.test_xmp import DARKTABLE, RATED

Geotagged = Callable[..., str]
KINDS = ["sidecar", "exif"]


def run(out: str, kind: str, **options: Any) -> WriteSummary:
    return run_writing(WriteRequest(out=out, kind=kind, dry_run=options.pop("dry_run", False), **options), SETTINGS)


def undone(out: str, summary: WriteSummary, **options: Any) -> UndoSummary:
    assert summary.run is not None
    return undo(run_folder(summary.run, None), **options)


def report(out: str) -> dict[str, dict[str, str]]:
    with Path(out, "writes.csv").open(newline="", encoding="utf-8") as file:
        return {row["uri"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_writes_the_plan_and_nothing_else(archive: Path, geotagged: Geotagged, kind: str):
    out, before = geotagged(), content(archive)
    names = set(content(Path(out)))

    summary = run(out, kind, dry_run=True)

    assert content(archive) == before
    assert set(content(Path(out))) == names | {"writes.csv"}
    assert (summary.created, summary.changed) == ((3, 0) if kind == "sidecar" else (0, 3))
    assert summary.run is None
    assert "dry run" in summary.lines()[-1]
    assert report(out)["ö.jpg"]["outcome"] == ("created" if kind == "sidecar" else "changed")


@pytest.mark.parametrize(
    ("changes", "unproven"),
    [({}, 0), ({"probability": None}, 3), ({"probability": None, "status": "accepted"}, 0), ({"status": "unknown"}, 0)],
)
def test_positions_whose_probability_nobody_knows_are_counted_before_and_after_they_are_written(
    geotagged: Geotagged, changes: dict[str, Any], unproven: int
):
    out = geotagged(**changes)

    for summary in (run(out, "sidecar", dry_run=True), run(out, "sidecar")):
        assert summary.unproven == unproven
        assert any("is not calibrated" in line for line in summary.lines()) == bool(unproven)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planned_is_what_is_done_and_undo_takes_it_back(archive: Path, geotagged: Geotagged, kind: str):
    out, before = geotagged(), content(archive)
    planned = run(out, kind, dry_run=True)

    done = run(out, kind)

    assert (done.created, done.changed, done.left) == (planned.created, planned.changed, planned.left)
    after = content(archive)
    assert {name for name in after if after[name] != before.get(name)} == (
        set(before) if kind == "exif" else {f"{name}.xmp" for name in before}
    )
    first = undone(out, done)
    assert (first.restored, first.removed, first.left) == ((3, 0, []) if kind == "exif" else (0, 3, []))
    assert content(archive) == before


def test_undoing_twice_is_harmless(archive: Path, geotagged: Geotagged):
    out, before = geotagged(), content(archive)
    done = run(out, "exif")
    undone(out, done)

    again = undone(out, done)

    assert (again.restored, again.removed, again.untouched, again.left) == (0, 0, 3, [])
    assert content(archive) == before


def test_a_photo_keeps_its_mode_and_times_and_undo_restores_them(archive: Path, geotagged: Geotagged):
    photo = archive / "a.jpg"
    photo.chmod(0o640)
    os.utime(photo, ns=(10**18, 10**18 + 123_456_789))
    out = geotagged()

    done = run(out, "exif")
    assert position(photo.read_bytes()) == pytest.approx((LAT_DEG, LON_DEG), abs=1e-7)
    assert (stat.S_IMODE(photo.stat().st_mode), photo.stat().st_mtime_ns) == (0o640, 10**18 + 123_456_789)
    photo.chmod(0o600)
    undone(out, done)

    assert (stat.S_IMODE(photo.stat().st_mode), photo.stat().st_mtime_ns) == (0o640, 10**18 + 123_456_789)


def test_a_sidecar_that_is_there_is_merged_and_restored(archive: Path, geotagged: Geotagged):
    sidecar = archive / "a.jpg.xmp"
    sidecar.write_bytes(RATED)
    os.utime(sidecar, ns=(10**18, 10**18))
    out = geotagged()

    done = run(out, "sidecar")

    assert (done.created, done.changed) == (2, 1)
    assert b'xmp:Rating="4"' in sidecar.read_bytes()
    assert b"folio:Run" in sidecar.read_bytes()
    assert sidecar.stat().st_mtime_ns > 10**18  # so that programs that watch sidecars see it
    undone(out, done)
    assert sidecar.read_bytes() == RATED
    assert sidecar.stat().st_mtime_ns == 10**18


def test_adobes_names_of_sidecars(archive: Path, geotagged: Geotagged):
    run(geotagged(), "sidecar", style="adobe")

    assert sorted(path.name for path in archive.glob("*.xmp")) == ["a.xmp", "b c.xmp", "ö.xmp"]


def test_a_sidecar_that_would_belong_to_two_photos_is_not_written(archive: Path, geotagged: Geotagged):
    (archive / "a.JPG").write_bytes(jpeg())
    out = geotagged()

    assert run(out, "sidecar", style="adobe").left == {"several-photos": 2}
    assert not (archive / "a.xmp").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"status": "unknown", "lat_deg": None, "lon_deg": None, "reason": "too little in common"}, "no-position"),
        ({"status": "refused"}, "no-position"),
        ({"lat_deg": 0.0, "lon_deg": 0.0}, "null-island"),
        ({"lat_deg": 91.0}, "position-invalid"),
        ({"known_lat_deg": 55.0, "known_lon_deg": 13.0}, "own-position"),
    ],
)
def test_what_must_not_be_written_is_not(archive: Path, geotagged: Geotagged, kind: str, changes: dict[str, Any], code: str):
    out, before = geotagged(**changes), content(archive)

    summary = run(out, kind)

    assert summary.left == {code: 3}
    assert content(archive) == before
    assert report(out)["a.jpg"]["detail"]


def test_a_position_in_the_photo_or_its_sidecar_is_kept_unless_overwritten(archive: Path, geotagged: Geotagged):
    out = geotagged()
    run(out, "exif")
    (archive / "a.jpg.xmp").write_bytes(DARKTABLE)
    before = content(archive)

    assert run(out, "exif").left == {"own-position": 3}
    assert run(out, "sidecar").left == {"own-position": 1}
    assert content(archive).items() >= before.items()
    assert run(out, "sidecar").left == {"own-position": 3}
    assert "Folio wrote one there before" in report(out)["b c.jpg"]["detail"]
    assert run(out, "exif", overwrite=True).changed == 3
    assert run(out, "sidecar", overwrite=True).changed == 3


def test_runs_on_top_of_each_other_are_undone_from_the_newest_down(archive: Path, geotagged: Geotagged):
    out, before = geotagged(), content(archive)
    first, second = run(out, "exif"), run(out, "exif", overwrite=True)

    early = undone(out, first)
    assert (early.restored, len(early.left)) == (0, 3)
    undone(out, second)
    undone(out, first)

    assert content(archive) == before


@pytest.mark.parametrize("kind", KINDS)
def test_links_read_only_files_archives_and_buckets_are_refused_and_the_rest_goes_on(archive: Path, tmp_path: Path, kind: str):
    (archive / "link.jpg").symlink_to(archive / "a.jpg")
    (archive / "bundle.tar").write_bytes(b"tar")
    (archive / "folder.jpg").mkdir()
    (archive / "twin.jpg").write_bytes(jpeg(9))
    (archive / "other.jpg").hardlink_to(archive / "twin.jpg")
    (archive / "fixed.jpg").write_bytes(jpeg(8))
    (archive / "fixed.jpg").chmod(0o444)
    (archive / "linked.jpg").write_bytes(jpeg(7))
    (archive / "linked.jpg.xmp").symlink_to(archive / "elsewhere.xmp")
    names = ["link.jpg", "bundle.tar/in.jpg", "folder.jpg", "gone.jpg", "twin.jpg", "fixed.jpg", "linked.jpg", "a.jpg"]
    rows = [geotag_row(name, str(archive)) for name in names]
    rows.append(geotag_row("b.jpg", "s3://bucket/survey"))
    rows.append(geotag_row("../outside.jpg", str(archive)))
    out = write_geotags(tmp_path / "out", rows)

    run(out, kind)

    found = {uri: row["reason"] or row["outcome"] for uri, row in report(out).items()}
    assert found == {
        "link.jpg": "link",
        "bundle.tar/in.jpg": "not-a-file",
        "folder.jpg": "not-a-file",
        "gone.jpg": "missing",
        "twin.jpg": "created" if kind == "sidecar" else "hard-links",
        "fixed.jpg": "created" if kind == "sidecar" else "read-only",
        "linked.jpg": "link" if kind == "sidecar" else "changed",
        "a.jpg": "created" if kind == "sidecar" else "changed",
        "b.jpg": "not-a-file",
        "../outside.jpg": "outside-root",
    }
    assert not (archive / "elsewhere.xmp").exists()


def test_a_folder_that_cannot_be_written_costs_its_photos_and_no_others(
    archive: Path, geotagged: Geotagged, monkeypatch: pytest.MonkeyPatch
):
    """As a read-only mount would; tests may run as root, whom no mode of a folder stops."""
    out = geotagged()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != archive and access(path, mode))

    assert run(out, "sidecar").left == {"read-only": 3}


def test_a_broken_sidecar_is_left_alone_and_its_photo_named(archive: Path, geotagged: Geotagged):
    (archive / "a.jpg.xmp").write_bytes(b"<x:xmpmeta")
    out = geotagged()

    summary = run(out, "sidecar")

    assert (summary.created, summary.left) == (2, {"xmp-unreadable": 1})
    assert (archive / "a.jpg.xmp").read_bytes() == b"<x:xmpmeta"
    assert report(out)["a.jpg"]["reason"] == "xmp-unreadable"


def test_undo_leaves_what_somebody_has_changed_since_unless_forced(archive: Path, geotagged: Geotagged):
    out, before = geotagged(), content(archive)
    done = run(out, "sidecar")
    (archive / "a.jpg.xmp").write_bytes(RATED)
    (archive / "b c.jpg.xmp").unlink()

    summary = undone(out, done)

    assert (summary.removed, summary.untouched) == (1, 1)
    assert [Path(each.file).name for each in summary.left] == ["a.jpg.xmp"]
    assert (archive / "a.jpg.xmp").read_bytes() == RATED
    assert undone(out, done, force=True).left == []
    assert content(archive) == before


def test_force_restores_a_photo_whose_pixels_are_still_there_and_no_other(archive: Path, geotagged: Geotagged):
    out, before = geotagged(), content(archive)
    done = run(out, "exif")
    edited = (archive / "a.jpg").read_bytes().replace(b"answered", b"ANSWERED")
    (archive / "a.jpg").write_bytes(edited)
    (archive / "ö.jpg").write_bytes(jpeg(77))

    assert len(undone(out, done).left) == 2
    forced = undone(out, done, force=True)

    assert [Path(each.file).name for each in forced.left] == ["ö.jpg"]
    assert "does not fit" in forced.left[0].reason
    assert (archive / "a.jpg").read_bytes() == before["a.jpg"]
    assert (archive / "ö.jpg").read_bytes() == jpeg(77)


def test_every_change_is_logged_before_it_is_made(archive: Path, geotagged: Geotagged, monkeypatch: pytest.MonkeyPatch):
    out, before = geotagged(), content(archive)
    real, seen = write.put_file, []

    def looking(target: Path, *args: Any, **options: Any) -> None:
        lines = next(Path(out, "writes").glob(f"*/{JOURNAL}")).read_text("utf-8").splitlines()
        logged = {json.loads(line).get("path") for line in lines}
        seen.append((target.name, str(target) in logged, target.read_bytes() == before[target.name]))
        real(target, *args, **options)

    monkeypatch.setattr(write, "put_file", looking)
    run(out, "exif")

    assert seen == [(name, True, True) for name in ("a.jpg", "b c.jpg", "ö.jpg")]


def test_a_journal_that_cannot_be_written_stops_the_run_before_the_next_change(
    archive: Path, geotagged: Geotagged, monkeypatch: pytest.MonkeyPatch
):
    out, before = geotagged(), content(archive)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run(out, "exif")

    assert content(archive) == before


def test_a_disk_that_is_full_costs_the_photo_and_leaves_no_half(
    archive: Path, geotagged: Geotagged, monkeypatch: pytest.MonkeyPatch
):
    out, before = geotagged(), content(archive)
    real = os.open

    def full(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if str(path).endswith(".folio-tmp"):
            raise OSError(28, "No space left on device")
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", full)

    assert run(out, "exif").left == {"failed": 3}
    assert content(archive) == before


def test_somebody_elses_change_at_the_same_moment_is_kept(archive: Path, geotagged: Geotagged, monkeypatch: pytest.MonkeyPatch):
    out = geotagged()
    real = write.change_of

    def meddled(path: Path, *args: Any, **options: Any) -> Any:
        change = real(path, *args, **options)
        if path.name == "a.jpg":
            path.write_bytes(jpeg(99))
        return change

    monkeypatch.setattr(write, "change_of", meddled)

    done = run(out, "exif")
    assert done.left == {"changed": 1}
    assert (archive / "a.jpg").read_bytes() == jpeg(99)
    assert len(undone(out, done).left) == 1
    assert (archive / "a.jpg").read_bytes() == jpeg(99)


def test_a_stopped_run_goes_on_in_the_same_journal(archive: Path, geotagged: Geotagged, monkeypatch: pytest.MonkeyPatch):
    out, before = geotagged(), content(archive)
    real = write.put_file

    def stopping(target: Path, *args: Any, **options: Any) -> None:
        if target.name == "b c.jpg":
            raise KeyboardInterrupt
        real(target, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(write, "put_file", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(out, "exif")
    assert content(archive)["a.jpg"] != before["a.jpg"]

    other = run(out, "sidecar")  # something else is a run of its own
    assert not other.resumed
    going_on = run(out, "exif")

    assert (going_on.resumed, going_on.changed, going_on.left) == (True, 3, {})
    assert len(runs_in(Path(out, "writes"))) == 2
    undone(out, going_on)
    undone(out, other)
    assert content(archive) == before


def test_a_run_that_was_undone_is_not_gone_on_with(archive: Path, geotagged: Geotagged):
    out = geotagged()
    first = run(out, "exif")
    assert first.run
    journal = Path(first.run, JOURNAL)
    journal.write_bytes(journal.read_bytes().rpartition(b'{"type":"ended"}')[0])  # as if killed before the last record
    undone(out, first)

    second = run(out, "exif")

    assert not second.resumed
    assert second.run != first.run


def test_a_record_cut_off_by_a_kill_is_no_hindrance_and_a_damaged_one_is_told(archive: Path, geotagged: Geotagged):
    out, before = geotagged(), content(archive)
    done = run(out, "exif")
    assert done.run
    journal = Path(done.run, JOURNAL)
    whole = journal.read_bytes()

    journal.write_bytes(whole.replace(b'"path"', b'"psth"', 1))
    with pytest.raises(DamagedError, match="Nothing was changed"):
        undone(out, done)
    journal.write_bytes(whole + b'{"type":"chan')
    assert undone(out, done).restored == 3

    assert content(archive) == before
    assert b"chan" not in journal.read_bytes().splitlines()[-1]


def test_two_processes_do_not_work_on_one_run(archive: Path, geotagged: Geotagged):
    out = geotagged()
    done = run(out, "exif")
    assert done.run

    with opened_journal(Path(done.run)) as journal:
        assert not any(isinstance(each, Undone) for each in journal.changes)
        with pytest.raises(WorkError, match="Wait for it"):
            undone(out, done)


def test_originals_are_for_their_owner_alone(archive: Path, geotagged: Geotagged):
    done = run(geotagged(), "exif")
    assert done.run

    assert stat.S_IMODE(Path(done.run).stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in Path(done.run).iterdir())


def test_what_was_kept_of_a_photo_is_its_metadata_and_not_its_pixels(archive: Path, geotagged: Geotagged):
    done = run(geotagged(), "exif")
    assert done.run

    jfif_bytes = jpeg().index(b"\xff\xdb")
    assert Path(done.run, "originals.bin").stat().st_size == 3 * jfif_bytes


def test_a_results_folder_elsewhere_or_without_geotags_is_told(geotagged: Geotagged):
    with pytest.raises(CatalogError, match="needed one on this machine"):
        run("s3://bucket/out", "sidecar")
    with pytest.raises(CatalogError, match="no geotags to write"):
        run(str(Path(geotagged()).parent / "nothing"), "sidecar")


def folio(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["geotag", *arguments], prog_name="folio")


def test_the_command_writes_and_takes_back_without_a_map(archive: Path, geotagged: Geotagged):
    out, before = geotagged(), content(archive)

    dry = folio("--out", out, "--write", "sidecar")
    assert (dry.exit_code, content(archive)) == (0, before)
    done = json.loads(folio("--out", out, "--write", "sidecar", "--no-dry-run", "--format", "csv,gpx", "--json").output)
    assert done["writing"]["created"] == 3
    assert [Path(file).name for file in done["exports"]["files"]] == ["geotags.csv", "geotags.gpx"]
    assert read_properties((archive / "a.jpg.xmp").read_bytes())
    back = folio("--undo", Path(done["writing"]["run"]).name, "--out", out)

    assert (back.exit_code, content(archive)) == (0, before)
    assert "3 sidecars removed" in back.output
    assert folio("--undo", done["writing"]["run"], "--json").exit_code == 0


def test_the_command_exits_with_1_when_undo_left_something(archive: Path, geotagged: Geotagged):
    out = geotagged()
    done = json.loads(folio("--out", out, "--write", "exif", "--no-dry-run", "--json").output)
    (archive / "a.jpg").write_bytes(jpeg(5))

    back = folio("--undo", done["writing"]["run"])

    assert back.exit_code == 1
    assert "a.jpg: somebody has changed it since" in back.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--out DIR is missing"),
        (["--out", "x"], "MAP and ARCHIVE... are missing"),
        (["map", "--out", "x"], "ARCHIVE... is missing"),
        (["map", "photos"], "--out DIR is missing"),
        (["--out", "x", "--format", "shp"], "no format is called shp"),
        (["--out", "x", "--format", "csv", "--no-dry-run"], "are for --write"),
        (["--out", "x", "--write", "exif", "--force"], "--force is for --undo"),
        (["--undo", "r", "--write", "exif"], "--undo takes nothing but"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_a_usage_error(arguments: list[str], said: str):
    shown = folio(*arguments)

    assert shown.exit_code == 2
    assert said in shown.output
