"""Which patches keep their local features, in which order, and what a stride leaves out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fol_model.local_decoder import LocalDecoder, most_confident, pack, patch_of_row
from fol_model.recipes import tiny


def test_the_most_confident_patches_are_kept_and_of_equal_ones_the_first():
    confidence = torch.tensor([[0.1, 0.5, 0.3, 0.3, 0.3]])

    assert most_confident(confidence, 3).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("grid_side", [16, 18, 22, 23, 36, 37])
def test_map_rows_lie_in_the_patches_that_nearest_up_sampling_takes_them_from(grid_side: int):
    """Compared with up-sampling a whole mask, as the reference does; 36 is where integer arithmetic and float32 could part."""
    numbered = torch.arange(grid_side**2, dtype=torch.float32).view(1, 1, grid_side, grid_side)
    up_sampled = functional.interpolate(numbered, size=4 * grid_side - 3, mode="nearest")[0, 0]
    rows = patch_of_row(grid_side, 1)

    assert torch.equal(rows[:, None] * grid_side + rows, up_sampled.long())


@pytest.mark.parametrize("grid_side", [16, 23, 36, 37])
def test_at_stride_4_every_patch_has_exactly_one_row(grid_side: int):
    assert patch_of_row(grid_side, 4).tolist() == list(range(grid_side))


@pytest.mark.parametrize("grid_side", [16, 23, 36, 37])
def test_each_patch_covers_three_or_four_rows_of_the_map(grid_side: int):
    assert set(patch_of_row(grid_side, 1).bincount().tolist()) <= {3, 4}


@pytest.mark.parametrize("stride", [2, 4])
def test_a_stride_computes_the_rows_and_columns_that_the_whole_map_has_there(stride: int):
    torch.manual_seed(0)
    whole = LocalDecoder(replace(tiny(), local_stride=1))
    strided = LocalDecoder(replace(tiny(), local_stride=stride))
    strided.load_state_dict(whole.state_dict())
    patches = torch.randn(2, 96, 16, 16)

    with torch.no_grad():
        np.testing.assert_allclose(strided(patches), whole(patches)[:, :, ::stride, ::stride], rtol=1e-4, atol=1e-5)


def test_features_are_packed_in_raster_order_with_their_patches_and_normalised():
    """A grid of 2 x 2 patches has a map of 5 x 5; rows 0 to 2 belong to patch row 0, rows 3 and 4 to patch row 1."""
    rows = patch_of_row(2, 1)
    dense = torch.arange(1, 26, dtype=torch.float32).view(1, 5, 5).repeat(2, 1, 1)  # both channels equal
    mask = torch.tensor([[False, True], [False, False]])

    packed = pack(dense, mask, rows)

    assert rows.tolist() == [0, 0, 0, 1, 1]
    assert packed.patch.tolist() == [[0, 1]] * 6
    np.testing.assert_allclose(packed.features, np.full((6, 2), 0.5**0.5), rtol=1e-6)
