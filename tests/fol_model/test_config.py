"""Settings that contradict themselves are refused, and sizes follow from them."""

from dataclasses import replace
from typing import Any

import pytest

from fol_model.config import BackboneConfig, PoolConfig, RerankConfig
from fol_model.recipes import fol_vitl14, fol_vits14, tiny


def test_a_patch_fraction_is_rounded_up():
    """40 % of 529 is 211.6 and of 1296 is 518.4, as in the paper's notes."""
    assert tiny().kept_patches(529) == 212
    assert tiny().kept_patches(1296) == 519


def test_the_reference_keeps_225_patches_at_any_size_and_at_most_3600_features():
    assert fol_vits14().kept_patches(529) == 225
    assert fol_vits14().max_local_features == 3600


def test_tiny_keeps_one_feature_for_each_of_two_in_five_patches():
    """16 x 16 patches; 102.4 rounded up."""
    assert (tiny().grid_side, tiny().max_local_features) == (16, 103)


@pytest.mark.parametrize("recipe", [fol_vits14(), fol_vitl14(), tiny()])
def test_every_recipe_makes_the_same_size_of_descriptor(recipe: Any):
    assert recipe.descriptor_dim == 8448


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_patches": 225}, "exactly one of mask_patches and mask_fraction"),
        ({"mask_fraction": None}, "exactly one of mask_patches and mask_fraction"),
        ({"local_stride": 3}, "must be 1, 2 or 4, got 3"),
        ({"input_size": 225}, "multiple of 14 pixels, got 225"),
        ({"input_size": 112}, "has 64 patches, but recipe tiny needs at least 65"),
        ({"mask_fraction": None, "mask_patches": 257}, "has 256 patches, but recipe tiny needs at least 257"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(tiny(), **change)


def test_heads_must_share_the_channels_evenly():
    with pytest.raises(ValueError, match="multiple of heads=5, got 96"):
        BackboneConfig(embed_dim=96, depth=2, heads=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_size": 101}, "from 1 to max_size=100"),
        ({"delta": -0.1}, "delta"),
        ({"sure_gap": 0.0}, "sure_gap"),
        ({"fixed_size": 0}, "at least 1"),
    ],
)
def test_a_pool_that_cannot_work_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        PoolConfig(**change)


@pytest.mark.parametrize("change", [{"min_cosine": 1.5}, {"local_weight": -0.5}, {"local_weight": float("nan")}])
def test_a_reranking_outside_its_ranges_is_refused(change: dict[str, Any]):
    with pytest.raises(ValueError, match="must be between"):
        RerankConfig(**change)
