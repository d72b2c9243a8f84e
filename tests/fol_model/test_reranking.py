"""Local similarity and its fusion with the global cosine, on numbers small enough to check."""

from dataclasses import replace
from itertools import pairwise
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fol_model.config import PoolConfig, RerankConfig
from fol_model.matching import Features, from_stored, to_codes
from fol_model.reranking import (
    COMMON,
    COMPARED,
    DISTINCT,
    LEAST_DEVIATION,
    Comparison,
    LocalSide,
    best_first,
    bounded_similarity,
    compare,
    fused_scores,
    is_enough,
    matched_size,
    matched_stages,
    ranking_scores,
)

ADAPTIVE, COUNT, PAPER = RerankConfig(mode="adaptive"), RerankConfig(mode="count"), RerankConfig(mode="paper", gamma=10.0)


def side(reliability: list[int], *, dim: int = 4) -> LocalSide:
    """Features along the axes, so that equal places match with cosine 1 and others with 0."""
    return LocalSide(features=Features(vectors=torch.eye(dim)[: len(reliability)]), reliability=np.array(reliability, np.uint8))


def local_score(query: LocalSide, candidate: LocalSide, config: RerankConfig) -> float:
    return float(compare(query, [candidate], config).local_scores[0])


def test_matches_add_the_geometric_mean_of_their_reliabilities():
    """sqrt(1 * 0.2) + sqrt(0.8 * 1)."""
    comparison = compare(side([255, 204]), [side([51, 255])], PAPER)

    assert comparison.matches.tolist() == [2]
    assert comparison.local_scores.tolist() == pytest.approx([0.2**0.5 + 0.8**0.5])


def test_the_cosine_of_a_match_counts_unless_it_is_switched_off():
    """Two matches, one with cosine 1, one with 0.8."""
    query = side([255, 255])
    turned = Features(vectors=torch.tensor([[1.0, 0, 0, 0], [0, 0.8, 0.6, 0]]))
    candidate = LocalSide(features=turned, reliability=np.array([255, 255], np.uint8))

    assert local_score(query, candidate, PAPER) == pytest.approx(1.8)
    assert local_score(query, candidate, replace(PAPER, cosine_weight=False)) == pytest.approx(2.0)


def test_equal_reliability_without_cosines_orders_as_the_count_does():
    """Every match adds the same 0.2; candidates of several sizes lie side by side."""
    config = replace(PAPER, cosine_weight=False)
    compared = compare(side([51] * 4), [side([51] * n) for n in (2, 3, 0, 4)], config)

    assert compared.local_scores.tolist() == pytest.approx([0.4, 0.6, 0.0, 0.8])


def test_a_photo_is_as_similar_to_itself_as_can_be():
    itself = side([255, 80, 180])

    assert local_score(itself, itself, ADAPTIVE) == pytest.approx(1.0)


def test_a_photo_without_features_or_reliability_has_no_similarity():
    assert local_score(side([]), side([255]), ADAPTIVE) == 0
    assert local_score(side([255]), side([]), ADAPTIVE) == 0
    assert local_score(side([0, 0]), side([255, 255]), ADAPTIVE) == 0
    assert compare(side([255]), [], ADAPTIVE).local_scores.tolist() == []


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=30))
def test_the_bounded_similarity_stays_between_0_and_1(reliabilities: list[tuple[int, int]]):
    """All features match perfectly, the most that S_l can be."""
    query, candidate = (side(list(values), dim=len(values)) for values in zip(*reliabilities, strict=True))
    most = np.sqrt(query.reliability / 255 * (candidate.reliability / 255)).sum(keepdims=True)

    assert 0 <= bounded_similarity(most, np.sqrt([query.total * candidate.total]))[0] <= 1 + 1e-6


