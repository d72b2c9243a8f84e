"""Draw what probabilities are worth: a reliability diagram, and how many answers are right when only the surest are given.

Of the photos of the map that were held back to fit the probabilities, and of the photos asked about, where it is known where they
were taken. `page` passes in what `locate.fitting` computes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from bokeh.models import HoverTool, Range1d
from bokeh.plotting import figure
from jaxtyping import Bool

from pipelines.locate.fitting import reliability_groups, risk_coverage
from pipelines.report.answers import Answers
from pipelines.report.map_plot import MUTED, calm

HELD_BACK: Final = "photos of the map, held back"
ASKED: Final = "these photos"
COLOURS: Final = {HELD_BACK: "#3b5b92", ASKED: "#b4532a"}
FEWEST: Final = 20
"""Photos with a known place that a curve is drawn of."""

Points = list[tuple[float, float, float]]


def reliability_series(answers: Answers, calibration: Mapping[str, Any] | None, *, radius_m: float) -> dict[str, Points]:
    """Mean probability, share of right ones and photos of each group, by whose they are."""
    series = {} if calibration is None else {HELD_BACK: [tuple(one) for one in calibration["evidence"]["reliability"]]}
    known = _known(answers)
    if known.sum() >= FEWEST:
        groups = reliability_groups(answers.probability[known], answers.best_error_m[known] <= radius_m)
        series[ASKED] = [(mean, share, float(photos)) for mean, share, photos in groups]
    return {name: points for name, points in series.items() if points}


def coverage_series(answers: Answers, calibration: Mapping[str, Any] | None, *, radius_m: float) -> dict[str, Points]:
    """Least probability, share of photos answered and share of right answers, by whose they are."""
    series = {} if calibration is None else {HELD_BACK: [tuple(one) for one in calibration["evidence"]["risk_coverage"]]}
    known = _known(answers)
    if known.sum() >= FEWEST:
        series[ASKED] = risk_coverage(answers.probability[known], answers.best_error_m[known] <= radius_m)
    return {name: points for name, points in series.items() if points}


def reliability_chart(series: Mapping[str, Points]) -> figure:
    """Draw the share of right positions against the probability that was told; on the diagonal it is what it says."""
    plot = _square("probability told, per cent", "right positions, per cent")
    plot.line([0, 100], [0, 100], color=MUTED, line_dash="dotted", legend_label="exactly as told")
    for name, points in series.items():
        x, y, photos = 100 * np.array(points).T
        _draw(
            plot, name, x, y, {"photos": (photos / 100).astype(int).tolist()}, "@x{0.0} % told, @y{0.0} % right, @photos photos"
        )
    calm(plot)
    return plot


def coverage_chart(series: Mapping[str, Points]) -> figure:
    """Draw how many answers are right when only the surest are given."""
    plot = _square("photos answered, the surest first, per cent", "right answers, per cent")
    for name, points in series.items():
        level, x, y = np.array(points).T
        _draw(
            plot,
            name,
            100 * x,
            100 * y,
            {"level": level.tolist()},
            "from probability @level{0.00}: @x{0} % answered, @y{0.0} % right",
        )
    calm(plot)
    return plot


def _known(answers: Answers) -> Bool[np.ndarray, " n"]:
    known: Bool[np.ndarray, " n"] = np.isfinite(answers.probability) & np.isfinite(answers.best_error_m)
    return known


def _square(x_label: str, y_label: str) -> figure:
    return figure(
        height=360,
        tools="pan,box_zoom,reset",
        active_drag=None,
        x_range=Range1d(start=0, end=103),
        y_range=Range1d(start=0, end=103),
        x_axis_label=x_label,
        y_axis_label=y_label,
    )


def _draw(plot: figure, name: str, x: Sequence[float], y: Sequence[float], more: Mapping[str, list[Any]], tip: str) -> None:
    source = {"x": list(x), "y": list(y), **more}
    plot.line("x", "y", source=source, color=COLOURS[name], line_width=2, legend_label=name)
    dots = plot.scatter("x", "y", source=source, color=COLOURS[name], size=7, legend_label=name)
    plot.add_tools(HoverTool(renderers=[dots], tooltips=[(name, tip)], visible=False))
