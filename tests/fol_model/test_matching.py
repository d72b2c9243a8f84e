"""Which features match, on directions in the plane whose cosines a reader can check."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float32, Int8
from torch import Tensor

from fol_model import count_mutual_matches, matching
from fol_model.matching import Features, Matches, blocks_of, from_stored, match_block, mutual_nearest, mutual_pairs, to_codes


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


# ------------------------------------------------------------------------------------------- one query, many candidates


def random_codes(seed: int, count: int, *, dim: int = 48, largest: int = 7) -> Int8[np.ndarray, "n D"]:
    """Few different numbers and some equal features, so that ties come up."""
    codes = np.random.default_rng(seed).integers(-largest, largest + 1, (count, dim)).astype(np.int8)
    codes[count // 2 :: 3] = codes[: len(codes[count // 2 :: 3])]
    return codes


def ready(codes: Int8[np.ndarray, "n D"]) -> Features:
    return from_stored(codes, as_codes=True, device=torch.device("cpu"))


def pairs_by_the_book(
    query: Int8[np.ndarray, "Q D"], candidate: Int8[np.ndarray, "C D"], min_cosine: float
) -> list[tuple[int, int]]:
    """In whole numbers and float32, one pair after the other."""
    if not len(query) or not len(candidate):
        return []
    inverse = [
        np.float32(1) / np.sqrt(np.maximum((f.astype(np.int64) ** 2).sum(1), 1).astype(np.float32)) for f in (query, candidate)
    ]
    products = (query.astype(np.int64) @ candidate.astype(np.int64).T).astype(np.float32)
    cosine = products * inverse[0][:, None] * inverse[1]
    found: list[tuple[int, int]] = []
    for row in range(len(query)):
        column = int(cosine[row].argmax())
        is_new = all(column != other for _, other in found)
        if cosine[row, column] == cosine[:, column].max() and cosine[row, column] > min_cosine and is_new:
            found.append((row, column))
    return found


def listed(found: Matches, place: int) -> list[tuple[int, int]]:
    mine = found.place == place
    return list(zip(found.query[mine].tolist(), found.candidate[mine].tolist(), strict=True))


@given(
    seed=st.integers(0, 1000),
    query=st.integers(0, 40),
    sizes=st.lists(st.integers(0, 40), max_size=6),
    block=st.sampled_from([1, 50, 300, 2**19]),
    dim=st.sampled_from([1, 3, 48]),
)
def test_codes_match_by_the_book_however_they_are_cut_into_blocks(seed: int, query: int, sizes: list[int], block: int, dim: int):
    here = random_codes(seed, query, dim=dim)
    there = [random_codes(seed + 1 + place, size, dim=dim) for place, size in enumerate(sizes)]
    there = [np.concatenate([one[1:], here[:1]]) if len(one) and query else one for one in there]  # at least one alike
    found: list[list[tuple[int, int]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "BLOCK", block)
        for part in blocks_of(ready(here), sizes):
            matches = match_block(ready(here), [ready(one) for one in there[part]], min_cosine=0.3)
            found += [listed(matches, place) for place in range(len(there[part]))]
            assert matches.counts.tolist() == [len(pairs) for pairs in found[part]]

    assert found == [pairs_by_the_book(here, one, 0.3) for one in there]


@given(seed=st.integers(0, 1000), query=st.integers(1, 60), candidate=st.integers(1, 60), block=st.sampled_from([1, 100, 2**19]))
def test_floats_match_as_two_searches_for_the_highest_cosine_do(seed: int, query: int, candidate: int, block: int):
    generator = torch.Generator().manual_seed(seed)
    here, there = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator)) for n in (query, candidate))
    cosine = here @ there.T
    expected = [(u, v) for u, v in enumerate(cosine.argmax(1).tolist()) if cosine[:, v].argmax() == u]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "BLOCK", block)
        found = match_block(Features(vectors=here), [Features(vectors=there)], min_cosine=-1.0)

    assert listed(found, 0) == expected


@given(seed=st.integers(0, 1000), largest=st.sampled_from([7, 127]))
def test_a_code_points_where_its_feature_does(seed: int, largest: int):
    """Within half a step in each number."""
    features = np.random.default_rng(seed).normal(size=(9, 48)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)

    codes = to_codes(features, largest)

    step = np.abs(features).max(axis=1, keepdims=True) / largest
    assert np.abs(codes).max(axis=1).tolist() == [largest] * 9
    assert (np.abs(codes * step - features) <= step * 0.6).all()


def test_a_candidate_without_features_may_be_of_any_size_beside_others():
    here, nothing = (
        ready(random_codes(0, 5, dim=8)),
        from_stored(np.empty((0, 1), np.int8), as_codes=True, device=torch.device("cpu")),
    )

    assert match_block(here, [nothing, here, nothing], min_cosine=0.5).counts.tolist() == [0, 5 - 1, 0]


def test_features_of_nothing_become_codes_that_match_nothing():
    blank = ready(to_codes(np.zeros((3, 8), np.float32)))

    assert match_block(blank, [blank, ready(random_codes(0, 4, dim=8))], min_cosine=0.1).counts.tolist() == [0, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_finds_the_same_pairs_of_codes():
    here, there = random_codes(0, 500, largest=127), [random_codes(n, 400 + n, largest=127) for n in range(1, 9)]
    on_gpu = [from_stored(one, as_codes=True, device=torch.device("cuda")) for one in (here, *there)]

    found = match_block(on_gpu[0], on_gpu[1:], min_cosine=0.2)
    expected = match_block(ready(here), [ready(one) for one in there], min_cosine=0.2)

    assert [listed(found, place) for place in range(8)] == [listed(expected, place) for place in range(8)]
    assert found.cosine.tobytes() == expected.cosine.tobytes()
