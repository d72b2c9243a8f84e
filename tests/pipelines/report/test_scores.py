"""From metrics to what the page says."""

from pipelines.report.scores import Headline, RecallRow, headlines, recall_ks, recall_rows, say
from tests.pipelines.report.results_folders import metrics

ROWS = metrics().to_pylist()


def test_a_headline_shows_what_a_user_gets_and_beside_it_what_the_descriptor_alone_gives():
    assert headlines(ROWS)[0] == Headline(value="75.0 %", label="recall@1", note="50.0 % by descriptor alone")


def test_the_headlines_are_those_that_were_measured():
    assert [(figure.value, figure.label) for figure in headlines(ROWS)[1:]] == [
        ("80.0 %", "got a position"),
        ("22 m", "median position error"),
        ("12.3", "photos per second"),
        ("48.2 kB", "of map per photo"),
    ]
    assert headlines([]) == []


def test_the_recall_table_leaves_a_cell_empty_that_was_not_measured():
    rows = [*ROWS, {"metric": "recall", "stage": "reranked", "at": 5.0, "value": 1.0, "unit": "fraction", "queries": 4}]

    assert recall_ks(rows) == [1, 5]
    assert recall_rows(rows) == [
        RecallRow(stage="by descriptor alone", cells=[0.5, None]),
        RecallRow(stage="after re-ranking", cells=[0.75, 1.0]),
    ]


def test_a_unit_the_page_has_no_words_for_is_said_as_it_is():
    assert say({"value": 3.14159, "unit": "s"}) == "3.14 s"
