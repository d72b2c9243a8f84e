"""The loop of a training run: batches to the learner, epoch by epoch; validate, keep the best, save, go on where it was.

The same for one worker and for several: a `Team` says who this worker is. The first worker alone validates and writes.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
from jaxtyping import UInt8

from fol_model.checkpoints import start_weights
from fol_model.config import Recipe
from fol_model.inference import Encoder
from fol_model.training.door import fitted_weights, trained_card
from fol_model.training.learner import AllReduce, Batch, Learner, StepReport, TrainingDiverged
from fol_model.training.places import PlaceSampler, share_of
from fol_model.weights import State
from infra.observability import ProgressBar, progress_bar
from infra.settings import Settings
from pipelines.train.data import TrainingSet
from pipelines.train.loading import PhotoLoader, ViewConfig
from pipelines.train.report import QUIET_STEPS, QUIET_WARNING, write_training_report
from pipelines.train.request import Recall, TrainRequest
from pipelines.train.run_folder import Plan, Progress, RecallLine, RunFolder, StepLine
from pipelines.train.validation import validate
from schemas.errors import ModelError

LOG: Final = logging.getLogger("folio.train")

FITTED_PHOTOS: Final = 700
"""The heads of a recipe that starts from a descriptor made by hand are fitted to so many photos."""

LOG_EVERY_S: Final = 60.0
"""A line in the log about so often, for those who watch no progress bar."""


class Team(Protocol):
    """The workers of a run."""

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def all_reduce(self) -> AllReduce | None:
        """Averages gradients; None for one worker."""

    def first_says(self, value: bool) -> bool:
        """Give every worker what the first one says. All call it at the same points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alone:
    """A team of one."""

    rank: int = 0
    size: int = 1
    all_reduce: AllReduce | None = None

    def first_says(self, value: bool) -> bool:
        """See `Team`."""
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What every worker of a run works from; small enough to send anywhere, but for the list of photos."""

    request: TrainRequest
    recipe: Recipe
    data: TrainingSet
    plan: Plan


def plan_of(request: TrainRequest, recipe: Recipe, data: TrainingSet) -> Plan:
    """Everything that decides the outcome, as plain JSON. A run is resumed only under the same."""
    start = None if request.start is None else _sha256(Path(request.start))
    return {
        "recipe": asdict(recipe),
        "start": start,
        "training": asdict(request.training),
        "augment": request.augment,
        "workers": request.workers or 1,
        "validation": asdict(request.hold_out),
        "cells": asdict(request.cells),
        "data": data.facts(),
    }


def train(run: Run, team: Team, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
    """Train until all epochs are done or nothing gets better, from where the run's folder says it was.

    Raises:
        ModelError: weights, settings or a batch do not fit, a loss turned NaN, or memory ran out; the checkpoints stay.
        StorageError: a store does not answer.
    """
    folder = RunFolder(run.request.out, settings)
    progress = folder.progress()
    try:
        with PhotoLoader(run.data.photos, settings, run.request.limits) as loader:
            learner = _started(run, team, loader) if progress is None else _restored(run, team, folder, progress)
            _Loop(run, team, settings, clock, folder, learner, loader, progress).go()
    except TrainingDiverged as error:
        folder.write_json("diverged.json", {"step": error.step, "term": error.term, "photos": list(error.photos)})
        raise ModelError(f"{folder.path}: {error}. All photos of the batch stand in diverged.json.") from error
    except ValueError as error:
        raise ModelError(f"{folder.path}: {error}. The last checkpoint is whole.") from error


class _Loop:
    """One worker's part of a run."""

    def __init__(
        self,
        run: Run,
        team: Team,
        settings: Settings,
        clock: Callable[[], float],
        folder: RunFolder,
        learner: Learner,
        loader: PhotoLoader,
        progress: Progress | None,
    ) -> None:
        self._run, self._team, self._settings, self._clock = run, team, settings, clock
        self._folder, self._learner, self._loader = folder, learner, loader
        self._request = run.request
        self._views = ViewConfig.of(run.recipe, run.request.training, run.request.augment)
        self._progress = progress or Progress(checkpoint="", epoch=0, batch=0, steps=0, log_bytes=0)
        self._lines: list[msgspec.Struct] = []
        self._saved_at = clock()
        self._said_at = clock()
        self._quiet = 0

    def go(self) -> None:
        """Do what is left to do."""
        if self._team.rank == 0:
            self._folder.truncate_log(self._progress.log_bytes)
        while self._progress.epoch < self._request.epochs and not self._progress.stopped:
            epoch = self._progress.epoch
            self._epoch(epoch)
            if self._team.rank == 0:
                self._finish_epoch(epoch + 1)
            stopped = self._team.first_says(self._progress.stopped)
            self._progress = msgspec.structs.replace(self._progress, epoch=epoch + 1, batch=0, stopped=stopped)

    def _epoch(self, epoch: int) -> None:
        """Do the batches of an epoch that are left."""
        places = self._run.data.places_at(epoch)
        sampler = PlaceSampler(places, self._request.training)
        done = self._progress.batch
        plan = [share_of(batch, self._team.rank, self._team.size) for batch in sampler.epoch(epoch)]
        batches = self._loader.batches(epoch, plan[done:], places, self._views)
        description = f"epoch {epoch + 1} of {self._request.epochs}"
        with closing(batches), progress_bar(len(plan), unit="step", description=description) as bar:
            bar.update(done)
            started = self._clock()
            for number, (batch, waited) in enumerate(_timed(batches, self._clock), start=done + 1):
                report = self._learner.step(batch)
                now = self._clock()
                self._note(report, batch, epoch, seconds=now - started, waited=waited, bar=bar)
                started = now
                self._progress = msgspec.structs.replace(self._progress, batch=number, steps=report.step)
                if now - self._saved_at >= 60 * self._request.checkpoint_minutes:
                    self._save()
                    started = self._clock()

    def _note(self, report: StepReport, batch: Batch, epoch: int, *, seconds: float, waited: float, bar: ProgressBar) -> None:
        """Show and keep what a step did."""
        images = len(batch.places) * self._team.size
        self._lines.append(
            StepLine(
                step=report.step,
                epoch=epoch,
                total=report.total,
                losses=report.losses,
                pseudo_correspondences=report.pseudo_correspondences,
                mined_pairs=report.mined_pairs,
                learning_rate=report.learning_rate,
                grad_norm=report.grad_norm,
                images=images,
                seconds=seconds,
                waited=waited,
            )
        )
        terms = " ".join(f"{name.rstrip('_')} {value:.3g}" for name, value in report.losses.items())
        speed = images / max(seconds, 1e-9)
        said = f"loss {report.total:.3f} ({terms}), {report.pseudo_correspondences} pairs, {speed:.1f} images/s"
        bar.say(said)
        bar.update()
        self._quiet = 0 if report.pseudo_correspondences else self._quiet + 1
        if self._quiet == QUIET_STEPS and self._team.rank == 0:
            LOG.warning("step %d: %s", report.step, QUIET_WARNING)
        if self._clock() - self._said_at >= LOG_EVERY_S:
            self._said_at = self._clock()
            LOG.info("step %d: %s", report.step, said)

    def _finish_epoch(self, epoch: int) -> None:
        """After so many epochs: measure, keep the weights if they are the best, save, and say how it goes."""
        weights = self._learner.weights()
        best, stale = self._progress.best, 0
        if self._run.data.validation is None:
            self._write_weights(weights, epoch, None)
        else:
            encoder = Encoder(self._run.recipe, weights, device=self._request.device)
            recall = validate(self._run.data.validation, encoder, self._loader, epoch=epoch)
            self._lines.append(RecallLine(step=self._progress.steps, **msgspec.structs.asdict(recall)))
            LOG.info("after epoch %d: recall@1/5/10 %s re-ranked, %s by descriptor", epoch, recall.reranked, recall.global_)
            if best is None or recall.goodness > best.goodness:
                best = recall
                self._write_weights(weights, epoch, recall)
            else:
                stale = self._progress.stale + 1
        stopped = stale >= self._request.patience
        self._progress = msgspec.structs.replace(self._progress, epoch=epoch, batch=0, best=best, stale=stale, stopped=stopped)
        self._save()
        data = self._run.data
        write_training_report(self._folder, self._run.plan, data.photos, data.layouts[0], self._settings, notes=data.notes)

    def _save(self) -> None:
        """Write a checkpoint, and make it the one to go on from."""
        self._saved_at = self._clock()
        self._folder.write_rejects(self._rejects(), rank=self._team.rank)
        if self._team.rank:
            self._lines.clear()
            return
        path = self._folder.checkpoint_path(self._learner.steps_done)
        self._learner.save(path)
        log_bytes = self._folder.log(self._lines)
        self._lines.clear()
        self._progress = msgspec.structs.replace(self._progress, checkpoint=path.name, log_bytes=log_bytes)
        self._folder.commit(self._progress)

    def _rejects(self) -> list[dict[str, object]]:
        """Photos that could not be listed, and those that could not be read until now."""
        read: list[dict[str, object]] = [
            {
                "uri": self._run.data.photos[row].uri,
                "root": self._run.data.photos[row].root,
                "photo_key": None,
                "stage": "train",
                "reason": error.reason.value,
                "detail": error.detail,
            }
            for row, error in sorted(self._loader.rejects.items())
        ]
        return [*self._run.data.rejects, *read]

    def _write_weights(self, weights: dict[str, np.ndarray], epoch: int, recall: Recall | None) -> None:
        """Write weights.safetensors with its card. Nothing in it depends on when or how fast it was made."""
        sources = self._request.sources
        given = [*sources.photos, *([sources.gsv_cities] if sources.gsv_cities else [])]
        names = [Path(name.rstrip("/")).name for name in given] + (["sample city"] if sources.sample_city else [])
        card = trained_card(self._run.recipe, weights, source=f"folio train on {', '.join(names)}")
        training = {
            "epoch": epoch,
            "steps": self._progress.steps,
            "sources": names,
            "licences": list(sources.licences),
            "validation": None if recall is None else msgspec.to_builtins(recall),
            "plan": self._run.plan,
        }
        self._folder.write_weights(weights, card.metadata() | {"training": json.dumps(training, sort_keys=True)})
        self._folder.write_json("card.json", card.metadata() | {"training": training})