def test_a_lone_pair_counts_nothing_in_mode_count_and_one_elsewhere():
    """Also beside a candidate with two pairs; a lone pair is one that is alone whatever the least cosine."""
    candidates = [side([255]), side([255, 255])]

    assert compare(side([255, 255]), candidates, COUNT).local_scores.tolist() == [0, 2]
    assert compare(side([255, 255]), candidates, PAPER).matches.tolist() == [1, 2]


def test_codes_and_floats_of_the_same_features_score_alike():
    """What rounding to a byte costs."""
    random = np.random.default_rng(0)
    floats = random.normal(size=(2, 40, 64)).astype(np.float32)
    floats[1, :20] = floats[0, :20] + random.normal(scale=0.3, size=(20, 64))
    floats /= np.linalg.norm(floats, axis=2, keepdims=True)
    reliability = np.full(40, 200, np.uint8)
    exact, coded = (
        [
            LocalSide(features=from_stored(one, as_codes=codes, device=torch.device("cpu")), reliability=reliability)
            for one in floats
        ]
        for codes in (False, True)
    )

    assert compare(exact[0], [exact[1]], PAPER).matches[0] == compare(coded[0], [coded[1]], PAPER).matches[0] == 20
    assert local_score(exact[0], exact[1], ADAPTIVE) == pytest.approx(local_score(coded[0], coded[1], ADAPTIVE), abs=1e-3)


# ------------------------------------------------------------------------- what sets a candidate apart from the others


