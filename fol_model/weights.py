"""Weights: their names and shapes, reading them, drawing them from a seed, and telling two sets of them apart.

Everywhere outside a running network, weights are a mapping from FoL's own names to arrays: `backbone.model.` in front of
DINOv2's names, then `aggregator.`, `upconv.` and `upconv2.`. This file alone knows how those map to our modules.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from math import prod, sqrt
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float32, Float64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fol_model.config import Recipe
from fol_model.network import FoL
from fol_model.recipes import recipe_named

State = Mapping[str, Tensor | np.ndarray]
"""Weights by the reference's names; a leading `module.` is ignored."""

_EMBEDDING_GAINS: Final = {"pos_embed": 1.0, "cls_token": 0.02, "mask_token": 0.02}
"""Of seeded weights: standard deviations of what is added to the tokens."""

_AFTER_RELU: Final = {
    "aggregator.token_features.2.weight": 1.0,
    "aggregator.cluster_features.3.weight": 1.0,
    "aggregator.score.3.weight": 3.0,
    "upconv2.weight": 1.0,
}
"""Of seeded weights: layers whose inputs are never negative, with their gains. Their weights come in opposite pairs, so that the
mean of the inputs cancels; else it would be most of every descriptor, and all photos would look alike. The gain of the cluster
scores makes the shares neither equal nor all-or-nothing."""


_LATER_SETTINGS: Final = (("dustbin", "attention"), ("aggregation", "salad"), ("local_patch_step", 1), ("match_cosine", 0.7))
"""Settings that came after the first maps, with the value those maps were made with: it leaves their fingerprints as they are."""


def from_reference(state: State, recipe: str) -> FoL:
    """Make the network from weights under the reference's names.

    Args:
        state: NumPy arrays or tensors; copied, and converted to float32.
        recipe: a name from `recipes.RECIPES`.

    Returns:
        The network, in eval mode, on the CPU.

    Raises:
        ValueError: no such recipe, or the names or shapes are not exactly those of the recipe's network.
    """
    return build(recipe_named(recipe), state)


