"""The reliability branch of FoL++: what it says untrained, what it learns from, and what follows from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fol_model.config import Recipe, RerankConfig
from fol_model.local_decoder import most_confident
from fol_model.matching import Features, count_mutual_matches
from fol_model.network import FoL
from fol_model.recipes import fol_vitb14, fol_vitl14, fol_vits14, recipe_named, tiny
from fol_model.reliability import ReliabilityBranch, tapped_blocks
from fol_model.reranking import LocalSide, compare
from fol_model.weights import build, seeded_weights


def folpp(recipe: Recipe, **changes: object) -> Recipe:
    return replace(recipe, mode="folpp", dustbin="reliability", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal((2, 3, 224, 224))).float()


@pytest.fixture(scope="module")
def plain() -> FoL:
    return build(tiny(), seeded_weights(tiny()))


def untrained(recipe: Recipe) -> FoL:
    return build(recipe, seeded_weights(recipe))


@pytest.mark.parametrize(("recipe", "parameters"), [(fol_vits14(), 90_561), (fol_vitb14(), 166_593), (fol_vitl14(), 217_281)])
def test_the_branch_has_the_parameters_of_the_specification(recipe: Recipe, parameters: int) -> None:
    branch = ReliabilityBranch(recipe.backbone.embed_dim)

    assert sum(parameter.numel() for parameter in branch.parameters()) == parameters


@pytest.mark.parametrize(("depth", "taps"), [(12, (5, 8, 11)), (24, (11, 17, 23)), (2, (0, 0, 1)), (1, (0, 0, 0))])
def test_it_listens_at_a_half_three_quarters_and_all_of_the_depth(depth: int, taps: tuple[int, int, int]) -> None:
    assert tapped_blocks(depth) == taps


def test_untrained_it_says_one_half_everywhere_on_any_grid() -> None:
    branch = ReliabilityBranch(96)

    assert (branch([torch.randn(2, 96, 5, 9)] * 3) == 0.5).all()


def test_an_untrained_branch_with_fols_dustbin_reproduces_fol_exactly(plain: FoL, images: Tensor) -> None:
    """So FoL's weights can be taken into FoL++: same descriptors, same patches, same local features."""
    network = untrained(replace(tiny(), mode="folpp"))

    ours, theirs = network.extract(images), plain.extract(images)

    assert torch.equal(ours.descriptors, theirs.descriptors)
    assert torch.equal(ours.patch_mask, theirs.patch_mask)
    assert all(torch.equal(a, b) for a, b in zip(ours.local_features, theirs.local_features, strict=True))
    assert all((reliability == 0.5).all() for reliability in ours.reliability)


def test_an_untrained_branch_orders_patches_and_candidates_as_fol_does(images: Tensor) -> None:
    """Its own dustbin is constant then: patches go by what the clusters take, and matches by their number."""
    network = untrained(folpp(tiny()))

    sight, seen = network(images), network.extract(images)
    kept = tiny().kept_patches(256)
    assert all((reliability == 0.5).all() for reliability in seen.reliability)
    stored = np.full(kept, 128, np.uint8)
    sides = [LocalSide(features=Features(vectors=features), reliability=stored) for features in seen.local_features]
    by_weight = compare(sides[0], sides[1:2], RerankConfig(mode="paper", cosine_weight=False, min_cosine=0.2))

    assert torch.equal(sight.mask.flatten(1), most_confident(sight.mass, kept))
    matches = count_mutual_matches(*seen.local_features[:2], min_cosine=0.2)
    assert matches > 1
    assert by_weight.local_scores.tolist() == pytest.approx([128 / 255 * matches])


def test_the_mask_is_the_mean_of_salience_and_reliability(images: Tensor) -> None:
    network = untrained(folpp(tiny()))
    assert network.reb is not None
    torch.nn.init.normal_(network.reb.out.weight, std=5)

    sight = network(images)

    assert sight.reliability.std() > 0.01
    torch.testing.assert_close(sight.mask_score, (sight.salience + sight.reliability) / 2)
    assert torch.equal(sight.mask.flatten(1), most_confident(sight.mask_score, tiny().kept_patches(256)))


def test_a_patch_that_is_not_reliable_goes_to_the_dustbin(images: Tensor) -> None:
    network = untrained(folpp(tiny()))
    assert network.reb is not None
    before = network(images).mass
    torch.nn.init.normal_(network.reb.out.weight, std=5)

    sight = network(images)

    gained, reliability = (sight.mass - before).detach().flatten(), sight.reliability.detach().flatten()
    assert torch.corrcoef(torch.stack([gained, reliability]))[0, 1] > 0.7


def test_learning_reliability_does_not_disturb_the_backbone(images: Tensor) -> None:
    network = untrained(folpp(tiny())).requires_grad_(True)
    assert network.reb is not None
    torch.nn.init.normal_(network.reb.out.weight)

    network(images).reliability.sum().backward()

    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.reb.parameters())


def test_a_dustbin_of_reliability_needs_the_branch() -> None:
    with pytest.raises(ValueError, match="dustbin reliability needs mode folpp"):
        replace(tiny(), dustbin="reliability")


@pytest.mark.parametrize("name", ["folpp_vits14", "folpp_vitb14", "folpp_vitl14"])
def test_the_named_folpp_networks_keep_the_best_40_percent(name: str) -> None:
    recipe = recipe_named(name)

    assert (recipe.mode, recipe.kept_patches(recipe.grid_side**2)) == ("folpp", 519)
