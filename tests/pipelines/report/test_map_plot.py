"""The drawings: where things are put. How they look is seen in `test_report_in_chromium`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bokeh.models import GlyphRenderer, HoverTool
from bokeh.plotting import figure

from pipelines.report.answers import Answers, Verdict, gather_answers
from pipelines.report.map_plot import MAX_DRAWN, TOOLTIPS, answer_map, calibration_chart, cumulative, plane_at
from tests.pipelines.report.results_folders import geotags, queries, results

HERE = Path("here")


@pytest.fixture
def answers() -> Answers:
    return gather_answers(queries(HERE), results(HERE), geotags(HERE), radius_m=25.0)


def marks(plot: figure, marker: str) -> GlyphRenderer:
    return next(of for of in plot.select(GlyphRenderer) if getattr(of.glyph, "marker", None) == marker)


def test_the_plane_measures_metres_from_the_position_of_middle_latitude():
    places = np.array([[50.0, 10.0], [50.001, 10.0], [50.002, 10.0], [np.nan, np.nan]])
    plane = plane_at(places)

    assert (plane.lat_deg, plane.lon_deg) == (50.001, 10.0)
    assert plane.project(places)[:3].tolist() == [[0.0, -111.2], [0.0, 0.0], [0.0, 111.2]]
    assert np.isnan(plane.project(places)[3]).all()


def test_places_on_both_sides_of_the_date_line_stay_neighbours():
    """At the equator 0.0002° of longitude is 22.3 m."""
    places = np.array([[0.0, 179.9999], [0.0, -179.9999]])

    east = plane_at(places).project(places)[:, 0]

    assert abs(east[0] - east[1]) == pytest.approx(22.3, abs=0.1)


def test_a_wrong_answer_is_joined_to_where_its_photo_was_taken(answers: Answers):
    plot = answer_map(answers, np.array([[50.0, 10.0]]), plane_at(np.array([[50.0, 10.0]])))

    wrong = marks(plot, "x").data_source.data
    assert (wrong["uri"], wrong["error"], wrong["matches"]) == (["wrong.png"], ["1.1 km"], ["30"])
    assert np.ravel([wrong["x"], wrong["y"], wrong["true_x"], wrong["true_y"]]).tolist() == [0.0, 1112.3, 0.0, 0.0]


def test_a_photo_without_an_answer_is_drawn_where_it_was_taken(answers: Answers):
    plot = answer_map(answers, np.empty((0, 2)), plane_at(np.array([[50.0, 10.0]])))

    lost = marks(plot, "square").data_source.data
    assert (lost["uri"], lost["x"].tolist(), lost["y"].tolist()) == (["lost.png"], [0.0], [0.0])


@pytest.mark.parametrize("covered", [True, False])
def test_what_is_seen_at_first_is_the_map_and_the_answers(answers: Answers, covered: bool):
    """Not where photos without an answer were taken, which may be another continent."""
    plot = answer_map(answers, np.array([[50.0, 10.0]] * covered).reshape(-1, 2), plane_at(np.array([[50.0, 10.0]])))

    lost, wrong = marks(plot, "square"), marks(plot, "x")
    for axis in (plot.x_range, plot.y_range):
        assert lost not in axis.renderers
        assert wrong in axis.renderers
        assert len(axis.renderers) == 3 + covered  # answers right, wrong and not checked, and the map


def test_where_nothing_is_known_but_where_photos_were_taken_these_are_seen(answers: Answers):
    nothing = replace(answers, verdict=[Verdict.UNKNOWN] * len(answers.verdict))

    plot = answer_map(nothing, np.empty((0, 2)), plane_at(np.array([[50.0, 10.0]])))

    assert plot.x_range.renderers == plot.y_range.renderers == "auto"


def test_every_tooltip_shows_names_as_text(answers: Answers):
    plots = [answer_map(answers, np.empty((0, 2)), plane_at(np.array([[50.0, 10.0]]))), calibration_chart(answers)]

    tooltips = [tool.tooltips for plot in plots for tool in plot.select(HoverTool)]
    assert len(tooltips) == 6
    assert all(tooltip == TOOLTIPS for tooltip in tooltips)
    assert not any("safe" in shown for _, shown in TOOLTIPS)


def test_a_verdict_that_no_answer_has_is_not_in_the_legend():
    answers = gather_answers(queries(HERE), results(HERE), geotags(HERE), radius_m=2000.0)

    (legend,) = calibration_chart(answers).legend

    assert [item.label.value for item in legend.items] == ["exactly as expected", "right"]


def test_an_unanswered_photo_keeps_the_curve_below_the_top():
    """Two of four photos have an answer, 10 m and 0.5 m off; half a metre is drawn at one metre."""
    assert cumulative(np.array([0.5, 10.0]), 4) == ([1.0, 1.0, 10.0], [0.0, 25.0, 50.0])


def test_a_long_curve_is_thinned_but_keeps_both_ends():
    x, share = cumulative(np.arange(1.0, 100_001.0), 100_000)

    assert len(x) == MAX_DRAWN + 1
    assert (x[1], share[1], x[-1], share[-1]) == (1.0, 0.001, 100_000.0, 100.0)
