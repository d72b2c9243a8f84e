"""Settings of training: frozen, and every field says what it costs.

`learner`, `places` and `augment` take them; their plain values go into every checkpoint, and a run resumes only under the same.
Defaults are those of section 7 of the method's specification (FoL, arXiv:2504.09881, and its released code).
"""

from dataclasses import dataclass, field
from typing import Literal

from fol_model.config import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """What each term weighs in the total. A term of weight 0 is reported and teaches nothing."""

    global_: float = 1.0
    """Multi-similarity of the global descriptors."""

    local: float = 1.0
    """Mutual-nearest-neighbour similarity of the local features."""

    separation: float = 1.0
    """SCEL (CEL in FoL): what is salient in a photo is nearer to what is salient in its positive than to its own rest."""

    alignment: float = 0.1
    """alpha, of SAL: the clusters' mass and the reliability agree on where to look. With the released code's 5e-3 it is 0.1 % of
    the global loss; this makes it about 2 %."""

    correspondence: float = 1e-2
    """beta, of the pseudo-correspondences' loss."""

    reliability: float = 0.0
    """Of the reliability where it is known, from pasted occluders. Needs mode `folpp` and augmented views."""

    @classmethod
    def only_reliability(cls) -> "LossWeights":
        """Teach the branch what is pasted over, and leave everything else as it is."""
        return cls(global_=0, local=0, separation=0, alignment=0, correspondence=0, reliability=1)

    @property
    def of_reliability_alone(self) -> bool:
        """Nothing but the branch learns, so nothing else need ask for gradients."""
        return not (self.global_ or self.local or self.separation or self.alignment or self.correspondence)

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ValueError(f"the weight of a loss must not be negative, got {name}={getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How far a view may be from its photo. Probabilities are per view, from 0 to 1."""

    crop_min: float = 0.6
    """Smallest share of a photo's width and of its height in a view. Less: harder, and two views may share little."""

    rotation_deg: float = 5.0
    """Largest roll of the camera, either way."""

    perspective: float = 0.12
    """Furthest a corner of the crop is moved, as a share of its side: another standpoint, as far as a plane shows one."""

    colour: float = 0.4
    """Strength of brightness, contrast, gamma, saturation and colour cast, from 0 for none to 1."""

    night: float = 0.25
    """Probability of a night: low light, dark sky, lamps that glow, noise."""

    weather: float = 0.15
    """Probability of fog or rain."""

    blur: float = 0.2
    """Probability of blur, out of focus or from motion."""

    noise: float = 0.2
    """Probability of sensor noise by day. A night always has it."""

    jpeg: float = 0.3
    """Probability of JPEG artefacts."""

    occluder: float = 0.5
    """Probability that something is pasted in: a part of another photo, a plain shape, something like a car or a person."""

    max_occluders: int = 3
    """Most pasted things in one view."""

    def __post_init__(self) -> None:
        for name in ("colour", "night", "weather", "blur", "noise", "jpeg", "occluder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.crop_min <= 1:
            raise ValueError(f"crop_min must be above 0 and at most 1, got {self.crop_min}")
        if not 0 <= self.perspective < 0.25:
            raise ValueError(f"perspective must be from 0 to below 0.25, where the crop folds over, got {self.perspective}")
        if not 0 <= self.rotation_deg <= 45:
            raise ValueError(f"rotation_deg must be from 0 to 45, got {self.rotation_deg}")
        if self.max_occluders < 1:
            raise ValueError(f"max_occluders must be at least 1, got {self.max_occluders}; for none set occluder to 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """One training run. The defaults fine-tune published DINOv2 or FoL weights on GSV-Cities."""

    places_per_batch: int = 60
    """P: places in one step, of all workers together. Memory grows in proportion; negatives come from the other places."""

    photos_per_place: int = 4
    """K: photos of each place in a step. Memory grows in proportion."""

    few_photos: Literal["augment", "leave_out"] = "augment"
    """What becomes of a place with fewer than K photos: they are repeated, each time in another view; or it is left out."""

    input_size: int | None = None
    """Side in pixels of training photos. None: the recipe's. FoL trains at 322 and tests at 504."""

    learned_blocks: int | None = 4
    """Learn the last so many blocks of the backbone. None, or as many as there are: all of it, patch embedding included. Fewer:
    less memory and time, as frozen blocks run without gradient. The last norm and the heads always learn."""

    learning_rate: float = 6e-5
    """Of AdamW, at the first step."""

    weight_decay: float = 9.5e-9
    """Of AdamW."""

    linear_steps: int = 10_000
    """Steps over which the learning rate falls; after them it stays."""

    final_factor: float = 0.1
    """What it falls to, as a share of `learning_rate`."""

    max_grad_norm: float | None = None
    """Shorten gradients longer than this. FoL does not; training from scratch wants about 1."""

    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the network's activations. bfloat16: half the memory, several times faster on a GPU; weights and losses stay float32."""

    accumulate: int = 1
    """Micro-batches of whole places in a worker's step. More: less memory, same work; but pairs are mined within each alone."""

    ema_decay: float = 0.999
    """Of the running mean of the weights, reached after the first steps. Costs one copy of what learns. 0: no mean is kept."""

    losses: LossWeights = field(default_factory=LossWeights)
    """What each term of the loss weighs."""

    self_supervised: bool = False
    """Where the reliability of a patch is unknown, teach the network's own guess: is it matched in the positive, and better than
    in the hardest negative? Needs a weight for the loss of the reliability."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How views are made from photos."""

    seed: int = 0
    """Of the order of places, of dropout and of augmentation. Same seed, same run."""

    def __post_init__(self) -> None:
        if self.photos_per_place < 2:
            raise ValueError(f"photos_per_place must be at least 2, or no photo has a positive; got {self.photos_per_place}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if self.places_per_batch < 2 * self.accumulate:
            raise ValueError(
                f"places_per_batch must be at least 2 for each of accumulate={self.accumulate} micro-batches, or no photo has a "
                f"negative; got {self.places_per_batch}"
            )
        if self.learned_blocks is not None and self.learned_blocks < 0:
            raise ValueError(f"learned_blocks must not be negative, got {self.learned_blocks}; None learns all")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate must be above 0 and weight_decay not below, got {self.learning_rate} and {self.weight_decay}"
            )
        if self.linear_steps < 1 or not 0 <= self.final_factor <= 1:
            raise ValueError(
                f"linear_steps must be at least 1 and final_factor from 0 to 1, got {self.linear_steps} and {self.final_factor}"
            )
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be above 0, got {self.max_grad_norm}; None leaves gradients as they are")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to below 1, got {self.ema_decay}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    def size_for(self, recipe: Recipe) -> int:
        """Side in pixels of the photos that a network learns from.

        Raises:
            ValueError: it does not suit the recipe: no multiple of the patch, or too few patches for the clusters or the mask.
        """
        size_px = recipe.input_size if self.input_size is None else self.input_size
        try:
            recipe.grid_side_at(size_px)
        except ValueError as error:
            raise ValueError(f"input_size of training does not suit recipe {recipe.name}: {error}") from error
        return size_px

    def rate_at(self, step: int) -> float:
        """Learning rate of the step after `step` finished ones."""
        done = min(step / self.linear_steps, 1.0)
        return self.learning_rate * (1 + done * (self.final_factor - 1))
