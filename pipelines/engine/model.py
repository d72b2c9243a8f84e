"""Open the network a run works with, and compare it with the one a map was made with."""

from pathlib import Path

from fol_model.config import Recipe
from fol_model.inference import Arithmetic, Encoder, open_encoder
from fol_model.recipes import recipe_named
from infra.settings import Settings
from schemas.errors import ModelError
from schemas.manifest import ModelEntry


def weights_file(recipe: str, given: str | Path | None, settings: Settings) -> Path | None:
    """Say which weights a recipe runs with: the ones given, else the ones kept under its name in the models folder.

    Returns:
        None: the recipe's own, as those of a recipe with a seed are.

    Raises:
        ModelError: no such recipe.
    """
    if given:
        return Path(given)
    try:
        found = recipe_named(recipe)
    except ValueError as error:
        raise ModelError(str(error)) from error
    kept = kept_weights(found, settings)
    return kept if found.seed is None and kept.is_file() else None


def kept_weights(recipe: Recipe, settings: Settings) -> Path:
    """Name the file in the models folder that holds a recipe's weights, if it is there."""
    return settings.models / f"{recipe.name}.safetensors"


def load_encoder(recipe: str, *, weights: Path | None, device: str, arithmetic: Arithmetic = "auto") -> Encoder:
    """Open a named network; see `Encoder` for device and arithmetic.

    Raises:
        ModelError: no such recipe, no weights for it, or weights that do not fit.
    """
    try:
        return open_encoder(recipe, weights=weights, device=device, arithmetic=arithmetic)
    except (ValueError, OSError) as error:
        named = weights is None or str(weights) in str(error)
        raise ModelError(f"{recipe}: {error}" if named else f"{recipe}: {weights}: {error}") from error


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
