"""The named networks, and which of them have weights here."""

from math import prod
from pathlib import Path
from typing import Final

import msgspec

from fol_model.checkpoints import read_card
from fol_model.config import Recipe
from fol_model.recipes import RECIPES
from fol_model.weights import expected_shapes, shipped_weights
from infra.settings import Settings
from pipelines.engine.model import kept_weights


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that somebody published on the Hugging Face hub."""

    repository: str
    file: str


PUBLISHED: Final = {
    "fol_vitb14": Published(repository="shunpeng/FoL", file="FoL_base.pth"),
    "fol_vitl14": Published(repository="shunpeng/FoL", file="FoL_large.pth"),
}
"""By recipe: what `folio models fetch` can get."""


class ModelLine(msgspec.Struct, frozen=True, kw_only=True):
    """A named network, as `folio models` lists it."""

    name: str
    mode: str
    input_size: int
    parameters: int
    descriptor_dim: int
    weights: str
    """For a person: which weights there are, or how to get some."""
    weights_file: str | None = None
    """The file that is used where no other is given."""
    fingerprint: str | None = None
    """Of the network with these weights."""
    source: str | None = None
    """Where they come from."""


def list_models(settings: Settings) -> list[ModelLine]:
    """List the named networks and say which weights each has."""
    return [_line(make(), settings) for make in RECIPES.values()]


def fetch_name(recipe: str) -> str:
    """Spell a recipe's name as published models are usually spelled."""
    return recipe.replace("_", "-")


def _line(recipe: Recipe, settings: Settings) -> ModelLine:
    line = ModelLine(
        name=recipe.name,
        mode=recipe.mode,
        input_size=recipe.input_size,
        parameters=sum(prod(shape) for shape in expected_shapes(recipe).values()),
        descriptor_dim=recipe.descriptor_dim,
        weights=_without_weights(recipe),
    )
    kept = kept_weights(recipe, settings)
    if recipe.seed is None and kept.is_file():
        return _with_weights(line, kept)
    shipped = shipped_weights(recipe)
    return line if shipped is None else msgspec.structs.replace(_with_weights(line, shipped), weights="trained, come with Folio")


def _with_weights(line: ModelLine, file: Path) -> ModelLine:
    try:
        card = read_card(file)
    except ValueError as error:
        return msgspec.structs.replace(line, weights=f"unusable: {error}")
    if card is None:
        return msgspec.structs.replace(line, weights=str(file), weights_file=str(file))
    return msgspec.structs.replace(
        line,
        weights=f"{file}, from {card.source}",
        weights_file=str(file),
        fingerprint=card.fingerprint,
        source=card.source,
    )


def _without_weights(recipe: Recipe) -> str:
    if recipe.seed is not None:
        return "untrained (seeded)"
    if recipe.name in PUBLISHED:
        return f"none here: folio models fetch {fetch_name(recipe.name)}, or --weights FILE.safetensors"
    return "none here: give them with --weights FILE.safetensors"
