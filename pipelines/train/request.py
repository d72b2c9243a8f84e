"""What a user asks of a training, what decides its outcome, and what it says in the end."""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from fol_model.training.config import TrainingConfig
from pipelines.catalog.limits import PhotoLimits
from pipelines.train.hold_out import HoldOutConfig
from pipelines.train.layouts import CellConfig
from pipelines.train.loading import Augment


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where the photos are."""

    photos: tuple[str, ...] = ()
    """Folders, URLs, tables and single photos, as `pipelines.catalog` takes them."""

    gsv_cities: str | None = None
    """The folder of GSV-Cities."""

    sample_city: int | None = None
    """Make the photos of a made-up town with so many places first, 28 photos each. 0.08 s a photo."""

    folders_are_drives: bool = False
    """Photos of one folder without a position are frames of a drive, in the order of their names."""

    licences: tuple[str, ...] = ()
    """What the user says of the photos' licences; stands in the card of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What a user asks for."""

    out: str
    """Folder of the run, on this machine or one that all workers see."""

    sources: Sources
    recipe: str
    start: str | None = None
    """Weights to start from, as safetensors, of a whole network or a backbone. None: the recipe's own."""

    epochs: int = 5
    """Rounds over all places."""

    patience: int = 10
    """Stop after so many epochs without a better validation."""

    checkpoint_minutes: float = 10.0
    """Save this often, and after each epoch. What was done since is lost when the run is killed."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    fewer_places: bool = True
    """Take fewer places a batch than `training` says where there are fewer."""

    augment: Augment = "all"
    """`all`: each photo is another view each time. `few`: only photos of places that have fewer than K."""

    cells: CellConfig = field(default_factory=CellConfig)
    hold_out: HoldOutConfig = field(default_factory=HoldOutConfig)
    limits: PhotoLimits = field(default_factory=PhotoLimits)

    workers: int | None = None
    """Train on so many workers of a Ray cluster, each with its share of every batch. None: in this process."""

    device: str = "auto"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.patience < 1:
            raise ValueError(f"epochs and patience must be at least 1, got {self.epochs} and {self.patience}")
        if self.checkpoint_minutes < 0:
            raise ValueError(f"checkpoint_minutes must not be negative, got {self.checkpoint_minutes}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.training.places_per_batch < self.fewest_places or self.training.places_per_batch % (self.workers or 1):
            raise ValueError(
                f"places must be a multiple of the {self.workers or 1} workers and at least {self.fewest_places}, 2 for each of "
                f"their micro-batches, got {self.training.places_per_batch}"
            )

    @property
    def fewest_places(self) -> int:
        """Places that a batch must have, so that each micro-batch has two."""
        return 2 * (self.workers or 1) * self.training.accumulate


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """A validation."""

    epoch: int
    """After so many epochs."""
    queries: int
    photos: int
    """That were searched."""
    global_: list[float] = msgspec.field(name="global")
    """recall@1, @5 and @10 by descriptor alone."""
    reranked: list[float]
    """Likewise after re-ranking."""

    @property
    def goodness(self) -> tuple[float, ...]:
        """What one validation is better by than another: recall@1 in the end, then @5, @10, then by descriptor alone."""
        return (*self.reranked, *self.global_)


class TrainSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a training did. `folio train --json` prints it."""

    out: str
    recipe: str
    weights: str
    """The file."""
    epochs: int
    """Done."""
    stopped: Literal["epochs", "patience"]
    """All epochs that were asked for, or early: nothing got better any more."""
    steps: int
    photos: int
    places: int
    """In the first epoch."""
    rejected: dict[str, int]
    best: Recall | None
    """Of the weights that were kept; None: nothing was held out."""
    pseudo_correspondences: float
    """In a step, on average over the run."""
    images_per_second: float
    report: str
    notes: list[str]

    def lines(self) -> list[str]:
        """Say it to a person."""
        lines = [
            *(f"note: {note}" for note in self.notes),
            f"{self.steps:,} steps in {self.epochs:,} epochs over {self.places:,} places of {self.photos:,} photos, "
            f"{self.images_per_second:,.1f} images/s, {self.pseudo_correspondences:,.1f} pseudo-correspondences a step",
        ]
        if self.rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(f"{sum(self.rejected.values()):,} rejected ({reasons}), see {self.out}/rejects.parquet")
        if self.stopped == "patience":
            lines.append("stopped early: the validation got no better any more")
        if self.best is not None:
            by_descriptor, reranked = (
                "/".join(f"{value:.3f}" for value in values) for values in (self.best.global_, self.best.reranked)
            )
            lines.append(
                f"best after epoch {self.best.epoch}: recall@1/5/10 {reranked} re-ranked, {by_descriptor} by descriptor alone "
                f"({self.best.queries:,} held-out queries)"
            )
        lines.append(f"weights: {self.weights}    use them: folio build MAP PHOTOS... --recipe {self.recipe} --weights FILE")
        lines.append(f"report: {self.report}")
        return lines
