"""Local similarity and its fusion with the global cosine, on numbers small enough to check."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fol_model.config import RerankConfig
from fol_model.reranking import LocalSide, best_first, bounded_similarity, compare, fused_scores

ADAPTIVE, COUNT, PAPER = RerankConfig(mode="adaptive"), RerankConfig(mode="count"), RerankConfig(mode="paper", gamma=10.0)


def side(reliability: list[float], *, dim: int = 4) -> LocalSide:
    """Features along the axes, so that equal places match with cosine 1 and others with 0."""
    return LocalSide(features=torch.eye(dim)[: len(reliability)], reliability=torch.tensor(reliability))


def test_matches_add_the_geometric_mean_of_their_reliabilities():
    """sqrt(1 * 0.25) + sqrt(0.16 * 1) = 0.5 + 0.4."""
    comparison = compare(side([1.0, 0.16]), side([0.25, 1.0]), PAPER)

    assert comparison.matches == 2
    assert comparison.local_score == pytest.approx(0.9)


def test_the_cosine_of_a_match_counts_unless_it_is_switched_off():
    """Two matches, one with cosine 1, one with 0.8."""
    query = side([1.0, 1.0])
    turned = torch.tensor([[1.0, 0, 0, 0], [0, 0.8, 0.6, 0]])
    candidate = LocalSide(features=turned, reliability=torch.ones(2))

    assert compare(query, candidate, PAPER).local_score == pytest.approx(1.8)
    assert compare(query, candidate, replace(PAPER, cosine_weight=False)).local_score == pytest.approx(2.0)


def test_equal_reliability_without_cosines_orders_as_the_count_does():
    """Every match adds the same 0.5."""
    config = replace(PAPER, cosine_weight=False)
    similarities = [compare(side([0.5] * 4), side([0.5] * n), config).local_score for n in (2, 3, 4)]

    assert similarities == pytest.approx([1.0, 1.5, 2.0])


def test_a_photo_is_as_similar_to_itself_as_can_be():
    itself = side([1.0, 0.3, 0.7])

    assert compare(itself, itself, ADAPTIVE).local_score == pytest.approx(1.0)


def test_a_photo_without_features_or_reliability_has_no_similarity():
    assert compare(side([]), side([1.0]), ADAPTIVE).local_score == 0
    assert compare(side([0.0, 0.0]), side([1.0, 1.0]), ADAPTIVE).local_score == 0


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=30))
def test_the_bounded_similarity_stays_between_0_and_1(reliabilities: list[tuple[int, int]]):
    """All features match perfectly, the most that S_l can be; reliabilities are steps of 1/255, as stored."""
    query, candidate = (torch.tensor(side) / 255 for side in zip(*reliabilities, strict=True))
    most = (query * candidate).sqrt().double().sum().item()

    assert 0 <= bounded_similarity(most, query, candidate) <= 1 + 1e-6


def test_mode_count_scores_by_matches_alone():
    scores = fused_scores(COUNT, np.array([0.9, 0.8, 0.1]), np.array([3.0, 7.0, 5.0]))

    assert scores.tolist() == [3, 7, 5]
    assert best_first(scores).tolist() == [1, 2, 0]


def test_mode_paper_adds_gamma_times_the_cosine():
    """10 * 0.9 + 3 = 12 and 10 * 0.5 + 8 = 13."""
    scores = fused_scores(PAPER, np.array([0.9, 0.5]), np.array([3.0, 8.0]))

    assert scores.tolist() == pytest.approx([12, 13])


def test_mode_adaptive_lets_local_evidence_decide_where_the_global_ranking_is_level():
    """The background of 0.5 and 0.4 is 0.45, and a local similarity weighs 0.4."""
    scores = fused_scores(ADAPTIVE, np.array([0.8, 0.8, 0.5, 0.4]), np.array([0.1, 0.6]))

    assert scores.tolist() == pytest.approx([0.35 + 0.04, 0.35 + 0.24])
    assert best_first(scores).tolist() == [1, 0]


def test_mode_adaptive_keeps_a_clear_global_winner_unless_local_evidence_is_overwhelming():
    cosines = np.array([0.9, 0.6, 0.5, 0.3])

    assert best_first(fused_scores(ADAPTIVE, cosines, np.array([0.1, 0.6]))).tolist() == [0, 1]
    assert best_first(fused_scores(ADAPTIVE, cosines, np.array([0.1, 0.9]))).tolist() == [1, 0]


def test_a_photo_with_nothing_in_common_scores_about_nothing_in_mode_adaptive():
    assert fused_scores(ADAPTIVE, np.array([0.2]), np.array([0.0])).tolist() == [0]
    assert fused_scores(ADAPTIVE, np.array([]), np.array([])).tolist() == []


def test_equal_scores_keep_the_global_order():
    assert best_first(np.array([2, 5, 2, 5, 2], np.float32)).tolist() == [1, 3, 0, 2, 4]
