"""The Grafana board shows what the code counts, by names and labels that the code knows, and all of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from infra.metrics import DECLARED

BOARD = Path(__file__).parents[2] / "infra/dashboards/folio.json"
BY_RUN = {"map", "action"}
"""Labels that every metric has."""


def expressions() -> Iterator[str]:
    board = json.loads(BOARD.read_text())
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])
    yield from (str(variable["query"]) for variable in board["templating"]["list"])


def test_every_metric_of_the_board_is_counted_and_every_metric_that_is_counted_is_on_it() -> None:
    shown = {name for text in expressions() for name in re.findall(r"folio_\w+", text)}

    assert shown == {metric.name for metric in DECLARED}


def test_a_metric_is_split_only_by_labels_that_it_has() -> None:
    labels = {metric.name: BY_RUN | set(metric.labels) for metric in DECLARED}
    for text in expressions():
        for by in re.findall(r"by \(([^)]*)\)", text):
            (name, *_) = re.findall(r"folio_\w+", text)
            assert set(by.split(", ")) <= labels[name], text


def test_a_metric_is_chosen_and_named_only_by_labels_that_it_has() -> None:
    labels = {metric.name: BY_RUN | set(metric.labels) for metric in DECLARED}
    board = json.loads(BOARD.read_text())
    for target in (target for panel in board["panels"] for target in panel["targets"]):
        found = re.findall(r"(folio_\w+)\{([^}]*)\}", target["expr"])
        for name, chosen in found:
            assert set(re.findall(r"(\w+)!?=", chosen)) <= labels[name], target
        by = re.search(r"by \(([^)]*)\)", target["expr"])
        left = set(by.group(1).split(", ")) if by else labels[found[0][0]]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left, target


def test_rates_are_taken_of_counters_alone() -> None:
    counters = {metric.name for metric in DECLARED if metric.kind == "counter"}

    assert {name for text in expressions() for name in re.findall(r"(?:rate|increase)\((folio_\w+)", text)} <= counters


def test_panels_do_not_lie_upon_each_other_and_each_says_what_it_shows() -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        assert panel["description"].endswith(".")
        taken |= cells