def _restored(run: Run, team: Team, folder: RunFolder, progress: Progress) -> Learner:
    """The network where it was.

    Raises:
        ModelError: its checkpoint is damaged or gone.
    """
    path = folder.path / "checkpoints" / progress.checkpoint
    device, config = run.request.device, run.request.training
    try:
        return Learner.restore(path, run.recipe, config, device=device, all_reduce=team.all_reduce, rank=team.rank)
    except ValueError as error:
        raise ModelError(f"{error}. Nothing was changed. Put a copy back, or start anew in another folder with --out.") from error


def _started(run: Run, team: Team, loader: PhotoLoader) -> Learner:
    """The network at its start: given weights, else heads fitted to the photos where the recipe has such, else seeded weights.

    Raises:
        ModelError: the weights do not fit.
    """
    config = run.request.training
    start: State | None = None
    try:
        if run.request.start is not None:
            start = start_weights(Path(run.request.start), run.recipe, seed=config.seed)
        elif run.recipe.aggregation == "vlad":
            start = fitted_weights(run.recipe, _sample(run, loader), seed=config.seed)
        return Learner(run.recipe, start, config, device=run.request.device, all_reduce=team.all_reduce, rank=team.rank)
    except ValueError as error:
        raise ModelError(f"{error}. Nothing was trained. Check --start, --recipe and the settings.") from error


def _sample(run: Run, loader: PhotoLoader) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Photos to fit the heads to: evenly from all that are trained on."""
    rows = sorted({row for layout in run.data.layouts for place in layout for row in place})
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(FITTED_PHOTOS, len(rows))).round().astype(int)).tolist()
    for pixels in loader.pixels([rows[at] for at in chosen], min_side=run.recipe.input_size):
        if pixels is not None:
            yield pixels


def _timed(batches: Iterator[Batch], clock: Callable[[], float]) -> Iterator[tuple[Batch, float]]:
    """Say of each batch how long it was waited for."""
    while True:
        asked = clock()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, clock() - asked


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
