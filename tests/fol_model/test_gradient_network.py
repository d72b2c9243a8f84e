"""The small network: histograms of gradients, residuals to cluster centres, heads that start from photos."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fol_model.config import Recipe
from fol_model.gradient_backbone import GradientBackbone
from fol_model.gradients import directions, grey, layout, patch_histograms
from fol_model.inference import Encoder, open_encoder
from fol_model.network import FoL
from fol_model.preprocessing import normalised
from fol_model.recipes import folio_small, tiny
from fol_model.training.start import fitted_start, k_means, principal_components
from fol_model.vlad import VladAggregator
from fol_model.weights import build, network_names

SIDE = 128


def small() -> Recipe:
    """Folio-small with few clusters and little layout, so that a handful of photos can fit it."""
    return replace(folio_small(), clusters=16, cluster_dim=8, token_dim=8, hidden=64, input_size=SIDE)


def pictures(count: int, *, seed: int = 0) -> Tensor:
    """Random blocks of several sizes, normalised."""
    random = np.random.default_rng(seed)
    made = np.zeros((count, SIDE, SIDE, 3))
    for cell in (32, 16, 4):
        blocks = random.integers(0, 85, (count, SIDE // cell, SIDE // cell, 3))
        made += blocks.repeat(cell, axis=1).repeat(cell, axis=2)
    return torch.stack([normalised(picture.astype(np.uint8)) for picture in made])


@pytest.fixture(scope="module")
def fitted() -> FoL:
    return build(small(), fitted_start(small(), pictures(12).split(4)))


def test_grey_undoes_the_normalisation() -> None:
    photo = np.full((4, 4, 3), 51, np.uint8)

    torch.testing.assert_close(grey(normalised(photo).unsqueeze(0)), torch.full((1, 1, 4, 4), 0.2))


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_ramp_lies_in_one_direction_alone(turns: int) -> None:
    ramp = torch.arange(32.0).expand(32, 32) / 100

    seen = directions(torch.rot90(ramp, -turns).contiguous().view(1, 1, 32, 32))[0, :, 8:-8, 8:-8]

    torch.testing.assert_close(seen[2 * turns], torch.full((16, 16), 0.01))
    others = torch.cat([seen[: 2 * turns], seen[2 * turns + 1 :]])
    assert others.max() < 1e-6


def test_histograms_are_of_unit_length_and_know_how_much_there_is_to_see() -> None:
    picture = grey(pictures(1))
    picture[..., : SIDE // 2] = 0.5  # nothing to see on the left

    seen = patch_histograms(directions(picture), grid_side=16, cell=4)

    assert seen.features.shape == (1, 128, 16, 16)
    torch.testing.assert_close(seen.features[..., 12:].norm(dim=1), torch.ones(1, 16, 4), atol=1e-4, rtol=0)
    assert seen.length[..., :4].max() < 1e-6
    assert seen.length[..., 12:].min() > 0.01
    assert seen.features.isfinite().all()


def test_histograms_hardly_change_with_exposure() -> None:
    dark, bright = (patch_histograms(directions(grey(pictures(1)) * gain), grid_side=16, cell=4) for gain in (0.5, 1.0))

    assert functional.cosine_similarity(dark.features, bright.features).mean() > 0.99


def test_the_layout_is_of_unit_length_and_a_blank_photo_has_none() -> None:
    assert layout(directions(grey(pictures(2)))).norm(dim=1).tolist() == pytest.approx([1, 1])
    assert layout(directions(torch.full((1, 1, SIDE, SIDE), 0.3))).isfinite().all()


def test_each_patch_gives_itself_away_whole(fitted: FoL) -> None:
    plan = fitted(pictures(2, seed=5)).plan

    assert plan.shape == (2, 17, 256)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(2, 256))


def test_a_patch_with_nothing_to_see_goes_to_the_dustbin(fitted: FoL) -> None:
    images = pictures(1, seed=6)
    images[..., : SIDE // 2] = 0

    mass = fitted(images).mass.view(16, 16)

    assert mass[:, :4].max() < 0.01
    assert mass[:, 12:].min() > 0.1


def test_a_fitted_start_computes_vlad(fitted: FoL) -> None:
    """Through pairs of ReLU units, from k-means centres: the same as summing residuals by hand."""
    aggregator = fitted.aggregator
    assert isinstance(aggregator, VladAggregator)
    features = GradientBackbone(folio_small().backbone)(pictures(1, seed=7))  # type: ignore[arg-type]
    plan = aggregator.shares(features, torch.full((1, 256), 0.5))
    reduced = aggregator.cluster_features(features.patches).flatten(2)[0].T  # (N, K)
    distances = torch.cdist(reduced, aggregator.centres)
    sure = distances.sort(dim=1).values.diff(dim=1)[:, 0] > 0.2

    assert torch.equal(plan[0, :-1].argmax(dim=0)[sure], distances.argmin(dim=1)[sure])
    by_hand = torch.stack([(plan[0, k, :, None] * (reduced - centre)).sum(dim=0) for k, centre in enumerate(aggregator.centres)])
    expected = functional.normalize(functional.normalize(by_hand, dim=1).flatten(), dim=0)
    clusters = functional.normalize(aggregator.pooled(features, plan)[0, small().token_dim :], dim=0)
    torch.testing.assert_close(clusters, expected, atol=1e-5, rtol=0)


def test_the_same_photos_give_the_same_start() -> None:
    first, second = (fitted_start(small(), pictures(12).split(size)) for size in (4, 4))

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_recipes_that_can_be_fitted_are() -> None:
    with pytest.raises(ValueError, match="only aggregation vlad can be fitted to photos, not salad"):
        fitted_start(tiny(), pictures(2).split(2))
    with pytest.raises(ValueError, match="need more than 8 photos to be fitted, got 4"):
        fitted_start(small(), pictures(4).split(4))


def test_principal_components_come_strongest_first_and_may_be_whitened() -> None:
    samples = torch.randn(500, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 9.0, 3.0])

    mean, plain = principal_components(samples, 2, whiteness=0.0)
    _, white = principal_components(samples, 2, whiteness=1.0)

    assert ((samples - mean) @ plain).std(dim=0).tolist() == pytest.approx([9, 3], rel=0.1)
    assert ((samples - mean) @ white).std(dim=0).tolist() == pytest.approx([9, 9], rel=0.1)


def test_k_means_centres_are_the_means_of_what_is_nearest() -> None:
    random = torch.Generator().manual_seed(2)
    samples = torch.rand(400, 2, generator=random)

    centres = k_means(samples, 5, random)

    nearest = torch.cdist(samples, centres).argmin(dim=1)
    means = torch.stack([samples[nearest == k].mean(dim=0) for k in range(5)])
    torch.testing.assert_close(centres, means, atol=0.02, rtol=0)


def test_local_features_may_be_chosen_on_every_second_row_and_column_only(fitted: FoL) -> None:
    recipe = replace(small(), local_patch_step=2)
    seen = build(recipe, network_names(fitted.state_dict())).extract(pictures(1, seed=8))

    assert len(seen.local_features[0]) == recipe.max_local_features == 26  # 40 % of 8 x 8
    assert not (seen.patches[0] % 2).any()


def test_a_photo_of_one_colour_is_described_without_nan(fitted: FoL) -> None:
    seen = fitted.extract(torch.zeros(1, 3, SIDE, SIDE))

    assert seen.descriptors.isfinite().all()
    assert seen.local_features[0].isfinite().all()


def test_the_default_weights_come_with_folio_and_are_trained() -> None:
    encoder: Encoder = open_encoder("folio-small", weights=None, device="cpu")

    assert encoder.trained
    assert (encoder.recipe.mode, encoder.descriptor_dim, encoder.max_local_features) == ("folpp", 8448, 640)
