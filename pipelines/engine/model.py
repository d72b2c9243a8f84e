"""Open the network a run works with, and compare it with the one a map was made with."""

from math import prod
from pathlib import Path

import msgspec

from fol_model.inference import Encoder, open_encoder
from fol_model.recipes import RECIPES
from fol_model.weights import expected_shapes
from schemas.errors import ModelError
from schemas.manifest import ModelEntry


def load_encoder(recipe: str, *, weights: Path | None, device: str) -> Encoder:
    """Open a named network.

    Raises:
        ModelError: no such recipe, no weights for it, or weights that do not fit.
    """
    try:
        return open_encoder(recipe, weights=weights, device=device)
    except (ValueError, OSError) as error:
        raise ModelError(f"{recipe}: {error}") from error


def describe_model(encoder: Encoder) -> ModelEntry:
    """Say in a manifest which network this is."""
    return ModelEntry(
        recipe=encoder.recipe.name,
        fingerprint=encoder.fingerprint,
        trained=encoder.trained,
        settings=encoder.settings(),
    )


def require_same_model(encoder: Encoder, model: ModelEntry, *, map_url: str, remedy: str) -> None:
    """Refuse a network that is not the one a map was made with: their descriptors cannot be compared.

    Raises:
        ModelError: the fingerprints differ.
    """
    if encoder.fingerprint != model.fingerprint:
        raise ModelError(
            f"{map_url}: made with network {model.recipe} ({model.fingerprint[:12]}), but {encoder.recipe.name} "
            f"({encoder.fingerprint[:12]}) was given. Nothing was changed. {remedy}"
        )


def untrained_note(recipe: str) -> str:
    """Say that a network has seen no photo. Every output of such a network carries this."""
    return f"untrained: {recipe} runs with seeded weights that have seen no photo; do not rely on the answers"


class ModelLine(msgspec.Struct, frozen=True, kw_only=True):
    """A named network, as `folio models` lists it."""

    name: str
    mode: str
    input_size: int
    parameters: int
    descriptor_dim: int
    weights: str


def list_models() -> list[ModelLine]:
    """List the named networks and say which weights each has."""
    return [
        ModelLine(
            name=recipe.name,
            mode=recipe.mode,
            input_size=recipe.input_size,
            parameters=sum(prod(shape) for shape in expected_shapes(recipe).values()),
            descriptor_dim=recipe.descriptor_dim,
            weights="none here: give them with --weights FILE.safetensors" if recipe.seed is None else "untrained (seeded)",
        )
        for recipe in (make() for make in RECIPES.values())
    ]