def photos_like(query: LocalSide, count: int, seed: int) -> list[LocalSide]:
    """Candidates whose features resemble those of the query more or less; a few candidates have none."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        n = 0 if number % 7 == 3 else int(random.integers(1, 2 * len(query.reliability)))
        like = query.features.vectors.numpy()[random.integers(0, len(query.reliability), n)]
        noisy = like + random.normal(scale=random.uniform(0.05, 0.4), size=like.shape)
        made.append(photo_of(noisy / np.linalg.norm(noisy, axis=1, keepdims=True), random))
    return made


def photo_of(features: np.ndarray, random: np.random.Generator) -> LocalSide:
    codes = to_codes(features.astype(np.float32))
    reliability = random.integers(1, 256, len(codes)).astype(np.uint8)
    return LocalSide(features=from_stored(codes, as_codes=True, device=torch.device("cpu")), reliability=reliability)


def some_query(seed: int) -> LocalSide:
    random = np.random.default_rng([seed, 1])
    features = random.normal(size=(12, 8))
    return photo_of(features / np.linalg.norm(features, axis=1, keepdims=True), random)


def in_blocks(query: LocalSide, candidates: list[LocalSide], sizes: list[int]) -> list[Comparison]:
    cuts = np.clip(np.cumsum([0, *sizes]), 0, len(candidates)).tolist()
    blocks = [candidates[start:stop] for start, stop in pairwise([*cuts, len(candidates)])]
    return [compare(query, block, ADAPTIVE) for block in blocks]


def plainly(query: LocalSide, candidates: list[LocalSide]) -> list[float]:
    """D'_l as its definition says it, a candidate and a pair at a time."""
    alone = [compare(query, [one], ADAPTIVE) for one in candidates]
    scores = []
    for place, one in enumerate(alone):
        total = 0.0
        for feature, cosine, weight in zip(one.pairs.query, one.pairs.cosine, one.weights, strict=True):
            others = [
                float(other.pairs.nearest[0, feature])
                for number, other in enumerate(alone[:COMPARED])
                if number != place and len(candidates[number].reliability)
            ]
            lead = inf
            if others:
                lead = (float(cosine) - np.mean(others)) / np.sqrt(np.var(others) + LEAST_DEVIATION**2)
            total += float(weight) * min(max((lead - COMMON) / (DISTINCT - COMMON), 0), 1)
        scores.append(total / one.possible[0] if one.possible[0] else 0.0)
    return scores


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 45), st.lists(st.integers(1, 30), max_size=4))
def test_what_sets_a_candidate_apart_is_its_definition_and_depends_neither_on_blocks_nor_on_who_comes_later(
    seed: int, count: int, sizes: list[int]
):
    query = some_query(seed)
    candidates = photos_like(query, count, seed)

    scores = ranking_scores(in_blocks(query, candidates, []), ADAPTIVE)

    np.testing.assert_allclose(scores, plainly(query, candidates), atol=1e-6)
    assert ranking_scores(in_blocks(query, candidates, sizes), ADAPTIVE).tobytes() == scores.tobytes()
    pool = candidates[: max(COMPARED, count // 2)]
    assert ranking_scores(in_blocks(query, pool, sizes), ADAPTIVE).tobytes() == scores[: len(pool)].tobytes()
    local = np.concatenate([one.local_scores for one in in_blocks(query, candidates, [])])
    assert (scores >= 0).all()
    assert (scores <= local + 1e-6).all()


def test_what_every_candidate_shows_counts_nothing_and_what_one_alone_shows_counts_in_full():
    """Each shows the first two features of the query, the last also its third."""
    same, special = side([255, 255]), side([255, 255, 255])
    compared = [compare(side([255, 255, 255]), [same, same, same, special], ADAPTIVE)]

    assert compared[0].local_scores.tolist() == pytest.approx([2 / 6**0.5] * 3 + [1])
    assert ranking_scores(compared, ADAPTIVE).tolist() == pytest.approx([0, 0, 0, 1 / 3])


def test_a_candidate_with_nobody_beside_it_is_set_apart_by_all_it_shows():
    compared = [compare(side([255, 255]), [side([]), side([255, 255])], ADAPTIVE)]

    assert ranking_scores(compared, ADAPTIVE).tolist() == pytest.approx([0, 1])
    assert ranking_scores([], ADAPTIVE).tolist() == []


@pytest.mark.parametrize("config", [COUNT, PAPER])
def test_the_other_modes_rank_by_their_local_scores(config: RerankConfig):
    compared = [compare(side([255, 255]), [side([255, 255]), side([255, 255])], config)]

    assert ranking_scores(compared, config).tolist() == compared[0].local_scores.tolist() == pytest.approx([2, 2])


# --------------------------------------------------------------------------------------------------------------- fusion


def test_mode_count_scores_by_matches_alone():
    scores = fused_scores(COUNT, np.array([0.9, 0.8, 0.1]), np.array([3.0, 7.0, 5.0]))

    assert scores.tolist() == [3, 7, 5]
    assert best_first(scores, COUNT).tolist() == [1, 2, 0]


def test_mode_paper_adds_gamma_times_the_cosine():
    """10 * 0.9 + 3 = 12 and 10 * 0.5 + 8 = 13."""
    scores = fused_scores(PAPER, np.array([0.9, 0.5]), np.array([3.0, 8.0]))

    assert scores.tolist() == pytest.approx([12, 13])


def test_mode_adaptive_lets_local_evidence_decide_where_the_global_ranking_is_level():
    """The background of 0.5 and 0.4 is 0.45."""
    config = replace(ADAPTIVE, local_weight=0.5)
    scores = fused_scores(config, np.array([0.8, 0.8, 0.5, 0.4]), np.array([0.1, 0.6]))

    assert scores.tolist() == pytest.approx([0.35 + 0.05, 0.35 + 0.3])
    assert best_first(scores, config).tolist() == [1, 0]


def test_mode_adaptive_keeps_a_clear_global_winner_unless_local_evidence_is_overwhelming():
    config, cosines = replace(ADAPTIVE, local_weight=0.5), np.array([0.9, 0.6, 0.5, 0.3])

    assert best_first(fused_scores(config, cosines, np.array([0.1, 0.6])), config).tolist() == [0, 1]
    assert best_first(fused_scores(config, cosines, np.array([0.1, 0.9])), config).tolist() == [1, 0]


def test_a_photo_with_nothing_in_common_scores_about_nothing_in_mode_adaptive():
    assert fused_scores(ADAPTIVE, np.array([0.2]), np.array([0.0])).tolist() == [0]
    assert fused_scores(ADAPTIVE, np.array([]), np.array([])).tolist() == []


def test_equal_scores_keep_the_global_order_but_in_mode_count_they_turn_it_around():
    """As the reference does, which sorts by rising score and reads it backwards."""
    scores = np.array([2, 5, 2, 5, 2], np.float32)

    assert best_first(scores, ADAPTIVE).tolist() == best_first(scores, PAPER).tolist() == [1, 3, 0, 2, 4]
    assert best_first(scores, COUNT).tolist() == [3, 1, 4, 2, 0]


# ----------------------------------------------------------------------------------------------- when matching is enough

FLAT = np.linspace(0.5, 0.4, 100)
"""Cosines that decide nothing."""


def quiet(*, best: float, seed: int = 0) -> np.ndarray:
    """D'_l of a hundred candidates, of which the fourth has `best` and the others hardly any."""
    ranking = np.random.default_rng(seed).uniform(0, 0.01, 100)
    ranking[3] = best
    return ranking


def test_twenty_are_enough_where_one_is_set_apart_and_all_are_matched_where_none_is():
    assert matched_size(quiet(best=0.3), FLAT, ADAPTIVE) == 20
    assert matched_size(quiet(best=0.01), FLAT, ADAPTIVE) == 100


def test_matching_ends_where_the_best_leads_what_is_feared_of_the_next_and_not_a_hair_before():
    """By the book: fused score of the best against cosine of the 21st and weighted mean and 3.5 deviations of the others."""
    ranking = quiet(best=0.0)[:20]
    others = np.delete(ranking, 3)
    mu = FLAT[50:].mean()
    feared = FLAT[20] - mu + 4 * (others.mean() + 3.5 * (others.std() + 0.006))
    for more, enough in ((1e-5, True), (-1e-5, False)):
        ranking[3] = (feared + more - (FLAT[3] - mu)) / 4
        assert is_enough(ranking, FLAT, ADAPTIVE) is enough


@given(st.integers(0, 1000), st.floats(0, 0.3), st.floats(0, 8), st.floats(0, 8))
def test_the_more_is_feared_the_longer_matching_goes_on(seed: int, best: float, one: float, other: float):
    ranking = quiet(best=best, seed=seed)
    little, much = (matched_size(ranking, FLAT, replace(ADAPTIVE, enough=enough)) for enough in sorted([one, other]))

    assert little <= much
    assert {little, much} <= set(matched_stages(FLAT, ADAPTIVE))


@given(st.integers(0, 1000), st.floats(0, 0.3))
def test_what_lies_behind_the_pool_never_changes_its_size(seed: int, best: float):
    ranking = quiet(best=best, seed=seed)
    size = matched_size(ranking, FLAT, ADAPTIVE)
    changed = np.concatenate([ranking[:size], np.random.default_rng(seed).uniform(0, 1, 100 - size)])

    assert matched_size(changed, FLAT, ADAPTIVE) == size


def test_pools_that_are_fixed_small_or_of_another_mode_are_matched_as_they_are():
    assert matched_stages(FLAT, ADAPTIVE) == [20, 40, 100]
    assert matched_stages(FLAT[:30], ADAPTIVE) == [20, 30]
    assert matched_stages(FLAT[:20], ADAPTIVE) == [20]
    assert matched_stages(np.concatenate([[0.9], FLAT[1:] / 2]), ADAPTIVE) == [1]
    assert matched_stages(FLAT, replace(ADAPTIVE, pool=PoolConfig(fixed_size=100))) == [100]
    assert matched_stages(FLAT, replace(ADAPTIVE, enough=None)) == [100]
    assert matched_stages(FLAT, COUNT) == [100]
    assert matched_stages(np.empty(0), ADAPTIVE) == [0]
