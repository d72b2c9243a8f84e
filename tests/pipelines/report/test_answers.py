"""The answers of the made-up results folder, where every distance is a multiple of 0.0001° of latitude."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.report.answers import Answers, Verdict, distance_m, error_curves, gather_answers
from tests.pipelines.report.results_folders import geotags, queries, results

HERE = Path("here")


@pytest.fixture
def answers() -> Answers:
    return gather_answers(queries(HERE), results(HERE), geotags(HERE), radius_m=25.0)


def test_a_ten_thousandth_of_a_degree_of_latitude_is_eleven_metres():
    metres = distance_m(np.array([[50.0, 10.0], [50.0, 10.0]]), np.array([[50.0001, 10.0], [np.nan, 10.0]]))

    assert metres[0] == pytest.approx(11.12, abs=0.01)
    assert np.isnan(metres[1])


def test_an_answer_is_right_within_the_radius_and_unchecked_where_the_truth_is_not_known(answers: Answers):
    right, wrong = Verdict.RIGHT, Verdict.WRONG

    assert answers.verdict == [right, right, wrong, Verdict.UNKNOWN, Verdict.UNCHECKED]
    assert answers.error_m.round(1).tolist()[:3] == [11.1, 22.2, 1112.3]


def test_geotags_are_found_by_their_query_in_whatever_order_they_lie(answers: Answers):
    assert answers.uri == ["strong.png", "thin.png", "wrong.png", "lost.png", "free.png"]
    assert answers.matches.tolist() == [80, 16, 30, 4, 50]
    assert answers.reason[3] == "4 matches, 15 needed"


def test_without_geotags_the_best_candidate_is_the_answer():
    answers = gather_answers(queries(HERE), results(HERE), None, radius_m=25.0)

    assert [verdict.value for verdict in answers.verdict] == ["right"] * 4 + ["not checked"]
    assert np.isnan(answers.expected_error_m).all()


def test_a_query_without_any_candidate_is_not_known():
    nothing = results(HERE).slice(0, 0)

    assert set(gather_answers(queries(HERE), nothing, None, radius_m=25.0).verdict) == {Verdict.UNKNOWN}


def test_the_curves_show_what_the_descriptor_the_ranking_and_the_geotag_were_off(answers: Answers):
    curves = error_curves(queries(HERE), results(HERE), answers, given_as="given")

    assert {name: errors.round().tolist() for name, errors in curves.items()} == {
        "first by descriptor": [1112.0] * 4,
        "first after re-ranking": [11.0] * 4,
        "given": [11.0, 22.0, 1112.0],
    }


def test_a_stage_whose_first_candidate_was_not_kept_has_no_curve(answers: Answers):
    kept = results(HERE).filter(results(HERE)["rank"].combine_chunks().to_numpy() == 1)  # global_rank 2 everywhere

    assert list(error_curves(queries(HERE), kept, answers, given_as="given")) == ["first after re-ranking", "given"]
