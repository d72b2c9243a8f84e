"""The door of training for pipelines: NumPy in, a learner's tensors out; and weights out with the card they carry."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from fol_model.checkpoints import ModelCard, card_of
from fol_model.config import Recipe
from fol_model.preprocessing import normalised, prepare
from fol_model.training.learner import Batch
from fol_model.training.start import fitted_start
from fol_model.weights import checked_state


def as_batch(
    photos: UInt8[np.ndarray, "B S S 3"],
    places: Int64[np.ndarray, " B"],
    known_reliability: Float32[np.ndarray, "B g g"] | None,
    names: Sequence[str],
) -> Batch:
    """Make what a learner takes.

    Args:
        photos: RGB, of the size that is trained at.
        places: whose photo each is; the photos of a place stand next to each other.
        known_reliability: see `Batch`.
        names: what to call each photo in a message.
    """
    return Batch(
        images=torch.stack([normalised(photo) for photo in photos]),
        places=torch.from_numpy(places),
        known_reliability=None if known_reliability is None else torch.from_numpy(known_reliability),
        photos=names,
    )


def fitted_weights(
    recipe: Recipe, photos: Iterable[UInt8[np.ndarray, "H W 3"]], *, seed: int
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Start from heads that are fitted to photos; see `start.fitted_start`.

    Args:
        recipe: with `aggregation="vlad"`.
        photos: RGB, of any shapes; some hundred.
        seed: of the sampling.

    Raises:
        ValueError: another aggregation, or too few photos.
    """
    size_px = recipe.input_size
    prepared = (prepare(photo, size_px, antialias=recipe.antialias).unsqueeze(0) for photo in photos)
    return {name: tensor.numpy() for name, tensor in fitted_start(recipe, prepared, seed=seed).items()}


def usual_precision(device: str) -> Literal["bfloat16", "float32"]:
    """Say what to compute in: bfloat16 on a GPU; float32 on a CPU, most of which are slower in bfloat16."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return "bfloat16" if on_gpu else "float32"


def trained_card(recipe: Recipe, weights: Mapping[str, Float32[np.ndarray, "..."]], *, source: str) -> ModelCard:
    """Describe weights that were trained.

    Args:
        recipe: whose weights they are.
        weights: by the reference's names.
        source: what made them, for a person.

    Raises:
        ValueError: they do not fit the recipe, or hold a NaN.
    """
    return card_of(replace(recipe, seed=None), checked_state(recipe, weights), source=source)
