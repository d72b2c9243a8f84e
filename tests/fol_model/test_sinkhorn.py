"""The shares that patches give to clusters and dustbin."""

import numpy as np
import pytest
import torch

from fol_model.sinkhorn import transport_plan


def test_each_patch_gives_away_exactly_one():
    plan = transport_plan(torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 12))

    assert plan.shape == (2, 6, 12)
    np.testing.assert_allclose(plan.sum(dim=1), 1, rtol=1e-6)


def test_equal_scores_share_equally():
    """Four patches, three clusters of mass 1 each, a dustbin of mass 4 - 3 = 1: a quarter for each."""
    np.testing.assert_allclose(transport_plan(torch.zeros(1, 3, 4), torch.zeros(1, 4)), 0.25, rtol=1e-6)


def test_the_dustbin_takes_what_the_clusters_do_not():
    """Ten equal patches, two clusters: each patch keeps 1/10 for either and gives 8/10 to the dustbin."""
    plan = transport_plan(torch.zeros(1, 2, 10), torch.zeros(1, 10))

    assert plan[0, :, 0].tolist() == pytest.approx([0.1, 0.1, 0.8])


def test_a_patch_with_a_higher_dustbin_score_gives_more_to_the_dustbin():
    plan = transport_plan(torch.zeros(1, 2, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))

    assert plan[0, -1].argmax() == 1


def test_large_scores_do_not_overflow():
    plan = transport_plan(torch.tensor([[[1000.0, 0, 0]]]), torch.zeros(1, 3))

    np.testing.assert_allclose(plan.sum(dim=1), 1, rtol=1e-6)
    assert plan[0, :, 0].argmax() == 0


def test_as_many_patches_as_clusters_are_refused():
    with pytest.raises(ValueError, match="got 3 patches for 3 clusters"):
        transport_plan(torch.zeros(1, 3, 3), torch.zeros(1, 3))
