"""The folder of a run says how far it got, and is nobody else's."""

from pathlib import Path

import pytest

from infra.settings import Settings
from pipelines.train.run_folder import Progress, RunFolder, StepLine
from schemas.errors import DamagedError, ModelError

PLAN = {"training": {"seed": 0, "learning_rate": 6e-5}, "data": {"digest": "a", "photos": 4}}


def folder(path: Path) -> RunFolder:
    return RunFolder(str(path), Settings(threads=1))


def begun(path: Path) -> RunFolder:
    run = folder(path)
    run.open(PLAN)
    run.checkpoint_path(3).write_bytes(b"weights")
    run.commit(Progress(checkpoint="step-00000003.ckpt", epoch=0, batch=3, steps=3, log_bytes=0))
    return run


def line(step: int) -> StepLine:
    return StepLine(
        **{"step": step, "epoch": 0, "total": 1.0, "losses": {"global_": 1.0}, "pseudo_correspondences": 2, "mined_pairs": 3},
        **{"learning_rate": 1e-4, "grad_norm": 1.0, "images": 8, "seconds": 0.5, "waited": 0.0},
    )


def test_a_new_run_has_got_nowhere(tmp_path: Path):
    run = folder(tmp_path / "run")

    run.open(PLAN)

    assert run.progress() is None


def test_a_run_that_got_somewhere_goes_on_under_the_same_plan(tmp_path: Path):
    begun(tmp_path).open(PLAN)

    progress = folder(tmp_path).progress()
    assert progress is not None
    assert progress.batch == 3


def test_other_settings_and_data_are_refused_by_name(tmp_path: Path):
    run = begun(tmp_path)
    other = {"training": {"seed": 0, "learning_rate": 1e-4}, "data": {"digest": "b", "photos": 4}}

    with pytest.raises(ModelError, match=r"data\.digest was a and is b; training\.learning_rate was 6e-05 and is 0\.0001\."):
        run.open(other)


def test_a_run_that_got_nowhere_may_be_started_anew_with_other_settings(tmp_path: Path):
    run = folder(tmp_path)
    run.open(PLAN)

    run.open({"training": {"seed": 1}})

    assert '"seed": 1' in (tmp_path / "plan.json").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "holiday.jpg").write_bytes(b"")

    with pytest.raises(ModelError, match=r"holds holiday\.jpg but no plan\.json"):
        folder(tmp_path).open(PLAN)


def test_progress_that_is_damaged_is_said_to_be(tmp_path: Path):
    run = begun(tmp_path)
    (tmp_path / "progress.json").write_text('{"checkpoint": "step')

    with pytest.raises(DamagedError, match=r"progress\.json"):
        run.progress()


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path):
    run = begun(tmp_path)
    kept = run.log([line(1), line(2)])
    run.log([line(3)])

    run.truncate_log(kept)

    assert [one.step for one in run.lines()] == [1, 2]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path):
    run = begun(tmp_path)
    size = run.log([line(1), line(2)])

    run.truncate_log(size - 5)

    assert [one.step for one in run.lines()] == [1]


def test_only_the_last_checkpoints_are_kept(tmp_path: Path):
    run = begun(tmp_path)
    for steps in (4, 5, 6):
        run.checkpoint_path(steps).write_bytes(b"weights")
        run.commit(Progress(checkpoint=f"step-{steps:08d}.ckpt", epoch=0, batch=steps, steps=steps, log_bytes=0))

    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == ["step-00000005.ckpt", "step-00000006.ckpt"]


def test_rejects_are_added_up_and_counted_once(tmp_path: Path):
    run = begun(tmp_path)
    bad = {"uri": "a.jpg", "root": "/", "photo_key": None, "stage": "train", "reason": "truncated", "detail": "ends early"}

    run.write_rejects([bad], rank=0)
    run.write_rejects([{**bad, "uri": "b.jpg"}], rank=0)
    run.write_rejects([bad], rank=1)

    assert run.rejected() == {"truncated": 2}


def test_two_trainings_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = (RunFolder(str(tmp_path / "run"), Settings(threads=1)) for _ in range(2))

    with first.locked(), pytest.raises(ModelError, match="another training is at work in this folder"), second.locked():
        pass
    with second.locked():
        pass
