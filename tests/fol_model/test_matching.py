"""Which features match, on directions in the plane whose cosines a reader can check."""

import math

import pytest
import torch
from jaxtyping import Float32
from torch import Tensor

from fol_model import count_mutual_matches
from fol_model.matching import mutual_nearest, mutual_pairs


def directions(*degrees: float) -> Float32[Tensor, "n 2"]:
    """Unit vectors."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_a_feature_whose_favourite_prefers_another_is_left_alone():
    """Both query directions like 15° best, but 15° likes 20° better than 0°."""
    query, candidate = directions(0, 20), directions(15, 180)

    assert mutual_nearest(query, candidate).tolist() == [[1, 0]]


def test_pairs_come_in_query_order():
    assert mutual_nearest(directions(90, 0), directions(1, 89)).tolist() == [[0, 1], [1, 0]]


def test_a_pair_at_the_least_cosine_is_dropped():
    """Two pairs: cosine 1 and, 60° apart, 0.5."""
    query, candidate = directions(0, 90), directions(0, 150)
    cosine = mutual_pairs(query, candidate).cosine[1].item()

    assert cosine == pytest.approx(0.5)
    assert len(mutual_nearest(query, candidate, min_cosine=cosine)) == 1
    assert len(mutual_nearest(query, candidate, min_cosine=cosine - 1e-6)) == 2


def test_of_equal_candidates_the_first_is_chosen():
    query, candidate = directions(0), directions(0, 0)

    assert mutual_nearest(query, candidate).tolist() == [[0, 0]]


def test_of_equal_query_features_the_first_is_chosen():
    assert mutual_nearest(directions(0, 0), directions(0)).tolist() == [[0, 0]]


@pytest.mark.parametrize(("queries", "candidates"), [(0, 2), (2, 0), (0, 0)])
def test_no_features_give_no_matches(queries: int, candidates: int):
    assert mutual_nearest(torch.zeros(queries, 2), torch.zeros(candidates, 2)).shape == (0, 2)
    assert count_mutual_matches(torch.zeros(queries, 2), torch.zeros(candidates, 2)) == 0


def test_the_references_count_ignores_a_lone_pair_and_ours_does_not():
    """Also where there are more features: 0° and 10° choose each other, nothing chooses 170°, which prefers 10° itself."""
    query, candidate = directions(0, 170), directions(10)

    assert mutual_nearest(query, candidate).tolist() == [[0, 0]]
    assert count_mutual_matches(query, candidate) == 0


def test_the_references_count_keeps_one_good_pair_beside_a_bad_one():
    """Two pairs choose each other, one of them above the least cosine: only a pair that is alone to begin with is lost."""
    assert count_mutual_matches(directions(0, 90), directions(5, 150)) == 1


def test_the_count_takes_arrays_as_well_as_tensors():
    query, candidate = directions(0, 90), directions(1, 91)

    assert count_mutual_matches(query.numpy(), candidate.numpy()) == count_mutual_matches(query, candidate) == 2


@pytest.mark.parametrize("min_cosine", [-1.5, 1.01])
def test_a_least_cosine_outside_its_range_is_refused(min_cosine: float):
    with pytest.raises(ValueError, match="between -1 and 1"):
        count_mutual_matches(directions(0), directions(0), min_cosine=min_cosine)
    with pytest.raises(ValueError, match="between -1 and 1"):
        mutual_nearest(directions(0), directions(0), min_cosine=min_cosine)
