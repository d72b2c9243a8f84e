"""Weights are taken by the reference's names, or refused with the names that are wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float32
from safetensors.torch import save_file

from fol_model import from_reference
from fol_model.network import FoL
from fol_model.recipes import RECIPES, recipe_named, tiny
from fol_model.weights import (
    build,
    checked_state,
    expected_shapes,
    fingerprint,
    load_safetensors,
    seeded_weights,
)

Weights = dict[str, Float32[np.ndarray, "..."]]


@pytest.fixture
def weights() -> Weights:
    return seeded_weights(tiny())


@pytest.mark.parametrize("name", ["fol_vits14", "fol_vitb14", "fol_vitl14"])
def test_names_and_shapes_are_those_of_the_references_checkpoints(name: str, shared_fol: Path):
    listed = json.loads((shared_fol / "parity" / "shapes.json").read_text())
    key = next(key for key in listed if name.removeprefix("fol_") in key)

    assert {name: tuple(shape) for name, shape in listed[key].items()} == expected_shapes(recipe_named(name))


def test_tensors_and_a_module_prefix_are_taken_as_well_as_arrays(weights: Weights):
    as_tensors = {f"module.{name}": torch.from_numpy(weight) for name, weight in weights.items()}
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    descriptors = [from_reference(state, recipe="tiny").extract(image).descriptors for state in (weights, as_tensors)]

    assert torch.equal(*descriptors)


def test_the_network_is_in_eval_mode_without_gradients(weights: Weights):
    network = from_reference(weights, recipe="tiny")

    assert isinstance(network, FoL)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_network_keeps_no_hold_on_the_arrays_it_was_made_from(weights: Weights):
    network = build(tiny(), weights)
    weights["upconv2.bias"][:] = 7

    assert not network.decoder.upconv2.bias.any()


def test_missing_unexpected_and_misshapen_tensors_are_named(weights: Weights):
    del weights["upconv.bias"]
    weights["aggregator.dust_bin"] = np.ones((), np.float32)  # SALAD's
    weights["upconv2.bias"] = np.ones(7, np.float32)

    with pytest.raises(ValueError, match="recipe tiny") as refusal:
        build(tiny(), weights)

    message = str(refusal.value)
    assert "missing: upconv.bias" in message
    assert "unexpected: aggregator.dust_bin" in message
    assert "misshapen: upconv2.bias is (7,) instead of (128,)" in message


def test_a_long_list_of_wrong_names_is_cut(weights: Weights):
    with pytest.raises(ValueError, match=r"missing: \S+, \S+, \S+ and \d+ more$"):
        checked_state(tiny(), {})


def test_weights_of_another_size_are_refused(weights: Weights):
    with pytest.raises(ValueError, match="not weights for recipe fol_vits14"):
        from_reference(weights, recipe="fol_vits14")


def test_an_unknown_recipe_is_refused_with_the_names_there_are(weights: Weights):
    with pytest.raises(ValueError, match=r"no recipe is called 'vit'; there are folio-small, fol_vits14, .*, tiny"):
        from_reference(weights, recipe="vit")


def test_weights_survive_a_safetensors_file(weights: Weights, tmp_path: Path):
    path = tmp_path / "tiny.safetensors"
    save_file({name: torch.from_numpy(weight) for name, weight in weights.items()}, path)

    assert fingerprint(tiny(), load_safetensors(path)) == fingerprint(tiny(), weights)


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_a_file_that_is_absent_or_no_safetensors_is_refused_by_name(content: bytes | None, tmp_path: Path):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ValueError, match=r"weights\.pth: expected a safetensors file"):
        load_safetensors(path)


def test_seeded_weights_are_the_same_everywhere(weights: Weights):
    """The fingerprint is written down: it changes only with a decision to change the untrained network.

    Made on an Intel Xeon with NumPy 2.4.6; sums that round differently elsewhere are avoided on purpose.
    """
    assert fingerprint(tiny(), weights) == "0952e4f192750176416f9ba47af6f73f754d30f3dfa2d5667d6ae72895d7610c"


def test_other_seeds_give_other_weights(weights: Weights):
    other = seeded_weights(replace(tiny(), seed=1))

    assert not np.array_equal(other["upconv.weight"], weights["upconv.weight"])


def test_weights_that_were_not_drawn_cannot_be_made_up():
    with pytest.raises(ValueError, match="fol_vits14 has no seed"):
        seeded_weights(recipe_named("fol_vits14"))


@pytest.mark.parametrize("changed", ["value", "setting"])
def test_the_fingerprint_tells_networks_apart(weights: Weights, changed: str):
    before = fingerprint(tiny(), weights)
    recipe = replace(tiny(), mask_fraction=0.5) if changed == "setting" else tiny()
    if changed == "value":
        weights["upconv2.bias"][3] = 1e-6

    assert fingerprint(recipe, weights) != before


def test_the_fingerprint_does_not_depend_on_the_order_of_the_tensors(weights: Weights):
    backwards = dict(reversed(list(weights.items())))

    assert fingerprint(tiny(), backwards) == fingerprint(tiny(), weights)


def test_every_recipe_is_found_under_its_own_name():
    assert [recipe_named(name).name for name in RECIPES] == list(RECIPES)
    assert recipe_named("fol-vitl14").name == recipe_named("fol_vitl14").name == "fol_vitl14"
    assert recipe_named("folio_small").name == "folio-small"
