"""Which photos are compared, and that a batch with nothing to compare is no error."""

import torch
from torch.nn import functional

from fol_model.training.losses.metric import batch_hard_triplets, mine_pairs, multi_similarity, photos_of_a_place


def unit_vectors(*degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_each_photo_is_compared_with_its_farthest_positive_and_nearest_negative():
    descriptors = unit_vectors(0, 10, 50, 70, 180)

    triplets = batch_hard_triplets(descriptors, torch.tensor([1, 1, 1, 2, 2]))

    assert triplets.tolist() == [[0, 2, 3], [1, 2, 3], [2, 0, 3], [3, 4, 2], [4, 3, 2]]


def test_a_place_with_one_photo_is_a_negative_for_others_and_no_anchor():
    triplets = batch_hard_triplets(unit_vectors(0, 10, 50), torch.tensor([7, 7, 3]))

    assert triplets.tolist() == [[0, 1, 2], [1, 0, 2]]


def test_well_separated_places_leave_nothing_to_mine():
    descriptors, places = unit_vectors(0, 1, 180, 181), torch.tensor([0, 0, 1, 1])

    pairs = mine_pairs(descriptors, places)

    assert pairs.number == 0
    assert multi_similarity(descriptors, places, pairs).item() == 0


def test_a_batch_of_one_place_or_of_lone_photos_costs_nothing_and_can_be_learnt_from():
    descriptors = functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()

    for places in (torch.zeros(4, dtype=torch.long), torch.arange(4)):
        loss = multi_similarity(descriptors, places, mine_pairs(descriptors, places))
        loss.backward()

        assert loss.item() == 0
        assert batch_hard_triplets(descriptors, places).shape == (0, 3)


def test_the_global_loss_does_not_depend_on_the_order_of_the_photos():
    generator = torch.Generator().manual_seed(1)
    descriptors = functional.normalize(torch.randn(12, 16, generator=generator), dim=1)
    places, shuffled = torch.arange(12) // 3, torch.randperm(12, generator=generator)

    loss = multi_similarity(descriptors, places, mine_pairs(descriptors, places))
    again = multi_similarity(descriptors[shuffled], places[shuffled], mine_pairs(descriptors[shuffled], places[shuffled]))

    assert abs(loss - again) < 1e-6
    assert loss > 0


def test_photos_of_a_place_are_paired_both_ways_and_never_with_themselves():
    assert photos_of_a_place(torch.tensor([5, 2, 5, 9])).tolist() == [[0, 2], [2, 0]]
