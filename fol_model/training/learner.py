"""One training run: a batch comes in, the weights get a little better, and a file keeps everything that the next step needs.

Used by `pipelines/train`, which brings batches and decides when to validate, save and stop. Sources: FoL (arXiv:2504.09881), and
section 7 of the specification for its constants.

What a step depends on is the weights, their running mean, AdamW's moments and the number of steps done. Nothing else: dropout
draws from a stream made of the seed, the step and the micro-batch's place in the batch, so there is no state of a generator to
keep, and it does not matter which worker has which micro-batch. On the CPU with one thread a resumed run therefore equals one
that was never stopped, bit for bit; CUDA adds up some gradients in varying order, so there the last bits differ, stopped or not.

Letters: B photos, S their side, g patches along a side.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from fol_model.config import Recipe
from fol_model.inference import device_named
from fol_model.network import FoL
from fol_model.training.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from fol_model.training.config import TrainingConfig
from fol_model.training.losses.total import total_loss
from fol_model.weights import State, build, network_names, seeded_weights

AllReduce = Callable[[Sequence[Tensor]], None]
"""Replaces tensors, in place, by their mean over all workers; `distributed.average` is one."""

_UNUSED: Final = "mask_token"
"""A tensor of DINOv2's own training that FoL's network never reads, so it has no gradient."""

_NAMED_PHOTOS: Final = 8
"""Most photos that a message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Photos to learn from: a worker's share of a step."""

    images: Float32[Tensor, "B 3 S S"]
    """As `preprocessing.normalised` makes them."""

    places: Int64[Tensor, " B"]
    """Whose photo each is. The photos of a place stand next to each other."""

    known_reliability: Float32[Tensor, "B g g"] | None = None
    """1 for patches that another view shows, 0 for those that something pasted hides, NaN where unknown. None: all unknown."""

    photos: Sequence[str] = ()
    """What to call each photo in a message, if anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did, on this worker's share of the batch: means and sums over its micro-batches."""

    step: int
    """Steps done, this one included."""

    total: float
    """The loss that the step made smaller."""

    losses: dict[str, float]
    """Its terms, before they are weighted, by the names in `LossWeights`."""

    pseudo_correspondences: int
    """Pairs of patches that the pseudo-correspondences' loss learnt from."""

    mined_pairs: int
    """Pairs of photos that the global loss learnt from."""

    triplets: int
    """Triplets of photos that the local loss learnt from."""

    grad_norm: float
    """Length of the gradient of all workers, before it was shortened."""

    learning_rate: float
    """Of this step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lesson:
    """What a micro-batch taught, as plain numbers; a `StepReport` explains them."""

    total: float
    terms: dict[str, float]
    pseudo_correspondences: int
    mined_pairs: int
    triplets: int


class TrainingDiverged(ValueError):  # noqa: N818  it says what happened
    """A loss or a gradient turned NaN or infinite. The weights are those before the step."""

    def __init__(self, step: int, term: str, photos: Sequence[str]) -> None:
        named = ", ".join(photos[:_NAMED_PHOTOS])
        more = f" and {len(photos) - _NAMED_PHOTOS} more" if len(photos) > _NAMED_PHOTOS else ""
        of = f" on photos {named}{more}" if photos else ""
        super().__init__(
            f"step {step}: {term} is NaN or infinite{of}. The weights were not changed by this step, and earlier checkpoints are "
            "whole. Look at these photos; or lower learning_rate, set max_grad_norm (1 is usual), or train in float32"
        )
        self.step: Final = step
        self.term: Final = term
        self.photos: Final = tuple(photos)


class TrainingOutOfMemory(ValueError):  # noqa: N818  it says what happened
    """A step needed more memory than there is. The weights are those before the step."""


class Learner:
    """A network that learns, step by step.

    Args:
        recipe: the network's settings.
        state: the weights to start from, by the reference's names. None: drawn from the recipe's seed.
        config: of the training.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        all_reduce: averages gradients over all workers. None: there is one worker.
        rank: which of the workers this is, from 0.

    Raises:
        ValueError: the weights, the input size or the losses do not suit the recipe, or there is no such device.
    """

    def __init__(
        self,
        recipe: Recipe,
        state: State | None,
        config: TrainingConfig,
        *,
        device: str = "auto",
        all_reduce: AllReduce | None = None,
        rank: int = 0,
    ) -> None:
        self.recipe: Final = recipe
        self.config: Final = config
        self.size_px: Final = config.size_for(recipe)
        """Side of the photos that `step` takes."""
        if config.losses.reliability and recipe.mode == "fol":
            raise ValueError(
                f"losses.reliability={config.losses.reliability} needs a branch that learns reliability, but recipe "
                f"{recipe.name} is of mode fol. Set it to 0, or train a recipe of mode folpp"
            )
        self.steps_done = 0
        self._device: Final = device_named(device)
        self._all_reduce: Final = all_reduce
        self._rank: Final = rank
        network = build(recipe, seeded_weights(recipe) if state is None else state)
        _choose_what_learns(network, config)
        self._network: Final = network.to(self._device).train()
        self._state: Final = network_names(network.state_dict())
        learned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._learned: Final = network_names(learned)
        kept = self._learned.items() if config.ema_decay else ()
        self._mean: Final = {name: parameter.detach().clone() for name, parameter in kept}
        self._optimizer: Final = torch.optim.AdamW(
            self._learned.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self._device.type == "cuda",  # needs no memory of its own, so it cannot fail half way through the weights
        )
        self._set_moments({name: torch.zeros_like(weight) for name, weight in self._moments_of(self._learned)}, steps_done=0)

    @classmethod
    def restore(
        cls,
        path: Path,
        recipe: Recipe,
        config: TrainingConfig,
        *,
        device: str = "auto",
        all_reduce: AllReduce | None = None,
        rank: int = 0,
    ) -> "Learner":
        """Go on from a file that `save` wrote; otherwise as the class.

        Raises:
            ValueError: the file is truncated, damaged, foreign, or of another recipe or other settings; the message names it.
        """
        checkpoint = read_checkpoint(path, recipe, config)
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "mean": {}, "adamw": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        learner = cls(recipe, parts["weights"], config, device=device, all_reduce=all_reduce, rank=rank)
        for name, tensor in learner._mean.items():
            tensor.copy_(parts["mean"][name])
        learner._set_moments(parts["adamw"], steps_done=checkpoint.steps_done)
        learner.steps_done = checkpoint.steps_done
        return learner

    def save(self, path: Path) -> None:
        """Write everything that a bit-exact resume needs, whole or not at all. One worker's file is every worker's."""
        tensors = {f"weights/{name}": tensor for name, tensor in self._state.items()}
        tensors |= {f"mean/{name}": tensor for name, tensor in self._mean.items()}
        for name, parameter in self._learned.items():
            moments = self._optimizer.state[parameter]
            tensors |= {f"adamw/{name}/{moment}": moments[moment] for moment in _MOMENTS}
        write_checkpoint(path, Checkpoint(steps_done=self.steps_done, tensors=tensors), self.recipe, self.config)

    def weights(self, *, ema: bool = True) -> dict[str, Float32[np.ndarray, "..."]]:
        """Copy the weights, under the reference's names.

        Args:
            ema: their running mean, which is usually better; of what does not learn, and where no mean is kept, the weights.
        """
        tensors = self._state | (self._mean if ema else {})
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}

    def step(self, batch: Batch) -> StepReport:
        """Learn from a batch.

        Raises:
            TrainingDiverged: a loss or a gradient is NaN or infinite; the weights are as before.
            TrainingOutOfMemory: likewise, and the message names the setting to lower.
            ValueError: the batch does not fit the settings.
        """
        parts = self._micro_batches(batch)
        self._optimizer.zero_grad(set_to_none=True)
        failure: ValueError | None = None
        lessons: list[_Lesson] = []
        shares = [len(part.places) / len(batch.places) for part in parts]
        try:
            for index, (part, share) in enumerate(zip(parts, shares, strict=True)):
                lessons.append(self._learn_from(part, index, share))
        except TrainingDiverged as error:
            failure = error
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            failure = TrainingOutOfMemory(self._out_of_memory(batch))  # not raised here: `error` holds on to the memory
        self._stop_together(failure)
        gradients = self._averaged_gradients()
        norm = self._gradient_norm(gradients, batch)
        rate = self._update(gradients, norm)
        return StepReport(
            step=self.steps_done,
            total=_mean([one.total for one in lessons], shares),
            losses={name: _mean([one.terms[name] for one in lessons], shares) for name in lessons[0].terms},
            pseudo_correspondences=sum(one.pseudo_correspondences for one in lessons),
            mined_pairs=sum(one.mined_pairs for one in lessons),
            triplets=sum(one.triplets for one in lessons),
            grad_norm=norm,
            learning_rate=rate,
        )

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """Cut a batch between places into `accumulate` parts of as equal size as can be."""
        side = batch.images.shape[-1]
        if side != self.size_px:
            raise ValueError(f"the photos of a batch must be {self.size_px} pixels wide and high (input_size), got {side}")
        known = batch.known_reliability
        g = self.recipe.grid_side_at(side)
        if known is not None and known.shape != (len(batch.images), g, g):
            raise ValueError(f"known_reliability must be ({len(batch.images)}, {g}, {g}), got {tuple(known.shape)}")
        if not len(batch.images) == len(batch.places) == len(batch.photos or batch.places):
            raise ValueError(
                f"a batch needs a place for each photo, and a name for each if any, got {len(batch.images)} photos, "
                f"{len(batch.places)} places and {len(batch.photos)} names"
            )
        places, counts = torch.unique_consecutive(batch.places, return_counts=True)
        if len(places) != len(places.unique()):
            raise ValueError("the photos of a place must stand next to each other in a batch")
        parts = self.config.accumulate
        if len(places) < 2 * parts:
            raise ValueError(
                f"a batch must have at least 2 places for each of accumulate={parts} micro-batches, or no photo has a negative; "
                f"got {len(places)}"
            )
        ends = counts.cumsum(0)
        cuts = [0, *(int(ends[round(len(places) * part / parts) - 1]) for part in range(1, parts + 1))]
        return [_photos_from(batch, start, end) for start, end in pairwise(cuts)]

    def _learn_from(self, part: Batch, index: int, share: float) -> _Lesson:
        """Add a micro-batch's share to the gradients, unless a loss is not finite."""
        half = self.config.precision == "bfloat16"
        known = None if part.known_reliability is None else part.known_reliability.to(self._device)
        with self._dropout_stream(index), torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            sight = self._network(part.images.to(self._device, non_blocking=True))
        losses = total_loss(
            sight,
            part.places.to(self._device),
            self.config.losses,
            known,
            mode=self.recipe.mode,
            self_supervised=self.config.self_supervised,
        )
        terms = losses.terms()
        *values, total = torch.stack([*terms.values(), losses.total]).tolist()  # waits for a GPU once, not for each term
        for name, value in zip([*terms, "total"], [*values, total], strict=True):
            if not isfinite(value):
                raise TrainingDiverged(self.steps_done + 1, f"loss {name}", part.photos)
        (losses.total * share).backward()  # type: ignore[no-untyped-call]
        return _Lesson(
            total=total,
            terms=dict(zip(terms, values, strict=True)),
            pseudo_correspondences=losses.pseudo_correspondences,
            mined_pairs=losses.mined_pairs,
            triplets=losses.triplets,
        )

    @contextmanager
    def _dropout_stream(self, index: int) -> Iterator[None]:
        """Draw from a stream of the micro-batch's own, and leave the caller's generators as they were."""
        number = self._rank * self.config.accumulate + index
        seed = np.random.SeedSequence([self.config.seed, self.steps_done, number]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            yield

    def _stop_together(self, failure: ValueError | None) -> None:
        """Stop on all workers when one fails: the others would wait for its gradients for ever, or learn without them.

        Raises:
            ValueError: the failure, or that another worker has one.
        """
        failed = torch.tensor([float(failure is not None)], device=self._device)
        if self._all_reduce is not None:
            self._all_reduce([failed])
        if failure is not None:
            self._optimizer.zero_grad(set_to_none=True)
            raise failure
        if failed.item():
            raise ValueError(f"step {self.steps_done + 1}: another worker stopped, see its message. The weights were not changed")

    def _averaged_gradients(self) -> list[Tensor]:
        """Collect the gradients of all that learns; what a batch did not reach has zeros, on every worker alike."""
        for parameter in self._learned.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, parameter.grad) for parameter in self._learned.values()]
        if self._all_reduce is not None:
            self._all_reduce(gradients)
        return gradients

    def _gradient_norm(self, gradients: Sequence[Tensor], batch: Batch) -> float:
        """Measure the gradient. It is the same on all workers, so if it is not finite, all stop."""
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        norm = float(torch.linalg.vector_norm(norms))
        if isfinite(norm):
            return norm
        finite = norms.isfinite().tolist()
        name = next((name for name, good in zip(self._learned, finite, strict=True) if not good), "all weights together")
        self._optimizer.zero_grad(set_to_none=True)
        raise TrainingDiverged(self.steps_done + 1, f"the gradient of {name}", batch.photos)

    def _update(self, gradients: Sequence[Tensor], norm: float) -> float:
        """Change the weights and their running mean; give the learning rate it was done at."""
        longest = self.config.max_grad_norm
        if longest is not None and norm > longest:
            for gradient in gradients:
                gradient.mul_(longest / norm)
        rate = self.config.rate_at(self.steps_done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self.steps_done += 1
        # The weights of the first steps are soon worthless, so the mean forgets them faster than later ones.
        decay = min(self.config.ema_decay, self.steps_done / (self.steps_done + 9))
        for name, mean in self._mean.items():
            mean.lerp_(self._learned[name].detach(), 1 - decay)
        return rate

    def _moments_of(self, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Name the moments of each weight, with that weight."""
        for name, weight in weights.items():
            for moment in _MOMENTS:
                yield f"{name}/{moment}", weight.detach()

    def _set_moments(self, moments: Mapping[str, Tensor], *, steps_done: int) -> None:
        """Fill in what AdamW keeps, before its first step too, so that all memory is taken before weights change."""
        counter_device = self._device if self._device.type == "cuda" else "cpu"
        for name, parameter in self._learned.items():
            own = {moment: moments[f"{name}/{moment}"].to(self._device) for moment in _MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(steps_done), device=counter_device), **own}

    def _out_of_memory(self, batch: Batch) -> str:
        config = self.config
        return (
            f"step {self.steps_done + 1}: no memory on {self._device} for {len(batch.images)} photos of {self.size_px} pixels "
            f"in accumulate={config.accumulate} micro-batches. The weights were not changed. Raise accumulate, which keeps the "
            f"batch; or lower places_per_batch={config.places_per_batch}, photos_per_place={config.photos_per_place} or "
            f"input_size; or learn fewer blocks (learned_blocks={config.learned_blocks})"
        )


_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, by PyTorch's names."""


def _choose_what_learns(network: FoL, config: TrainingConfig) -> None:
    """Ask for gradients of the heads, the last norm and the last blocks; of the whole backbone if no block is left out; of the
    reliability branch alone if no other loss counts.

    Nothing before the first learned block asks for a gradient, so PyTorch keeps nothing of the blocks before it.
    """
    if config.losses.of_reliability_alone and network.reb is not None:
        network.requires_grad_(False)
        network.reb.requires_grad_(True)
        return
    learned_blocks = config.learned_blocks
    blocks = network.backbone.blocks
    network.requires_grad_(True)
    if learned_blocks is not None and learned_blocks < len(blocks):
        network.backbone.requires_grad_(False)
        network.backbone.norm.requires_grad_(True)
        for block in blocks[len(blocks) - learned_blocks :]:
            block.requires_grad_(True)
    for name, parameter in network.named_parameters():
        if name.rpartition(".")[2] == _UNUSED:
            parameter.requires_grad_(False)


def _photos_from(batch: Batch, start: int, end: int) -> Batch:
    known = batch.known_reliability
    return Batch(
        images=batch.images[start:end],
        places=batch.places[start:end],
        known_reliability=None if known is None else known[start:end],
        photos=batch.photos[start:end],
    )


def _mean(values: Sequence[float], shares: Sequence[float]) -> float:
    return sum(value * share for value, share in zip(values, shares, strict=True))


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """PyTorch has an error of its own for GPUs; on the CPU only the text tells."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return "not enough memory" in str(error) or "can't allocate memory" in str(error)
