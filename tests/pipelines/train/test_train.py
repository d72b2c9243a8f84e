"""A training from photos to weights: stopped and gone on with, refused, diverged."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fol_model.checkpoints import read_card
from fol_model.inference import open_encoder
from fol_model.training.learner import Batch, Learner, StepReport
from infra.settings import Settings
from infra.storage import open_storage
from infra.tables import read_table
from pipelines.train.request import Sources, TrainRequest, TrainSummary
from pipelines.train.run_folder import RunFolder
from pipelines.train.train import run_training
from schemas.errors import CatalogError, ModelError
from tests.pipelines.train.photos import small_request, write_labelled, write_photo

SETTINGS = Settings(threads=1)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("photos"), places=12, photos=3)


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRequest, TrainSummary]:
    """A run that nobody stopped."""
    request = small_request(table, tmp_path_factory.mktemp("runs") / "whole")
    request = replace(request, sources=replace(request.sources, licences=("CC0, made up",)))
    return request, run_training(request, SETTINGS)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the learner be interrupted, as by Ctrl-C, in a step after so many."""
    step: Callable[[Learner, Batch], StepReport] = Learner.step

    def interrupted(self: Learner, batch: Batch) -> StepReport:
        if self.steps_done == steps:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Learner, "step", interrupted)


def test_a_run_leaves_weights_that_can_be_used_at_once(whole: tuple[TrainRequest, TrainSummary]):
    _, summary = whole

    encoder = open_encoder("tiny", weights=Path(summary.weights), device="cpu")

    assert encoder.trained
    assert summary.steps == 2 * (9 // 4)
    assert summary.best is not None
    assert summary.best.queries == 9  # three places of three photos: the first that come to 20 %
    assert summary.pseudo_correspondences > 0
    card = read_card(Path(summary.weights))
    assert card is not None
    assert card.fingerprint == encoder.fingerprint


def test_the_card_says_what_the_weights_were_trained_on(whole: tuple[TrainRequest, TrainSummary]):
    request, summary = whole

    card = json.loads((Path(request.out) / "card.json").read_text())

    assert card["training"]["sources"] == ["photos.csv"]
    assert card["training"]["licences"] == ["CC0, made up"]
    assert card["training"]["plan"]["training"]["learning_rate"] == 1e-4
    assert summary.best is not None
    assert card["training"]["validation"]["reranked"] == summary.best.reranked
    assert str(Path(request.out).parent) not in json.dumps(card)


def test_a_run_writes_its_curves_recalls_and_report(whole: tuple[TrainRequest, TrainSummary]):
    request, summary = whole

    kinds = [json.loads(line)["kind"] for line in (Path(request.out) / "metrics.jsonl").read_text().splitlines()]
    recalls = read_table(open_storage(request.out, SETTINGS), "metrics.parquet", kind="metrics")

    assert kinds == ["step", "step", "validation"] * 2
    assert recalls["stage"].to_pylist() == ["global"] * 3 + ["reranked"] * 3
    assert "How tiny was trained" in Path(summary.report).read_text()


def test_a_run_that_is_stopped_and_run_again_ends_with_the_same_bytes(
    table: Path, whole: tuple[TrainRequest, TrainSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    request = replace(whole[0], out=str(tmp_path / "run"), checkpoint_minutes=0.0)
    with monkeypatch.context() as stopping:
        stop_after(1, stopping)
        with pytest.raises(KeyboardInterrupt):
            run_training(request, SETTINGS)
    with monkeypatch.context() as stopping:
        stop_after(3, stopping)
        with pytest.raises(KeyboardInterrupt):
            run_training(request, SETTINGS)

    summary = run_training(request, SETTINGS)

    assert Path(summary.weights).read_bytes() == Path(whole[1].weights).read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4]


def test_a_finished_run_that_is_run_again_changes_nothing(whole: tuple[TrainRequest, TrainSummary]):
    request, summary = whole
    before = Path(summary.weights).read_bytes()

    again = run_training(request, SETTINGS)

    assert again == summary
    assert Path(summary.weights).read_bytes() == before


def test_a_damaged_checkpoint_is_refused_by_name(whole: tuple[TrainRequest, TrainSummary], tmp_path: Path):
    request = replace(whole[0], out=str(tmp_path / "run"))
    shutil.copytree(whole[0].out, request.out)
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])

    with pytest.raises(ModelError, match=rf"{checkpoint.name}.*truncated.*Nothing was changed"):
        run_training(request, SETTINGS)


