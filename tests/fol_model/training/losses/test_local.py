"""Mutual nearest neighbours in batches, and their loss where there is nothing to match."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fol_model.matching import mutual_pairs
from fol_model.training.losses import local
from fol_model.training.losses.local import local_loss, mutual_similarity, nearest


def features(seed: int, *shape: int) -> Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def directions(*degrees: float) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], dim=1)[None]


def test_pairs_are_those_of_matching_whatever_the_padding():
    query, candidate = features(0, 3, 20, 8), features(1, 3, 15, 8)
    query[1, 12:] = 0
    candidate[1, 9:] = 0

    found = nearest(query, candidate)

    for i, (q, c) in enumerate([(20, 15), (12, 9), (20, 15)]):
        pairs = mutual_pairs(query[i, :q], candidate[i, :c])
        assert found.mutual[i].nonzero().flatten().tolist() == pairs.query.tolist()
        assert found.choice[i][found.mutual[i]].tolist() == pairs.candidate.tolist()


def test_only_pairs_above_the_threshold_are_averaged():
    """0 and 90 degrees find 10 and 150: cosines 0.98 and 0.5."""
    similarity = mutual_similarity(directions(0, 90), directions(10, 150))

    assert similarity.item() == pytest.approx(0.98481, abs=1e-5)


def test_where_no_pair_is_above_the_threshold_all_mutual_pairs_are_averaged():
    similarity = mutual_similarity(directions(0, 90), directions(-60, 150))

    assert similarity.item() == pytest.approx(0.5, abs=1e-6)


def test_photos_without_features_or_with_blank_ones_have_similarity_zero_and_finite_gradients():
    blank = torch.zeros(2, 5, 4, requires_grad=True)
    some = features(2, 2, 5, 4).requires_grad_()

    similarity = mutual_similarity(blank, some)
    similarity.sum().backward()

    assert similarity.tolist() == [0, 0]
    assert blank.grad is not None
    assert blank.grad.isfinite().all()
    assert mutual_similarity(some[:, :0], some).tolist() == [0, 0]
    assert local_loss(torch.zeros(3, 0, 4), torch.tensor([[0, 1, 2]])).item() == 0
    assert local_loss(torch.zeros(3, 6, 4), torch.tensor([[0, 1, 2]])).item() == 0


def test_without_triplets_the_loss_is_zero():
    assert local_loss(features(3, 2, 5, 4), torch.empty(0, 3, dtype=torch.long)).item() == 0


def test_a_nearer_negative_costs_the_difference_and_a_farther_one_nothing():
    anchor, near, far = directions(0, 90)[0], directions(5, 95)[0], directions(25, 115)[0]
    photos = torch.stack([anchor, near, far])

    assert local_loss(photos, torch.tensor([[0, 2, 1]])).item() == pytest.approx(0.99619 - 0.90631, abs=1e-5)
    assert local_loss(photos, torch.tensor([[0, 1, 2]])).item() == 0


def test_the_loss_depends_neither_on_the_order_of_features_nor_of_triplets(monkeypatch: pytest.MonkeyPatch):
    photos, triplets = features(4, 6, 30, 8), torch.tensor([[0, 1, 2], [1, 0, 5], [3, 4, 0], [4, 3, 1]])
    loss = local_loss(photos, triplets)
    assert loss > 0

    shuffled = photos[:, torch.randperm(30, generator=torch.Generator().manual_seed(5))]
    assert abs(local_loss(shuffled, triplets.flip(0)) - loss) < 1e-6

    monkeypatch.setattr(local, "COSINES_AT_ONCE", 900)  # one triplet at a time
    assert abs(local_loss(photos, triplets) - loss) < 1e-6


def test_the_gradient_is_that_of_the_whole_matrix_of_cosines():
    query, candidate = features(6, 1, 12, 8).requires_grad_(), features(7, 1, 12, 8).requires_grad_()
    mutual_similarity(query, candidate, min_cosine=-1.0).sum().backward()
    found = query.grad

    query.grad = None
    pairs = mutual_pairs(query[0], candidate[0])
    (query[0] @ candidate[0].T)[pairs.query, pairs.candidate].mean().backward()

    assert found is not None
    assert query.grad is not None
    assert (found - query.grad).abs().max() < 1e-7