def build(recipe: Recipe, state: State) -> FoL:
    """Make the network of any recipe; otherwise as `from_reference`."""
    checked = checked_state(recipe, state)
    with torch.device("meta"):  # no time spent on weights that are replaced at once
        network = FoL(recipe)
    ours = {_our_name(name): tensor for name, tensor in checked.items()}
    network.load_state_dict(ours, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def expected_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Name every tensor that a recipe's weights consist of, with its shape."""
    with torch.device("meta"):
        network = FoL(recipe)
    return {name: tuple(tensor.shape) for name, tensor in network_names(network.state_dict()).items()}


def network_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a `FoL` module the reference's names."""
    return {_reference_name(name): tensor for name, tensor in state.items()}


def checked_state(recipe: Recipe, state: State) -> dict[str, Tensor]:
    """Copy weights as float32 tensors on the CPU, in order of their names, after comparing names and shapes with the recipe.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen, or holds a NaN or an infinity; the message names it.
    """
    found = fitting_tensors(recipe.name, expected_shapes(recipe), state)
    copies = {name: as_float32(name, tensor.detach().to("cpu", copy=True)) for name, tensor in found.items()}
    require_finite(copies)
    return copies


def fitting_tensors(what: str, expected: Mapping[str, tuple[int, ...]], state: State) -> dict[str, Tensor]:
    """Look at weights as tensors, in order of their names and without `module.`. Nothing is copied.

    Args:
        what: the recipe, for the message.
        expected: the shape of every tensor there must be.
        state: the weights.

    Raises:
        ValueError: a tensor is missing, unexpected or misshapen; the message names the first of each and counts the rest.
    """
    found = {name.removeprefix("module."): torch.as_tensor(tensor) for name, tensor in state.items()}
    problems = _listed("missing", expected.keys() - found.keys())
    problems += _listed("unexpected", found.keys() - expected.keys())
    misshapen = (name for name in expected.keys() & found.keys() if tuple(found[name].shape) != expected[name])
    problems += _listed("misshapen", (f"{name} is {tuple(found[name].shape)} instead of {expected[name]}" for name in misshapen))
    if problems:
        raise ValueError(f"these are not weights for recipe {what}: {'; '.join(problems)}")
    return {name: found[name] for name in sorted(found)}


def as_float32(name: str, tensor: Tensor) -> Float32[Tensor, "..."]:
    """Give a tensor as a network holds it; the same one if it is so already.

    Raises:
        ValueError: it holds no plain floating-point numbers.
    """
    if tensor.layout is not torch.strided or not tensor.is_floating_point():
        raise ValueError(f"weights must be plain floating-point numbers, but {name} is {tensor.dtype}, {tensor.layout}")
    return tensor.detach().to("cpu", torch.float32).contiguous()


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that would make every answer a NaN.

    Raises:
        ValueError: a tensor holds a NaN or an infinity; the message names it.
    """
    broken = _listed("NaN or infinite", (name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())))
    if broken:
        raise ValueError(f"these weights are damaged, or their training diverged: {broken[0]}")


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read weights from a safetensors file.

    Raises:
        ValueError: the file is not there, is no safetensors file, or holds a backbone to start training from and no heads.
    """
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("kind")
            if kind == "backbone":
                raise ValueError(
                    f"{path}: holds start weights of a backbone, without the heads that training adds. "
                    "Train from it, or use the weights of a whole network"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        hint = ". Convert it first: folio models convert FILE.pth" if path.suffix in (".pth", ".pt", ".ckpt") else ""
        raise ValueError(f"{path}: expected a safetensors file with weights, found: {error}{hint}") from error


def shipped_weights(recipe: Recipe) -> Path | None:
    """Name the file of weights that comes with Folio for a recipe; None: there is none."""
    path = Path(__file__).parent / "default_weights" / f"{recipe.name}.safetensors"
    return path if path.is_file() else None


def fingerprint(recipe: Recipe, state: State) -> str:
    """Name a network: sha256 over the recipe's settings and each tensor's name, shape and bytes, in order of the names.

    Photos encoded by networks with different fingerprints cannot be compared.

    Raises:
        ValueError: the weights are not the recipe's.
    """
    settings = {
        name: value
        for name, value in asdict(recipe).items()
        if (name, value) not in _LATER_SETTINGS and name != "local_precision"  # features of any precision can be compared
    }
    return digest(settings, fitting_tensors(recipe.name, expected_shapes(recipe), state))


def digest(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Compute sha256 over settings and over each tensor's name, shape and bytes, as float32, in order of the names."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(f"\n{name} {tuple(tensors[name].shape)}\n".encode())
        found.update(as_float32(name, tensors[name]).numpy().astype("<f4", copy=False).data)
    return found.hexdigest()


def seeded_weights(recipe: Recipe) -> dict[str, Float32[np.ndarray, "..."]]:
    """Draw weights that have seen no photo, but let the content of one through.

    Every tensor has its own random stream, made from the seed and its name, so they are the same on every machine.

    Raises:
        ValueError: the recipe has no seed.
    """
    if recipe.seed is None:
        raise ValueError(f"recipe {recipe.name} has no seed: its weights must be given")
    return {
        name: _seeded(name, np.random.default_rng([recipe.seed, crc32(name.encode())]).standard_normal(shape))
        for name, shape in expected_shapes(recipe).items()
    }


def _seeded(name: str, draw: Float64[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Scale a standard normal draw for the tensor it becomes.

    Sums over inputs keep their size, blocks add little (`.gamma`), and positions weigh about as much as content. Only products
    of single numbers: a sum could round differently on another machine and change the fingerprint.
    """
    *_, module, kind = name.split(".")
    if kind == "gamma":
        return np.full(draw.shape, 0.1, np.float32)
    if kind == "bias":
        return np.zeros(draw.shape, np.float32)
    if module.startswith("norm") or ".norm." in name:
        return np.ones(draw.shape, np.float32)
    if name.startswith("reb.out."):
        return np.zeros(draw.shape, np.float32)
    if kind in _EMBEDDING_GAINS:
        return (_EMBEDDING_GAINS[kind] * draw).astype(np.float32)
    inputs_first = name.startswith("upconv")  # transposed convolutions are (in, out, rows, columns)
    by_input = draw if inputs_first else draw.swapaxes(0, 1)
    if name in _AFTER_RELU:
        by_input[1::2] = -by_input[::2]
    fan_in = len(by_input) if inputs_first else prod(draw.shape[1:])
    return (_AFTER_RELU.get(name, 1.0) / sqrt(fan_in) * draw).astype(np.float32)


def _listed(problem: str, names: Iterable[str]) -> list[str]:
    """Say what is wrong with the first three tensors and how many more there are; nothing for none."""
    sorted_names = sorted(names)
    if not sorted_names:
        return []
    more = f" and {len(sorted_names) - 3} more" if len(sorted_names) > 3 else ""
    return [f"{problem}: {', '.join(sorted_names[:3])}{more}"]


def _our_name(reference_name: str) -> str:
    if reference_name.startswith("upconv"):
        return f"decoder.{reference_name}"
    return reference_name.replace("backbone.model.", "backbone.", 1)


def _reference_name(our_name: str) -> str:
    if our_name.startswith("backbone."):
        return our_name.replace("backbone.", "backbone.model.", 1)
    return our_name.removeprefix("decoder.")
