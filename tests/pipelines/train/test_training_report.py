"""The page of a training says how it went, and warns where a loss taught nothing."""

from dataclasses import asdict
from pathlib import Path

from fol_model.recipes import recipe_named
from infra.settings import Settings
from pipelines.train.report import QUIET_STEPS, quiet_notes, smoothed, write_training_report
from pipelines.train.run_folder import RecallLine, RunFolder, StepLine
from tests.pipelines.train.photos import photo, write_photo


def line(step: int, *, pairs: int = 3) -> StepLine:
    return StepLine(
        **{"step": step, "epoch": 0, "total": 2.0, "losses": {"global_": 1.0, "reliability": 0.0}, "mined_pairs": 3},
        **{"pseudo_correspondences": pairs, "learning_rate": 1e-4, "grad_norm": 1.0},
        **{"images": 8, "seconds": 0.5, "waited": 0.1},
    )


def written(folder: Path, lines: list[StepLine | RecallLine], photos: list[str]) -> str:
    run = RunFolder(str(folder / "run"), Settings(threads=1))
    plan = {
        "recipe": asdict(recipe_named("tiny")),
        "training": {"places_per_batch": 4, "photos_per_place": 2},
        "data": {"photos": 2, "places": 1, "held_out": 0},
    }
    run.open(plan)
    run.log(lines)
    known = [photo(name, root=str(folder)) for name in photos]
    write_training_report(run, plan, known, [tuple(range(len(known)))], Settings(threads=1), notes=["two < three"])
    return (folder / "run" / "report.html").read_text()


def test_the_page_shows_numbers_curves_and_photos(tmp_path: Path):
    write_photo(tmp_path / "a.jpg", place=0, number=0)
    recall = RecallLine(step=2, epoch=1, queries=4, photos=9, global_=[0.25, 0.5, 1.0], reranked=[0.5, 0.5, 1.0])

    page = written(tmp_path, [line(1), line(2), recall], ["a.jpg", "gone.jpg"])

    assert "How tiny was trained" in page
    assert "50.0 %" in page
    assert "two &lt; three" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert "This photo cannot be read." in page
    assert "global: multi-similarity of descriptors" in page
    assert "known reliability" not in page  # a term of weight 0


def test_the_page_of_a_run_that_did_nothing_says_so(tmp_path: Path):
    page = written(tmp_path, [], [])

    assert "No step was done yet." in page
    assert "Nothing was validated." in page


def test_many_steps_without_a_pseudo_correspondence_are_never_silent(tmp_path: Path):
    quiet = [line(step, pairs=0) for step in range(QUIET_STEPS)]

    assert "their loss teaches nothing" in quiet_notes([line(0), *quiet])[0]
    assert 'class="notice"' in written(tmp_path, list(quiet), [])
    assert quiet_notes([*quiet[1:], line(0), *quiet[1:]]) == []


def test_a_curve_is_thinned_to_means_of_runs():
    assert smoothed([1.0, 3.0]) == ([1.0, 2.0], [1.0, 3.0])
    steps, means = smoothed([float(n) for n in range(800)])
    assert (len(steps), means[0], steps[0]) == (400, 0.5, 1.5)
