"""Alignment, contrast and reliability: their zeros, their stops, and what they push where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fol_model.training.losses.regions import alignment, contrast, matchable, reliability_loss, scaled, winsorised


def maps(seed: int, photos: int = 3, patches: int = 40) -> Tensor:
    return torch.rand(photos, patches, generator=torch.Generator().manual_seed(seed)) + 0.01


def test_the_top_tenth_is_cut_down_to_the_percentile_and_the_rest_is_left():
    values = torch.arange(11.0)[None]

    assert winsorised(values).tolist() == [[*range(10), 9]]
    assert scaled(values)[0, [0, 3, 9, 10]].tolist() == pytest.approx([0, 3 / 9, 1, 1])


def test_a_map_of_zeros_stays_one_and_does_not_end_in_nan():
    assert scaled(torch.zeros(1, 9)).tolist() == [[0] * 9]
    assert alignment(torch.zeros(1, 9), torch.zeros(1, 9)).item() == 0
    assert alignment(maps(0, 1, 9), torch.zeros(1, 9)).isfinite()


def test_equal_maps_are_aligned_whatever_their_scale():
    M_a = maps(1)

    assert alignment(M_a, M_a).item() == 0
    assert abs(alignment(M_a, 0.3 * M_a)) < 1e-6


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_alignment_is_never_negative_nor_not_a_number(seed: int, scale: float):
    loss = alignment(maps(seed), scale * maps(seed + 1) ** 4)

    assert -1e-6 < loss.item() < float("inf")


def test_alignment_does_not_depend_on_the_order_of_patches_or_photos():
    M_a, R, order = maps(2), maps(3), torch.randperm(40, generator=torch.Generator().manual_seed(0))

    assert abs(alignment(M_a[:, order].flip(0), R[:, order].flip(0)) - alignment(M_a, R)) < 1e-6


def test_each_map_learns_only_from_its_own_half_of_the_alignment():
    """With a standing still, the gradient of KL(a || r) to the sum-normalised r is that of -sum a ln r; and vice versa."""
    M_a, R = maps(4).requires_grad_(), maps(5).requires_grad_()

    alignment(M_a, R).backward()

    for learning, standing in ((R, M_a), (M_a, R)):
        again = learning.detach().clone().requires_grad_()
        target, own = (winsorised(x) + 1e-6 for x in (standing.detach(), again))
        target, own = (x / x.sum(dim=1, keepdim=True) for x in (target, own))
        (-(target * own.log()).sum(dim=1).mean()).backward()
        assert learning.grad is not None
        assert again.grad is not None
        assert (learning.grad - again.grad).abs().max() < 1e-6


def test_patches_that_are_cut_down_get_no_gradient():
    M_a = maps(6, 1).requires_grad_()

    alignment(M_a, maps(7, 1)).backward()

    assert M_a.grad is not None
    cut = M_a > torch.quantile(M_a, 0.9, dim=1, keepdim=True)
    assert cut.sum() == 4
    assert (M_a.grad[cut] == 0).all()
    assert (M_a.grad[~cut] != 0).all()


def test_a_learning_map_moves_towards_the_one_that_stands_still():
    M_a, R = maps(8), maps(9)
    before = alignment(M_a, R).item()

    for _ in range(60):
        R.requires_grad_()
        (gradient,) = torch.autograd.grad(alignment(M_a, R), R)
        R = (R - 5 * gradient).detach().clamp(min=0)

    assert alignment(M_a, R).item() < before / 4


PAIRS = torch.tensor([[0, 1], [1, 0]])


def test_contrast_is_zero_when_what_is_kept_agrees_and_what_is_dropped_is_the_opposite():
    """f_fg . f_fg' = 1 and f_fg . f_bg = -1, or 0: the margin of 1 is met."""
    thing = torch.tensor([1.0, 0.0])
    for background, loss in ((-thing, 0), (torch.tensor([0.0, 1.0]), 0), (thing, 1)):
        patches = torch.stack([thing, thing, background, background], dim=1).expand(2, -1, -1)
        M = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, -1)

        assert contrast(patches, M, PAIRS).item() == pytest.approx(loss, abs=1e-6)


def test_contrast_moves_the_mask_and_never_the_features():
    patches = torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    M = maps(10, 2, 9).clamp(max=1).requires_grad_()

    contrast(patches, M, PAIRS).backward()

    assert patches.grad is None
    assert M.grad is not None
    assert M.grad.abs().sum() > 0


def test_contrast_averages_over_all_other_photos_of_the_place_in_any_order():
    patches = torch.randn(3, 8, 9, generator=torch.Generator().manual_seed(1))
    M, pairs = maps(11, 3, 9).clamp(max=1), torch.tensor([[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]])

    each = torch.stack([contrast(patches, M, pair[None]) for pair in pairs])

    assert abs(contrast(patches, M, pairs) - each.mean()) < 1e-6
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert abs(contrast(patches[:, :, order], M[:, order], pairs.flip(0)) - each.mean()) < 1e-6


def test_masks_that_keep_all_or_nothing_and_blank_features_give_a_finite_contrast():
    patches = torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(2))

    for M in (torch.zeros(2, 9), torch.ones(2, 9)):
        assert contrast(patches, M, PAIRS).isfinite()
    assert contrast(torch.zeros(2, 8, 9), maps(12, 2, 9), PAIRS).isfinite()
    assert contrast(patches, maps(12, 2, 9), torch.empty(0, 2, dtype=torch.long)).item() == 0


def test_reliability_learns_from_known_patches_only():
    R = torch.tensor([[0.9, 0.2, 0.5]]).requires_grad_()
    known = torch.tensor([[1.0, 0.0, torch.nan]])

    loss = reliability_loss(R, known)
    loss.backward()

    assert loss.item() == pytest.approx(-(torch.tensor([0.9, 0.8]).log().mean()).item(), abs=1e-6)
    assert R.grad is not None
    assert R.grad[0].sign().tolist() == [-1, 1, 0]


def test_nothing_known_of_reliability_teaches_nothing():
    R = torch.full((2, 3), 0.5, requires_grad=True)

    loss = reliability_loss(R, torch.full((2, 3), torch.nan))
    loss.backward()

    assert loss.item() == 0
    assert R.grad is not None
    assert (R.grad == 0).all()


def test_a_patch_is_matchable_when_the_positive_has_it_and_the_negative_nothing_as_near():
    """Patches as directions in degrees. The anchor's 0 is in the positive; 90 is too, but the negative has it as well; 180 is
    nearest to the positive's 100, which prefers 90."""
    photos = torch.stack([directions(0, 90, 180), directions(5, 100, 300), directions(91, 240, 250)])

    target = matchable(photos, torch.tensor([[0, 1, 2]]))

    assert target[0].tolist() == [1, 0, 0]
    assert target[1:].isnan().all()


def directions(*degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()])
