"""Recall@k by hand."""

import numpy as np
import pytest

from fol_model.recall import recall_at


def test_recall_counts_queries_with_a_true_answer_among_the_first_k():
    """First right at rank 1, at rank 3, never, at rank 2."""
    hits = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]], bool)

    assert recall_at(hits, [1, 2, 3, 10]).tolist() == [0.25, 0.5, 0.75, 0.75]


def test_a_query_without_a_true_answer_stays_in_the_denominator():
    assert recall_at(np.array([[True], [False]]), [1]).tolist() == [0.5]


def test_answers_of_no_rank_at_all_are_no_hits():
    assert recall_at(np.empty((3, 0), bool), [1, 5]).tolist() == [0, 0]


def test_recall_over_no_queries_is_refused():
    with pytest.raises(ValueError, match="no queries"):
        recall_at(np.empty((0, 5), bool), [1])


def test_a_k_below_1_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        recall_at(np.ones((1, 1), bool), [1, 0])