def test_another_setting_is_refused_and_named(whole: tuple[TrainRequest, TrainSummary]):
    request, _ = whole

    with pytest.raises(ModelError, match=r"training\.learning_rate was 0\.0001 and is 0\.001"):
        run_training(replace(request, training=replace(request.training, learning_rate=1e-3)), SETTINGS)


def test_other_photos_are_refused_and_more_epochs_are_not(table: Path, tmp_path: Path):
    request = small_request(table, tmp_path / "run", epochs=1)
    run_training(request, SETTINGS)

    more = run_training(replace(request, epochs=2), SETTINGS)
    write_labelled(tmp_path, places=12, photos=2)
    with pytest.raises(ModelError, match=r"data\.digest was"):
        run_training(replace(request, sources=Sources(photos=(str(tmp_path / "photos.csv"),))), SETTINGS)

    assert more.epochs == 2


def test_a_loss_that_turns_nan_stops_the_run_and_names_the_photos(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = small_request(table, tmp_path / "run", checkpoint_minutes=0.0)
    step: Callable[[Learner, Batch], StepReport] = Learner.step

    def poisoned(self: Learner, batch: Batch) -> StepReport:
        if self.steps_done == 3:
            batch.images[0] = np.nan
        return step(self, batch)

    monkeypatch.setattr(Learner, "step", poisoned)

    with pytest.raises(ModelError, match=r"step 4: loss .* is NaN or infinite on photos p\d\d-\d\.jpg, "):
        run_training(request, SETTINGS)

    progress = RunFolder(request.out, SETTINGS).progress()
    assert progress is not None
    assert progress.steps == 3
    assert len(json.loads((tmp_path / "run" / "diverged.json").read_text())["photos"]) == 8


def test_weights_to_start_from_that_do_not_fit_are_refused_by_name(table: Path, tmp_path: Path):
    save_file({"something": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")

    with pytest.raises(ModelError, match=r"other\.safetensors"):
        run_training(small_request(table, tmp_path / "run", start=str(tmp_path / "other.safetensors")), SETTINGS)


def test_a_run_can_start_from_what_another_wrote(table: Path, whole: tuple[TrainRequest, TrainSummary], tmp_path: Path):
    summary = run_training(small_request(table, tmp_path / "run", epochs=1, start=whole[1].weights, ema_decay=0.0), SETTINGS)

    before, after = load_file(whole[1].weights), load_file(summary.weights)

    assert max(abs(before[name] - after[name]).max() for name in before) < 0.01


def test_too_few_places_are_refused_before_anything_is_started(tmp_path: Path):
    table = write_labelled(tmp_path, places=2, photos=2)

    with pytest.raises(CatalogError, match="give 1 places to train on, and a batch needs 2"):
        run_training(small_request(table, tmp_path / "run"), SETTINGS)

    assert not (tmp_path / "run").exists()


def test_an_input_size_that_does_not_suit_the_recipe_is_refused_before_anything_is_started(table: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="must be a multiple of 14"):
        run_training(small_request(table, tmp_path / "run", input_size=100), SETTINGS)

    assert not (tmp_path / "run").exists()


def test_single_photos_are_trained_on_by_their_views_and_that_is_said(tmp_path: Path):
    for place in range(6):
        write_photo(tmp_path / "photos" / f"{place}.jpg", place=place, number=0)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no photo")

    summary = run_training(small_request(tmp_path / "photos", tmp_path / "run", epochs=1), SETTINGS)

    assert summary.best is None
    assert summary.rejected == {"not-an-image": 1}
    assert any("6 of 6 places have fewer than 2 photos (6 have one): they are shown" in note for note in summary.notes)
    assert any("nothing can be validated" in note for note in summary.notes)


def test_workers_that_cannot_share_a_batch_are_refused(table: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="multiple of the 3 workers"):
        small_request(table, tmp_path, workers=3)
