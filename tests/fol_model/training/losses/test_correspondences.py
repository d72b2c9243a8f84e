"""Algorithm 1 by hand, and local features at every stride of the map."""

import pytest
import torch
from torch import Tensor

from fol_model.training.losses import local
from fol_model.training.losses.correspondences import (
    CorrespondenceRules,
    Correspondences,
    correspondence_loss,
    patch_centres,
    patch_features,
    pseudo_correspondences,
)

THERE = torch.tensor([[0, 1]])


def directions(*degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()])


def one_hot(*clusters: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(clusters), 3).T.float()


def found_in(first: Tensor, second: Tensor, clusters: tuple[Tensor, Tensor], M: Tensor, **rules: float) -> Correspondences:
    patches, plan = torch.stack([first, second]), torch.stack(clusters)
    return pseudo_correspondences(patches, plan, M.expand(2, -1), THERE, CorrespondenceRules(**rules))  # type: ignore[arg-type]


def pairs_of(found: Correspondences) -> list[tuple[int, int]]:
    return list(zip(found.anchor.tolist(), found.positive.tolist(), strict=True))


FIRST, SECOND = directions(0, 90, 200), directions(210, 10, 100)
M = torch.tensor([0.2, 0.9, 0.5])


def test_anchors_are_tried_by_the_mask_and_matched_within_their_cluster():
    clusters = one_hot(0, 1, 2), one_hot(2, 0, 1)

    assert pairs_of(found_in(FIRST, SECOND, clusters, M)) == [(1, 2), (2, 0), (0, 1)]
    assert pairs_of(found_in(FIRST, SECOND, clusters, M, most=2)) == [(1, 2), (2, 0)]


def test_equal_values_of_the_mask_are_tried_in_raster_order():
    clusters = one_hot(0, 1, 2), one_hot(2, 0, 1)

    assert pairs_of(found_in(FIRST, SECOND, clusters, torch.ones(3))) == [(0, 1), (1, 2), (2, 0)]


def test_patches_of_other_clusters_are_no_candidates():
    clusters = one_hot(0, 1, 2), one_hot(2, 1, 0)

    assert pairs_of(found_in(FIRST, SECOND, clusters, M)) == [(2, 0)]


def test_a_lone_candidate_is_accepted_by_us_and_dropped_by_the_released_rule():
    """The others of the anchor's cluster being none, there is no second to be confused with."""
    clusters = one_hot(0, 1, 2), one_hot(2, 0, 1)

    assert len(found_in(FIRST, SECOND, clusters, M).anchor) == 3
    assert len(found_in(FIRST, SECOND, clusters, M, second_needed=True).anchor) == 0


def test_a_second_candidate_of_negative_cosine_is_no_rival_by_us_and_drops_the_anchor_by_the_released_rule():
    clusters = one_hot(0, 1, 1), one_hot(0, 0, 2)
    first, second = directions(0, 90, 90), directions(5, 120, 0)

    assert pairs_of(found_in(first, second, clusters, M)) == [(0, 0)]
    assert pairs_of(found_in(first, second, clusters, M, second_needed=True)) == []


def test_an_ambiguous_or_unlike_best_candidate_is_dropped():
    clusters = one_hot(0, 1, 2), one_hot(0, 0, 0)

    assert pairs_of(found_in(directions(0, 0, 0), directions(5, 20, 90), clusters, M)) == []  # 0.94 / 1.00
    assert pairs_of(found_in(directions(0, 0, 0), directions(5, 70, 90), clusters, M)) == [(0, 0)]  # 0.34 / 1.00
    assert pairs_of(found_in(directions(0, 0, 0), directions(40, 90, 90), clusters, M)) == []  # 0.77


def test_pairs_of_photos_are_independent_and_may_be_searched_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(1, 32, 25, generator=generator) + 0.3 * torch.randn(3, 32, 25, generator=generator)
    plan = torch.randn(1, 4, 25, generator=generator).expand(3, -1, -1).softmax(dim=1)
    mask = torch.rand(3, 25, generator=generator)
    pairs = torch.tensor([[0, 1], [2, 0], [1, 2]])

    together = pseudo_correspondences(patches, plan, mask, pairs, CorrespondenceRules())
    monkeypatch.setattr(local, "COSINES_AT_ONCE", 1)
    apart = pseudo_correspondences(patches, plan, mask, pairs, CorrespondenceRules())

    assert len(together.anchor) > 10
    assert together.photo.unique_consecutive().tolist() == [0, 2, 1]
    assert torch.equal(together.anchor, apart.anchor)
    assert torch.equal(together.positive, apart.positive)
    assert torch.equal(together.other, apart.other)
    assert (together.similarity - apart.similarity).abs().max() < 1e-6


def test_no_pairs_of_photos_or_no_sure_patches_is_an_answer():
    patches, plan = torch.zeros(2, 4, 9), torch.full((2, 3, 9), 1 / 3)

    for pairs in (THERE, torch.empty(0, 2, dtype=torch.long)):
        found = pseudo_correspondences(patches, plan, torch.zeros(2, 9), pairs, CorrespondenceRules())
        assert len(found.photo) == len(found.similarity) == 0


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("g", [9, 16, 23])
def test_a_patch_has_the_mean_of_its_own_pixels_at_every_stride(g: int, stride: int):
    """A map that grows by one a row: the mean of a patch's pixels is where its centre lies, to within a pixel or two."""
    side = 4 * g - 3
    rows = torch.arange(side).float()[::stride]
    ramp = torch.stack([rows[:, None].expand(-1, len(rows)), rows[None].expand(len(rows), -1)])[None]

    seen = patch_features(ramp, g).view(2, g, g)

    row, column = torch.meshgrid(patch_centres(g), patch_centres(g), indexing="ij")
    off = (seen - torch.stack([row, column])).abs().max()
    assert off < 1e-4 if stride == 1 else off <= 2
    if stride == 4:
        assert torch.equal(seen[0, :, 0], rows)  # the only pixel of each patch


def test_the_correspondence_loss_weights_sure_pairs_more():
    anchor, positive = directions(0, 0).T, directions(0, 90).T

    loss = correspondence_loss(anchor, positive, torch.tensor([0.0, 1.0]))

    assert loss.item() == pytest.approx(2.71828 / 3.71828, abs=1e-5)


def test_the_correspondence_loss_teaches_features_and_never_their_sureness():
    anchor, similarity = directions(0, 30).T.requires_grad_(), torch.tensor([0.9, 0.8], requires_grad=True)

    correspondence_loss(anchor, directions(20, 40).T, similarity).backward()

    assert anchor.grad is not None
    assert similarity.grad is None


def test_without_correspondences_or_with_blank_features_the_loss_is_finite():
    none = torch.empty(0, 4, requires_grad=True)

    loss = correspondence_loss(none, none, torch.empty(0))
    loss.backward()

    assert loss.item() == 0
    blank = torch.zeros(2, 4, requires_grad=True)
    correspondence_loss(blank, torch.ones(2, 4), torch.ones(2)).backward()
    assert blank.grad is not None
    assert blank.grad.isfinite().all()
