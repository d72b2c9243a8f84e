"""The network's input: what the formula gives, to the bit, however little memory it is made in."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fol_model.preprocessing import MEAN, STD, normalised, prepare


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (300, 2), (70, 70), (333, 500), (1080, 1920)])
def test_the_input_is_normalised_first_and_then_resized_whole(shape: tuple[int, int], antialias: bool):
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)

    found = prepare(photo, 70, antialias=antialias)

    # As the reference has it: one colour behind the other in memory.
    one_by_one = torch.from_numpy(photo.transpose(2, 0, 1).copy()).float().div(255)
    one_by_one = (one_by_one - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    whole = functional.interpolate(one_by_one[None], size=(70, 70), mode="bilinear", antialias=antialias)[0]
    assert torch.equal(normalised(photo), one_by_one)
    assert torch.equal(found, whole)
    assert found.is_contiguous()
