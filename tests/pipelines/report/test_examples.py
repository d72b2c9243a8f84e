"""Which queries are shown, and what is gathered of each."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.report.answers import Answers, gather_answers
from pipelines.report.examples import choose_examples, show_example
from tests.pipelines.report.results_folders import GRID_SIDE, geotags, queries, results

HERE = Path("here")


class GreyPhotos:
    """Every photo is grey, but those in `gone`, which cannot be read."""

    def __init__(self, gone: tuple[str, ...] = ()) -> None:
        self.gone = gone

    def read(self, uri: str, root: str, *, min_side: int) -> np.ndarray | None:
        return None if uri in self.gone else np.full((60, 80, 3), 128, np.uint8)


@pytest.fixture
def answers() -> Answers:
    return gather_answers(queries(HERE), results(HERE), geotags(HERE), radius_m=25.0)


def test_one_of_each_kind_is_shown_before_a_second_of_any(answers: Answers):
    assert choose_examples(answers, 5) == [
        ("Right, on strong evidence", [0]),
        ("Right, on thin evidence", [1]),
        ("Wrong, the most convinced first", [2]),
        ("Don’t know", [3]),
        ("Answered, but the truth is not known", [4]),
    ]


def test_no_query_is_shown_twice_however_many_are_asked_for(answers: Answers):
    rows = [row for _, rows in choose_examples(answers, 100) for row in rows]

    assert sorted(rows) == [0, 1, 2, 3, 4]


def test_fewer_are_shown_when_fewer_are_asked_for(answers: Answers):
    assert [rows for _, rows in choose_examples(answers, 2)] == [[0], [1]]
    assert choose_examples(answers, 0) == []


def test_an_example_carries_its_candidates_with_their_distance_from_the_truth(answers: Answers):
    example = show_example(answers, 0, results(HERE), GRID_SIDE, GreyPhotos())

    assert [(candidate.uri, round(candidate.distance_m)) for candidate in example.candidates] == [
        ("map-1.png", 11),
        ("map-2.png", 1112),
    ]
    assert example.pairs == len(example.regions[0]) == len(example.regions[1]) == 2


def test_regions_are_left_out_where_one_of_the_two_photos_is_gone(answers: Answers):
    example = show_example(answers, 0, results(HERE), GRID_SIDE, GreyPhotos(gone=("map-1.png",)))

    assert example.candidates[0].picture is None
    assert example.regions == ([], [])


def test_a_query_without_candidates_can_be_shown(answers: Answers):
    example = show_example(answers, 0, results(HERE).slice(0, 0), GRID_SIDE, GreyPhotos())

    assert (example.candidates, example.regions) == ([], ([], []))
