"""The drawings that can be moved: a map of the answers, the spread of their errors, and how well the errors were foreseen.

Bokeh models only; `page` puts them into the HTML. The map is in metres on a plane that touches the Earth in the middle of the
photos, so it needs no tiles and asks nothing of the network. Names of photos come from outside: tooltips name columns as `@uri`,
which Bokeh shows as text, and never with `{safe}`, which would run what a name contains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from bokeh.models import ColumnDataSource, DataRange1d, HoverTool, Model, NumeralTickFormatter, Range1d
from bokeh.models.annotations.geometry import Span
from bokeh.models.annotations.labels import Label
from bokeh.models.annotations.legends import ScaleBar
from bokeh.plotting import figure
from jaxtyping import Float64
from pyproj import Proj

from pipelines.report.answers import Answers, Verdict, is_known
from pipelines.report.wording import metres

MAX_DRAWN: Final = 5_000
"""Answers of one verdict in a drawing, and steps of a curve; more would be slow to draw and no easier to read."""

NEAREST_M: Final = 1.0
"""Left end of the logarithmic axes; smaller errors are drawn here."""

MUTED: Final = "#6b6f76"
GRID: Final = "#ece8df"
COVERAGE: Final = "#c9c2b2"
FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
COLOURS: Final = {Verdict.RIGHT: "#0f766e", Verdict.WRONG: "#c2410c", Verdict.UNKNOWN: "#57606a", Verdict.UNCHECKED: "#3b5b92"}
MARKERS: Final = {Verdict.RIGHT: "circle", Verdict.WRONG: "x", Verdict.UNKNOWN: "square", Verdict.UNCHECKED: "diamond"}
KINDS: Final = {
    "confident": ("circle", "#0f766e"),
    "doubtful": ("triangle", "#b93c0b"),
    "unknown": ("square", "#57606a"),
    "interpolated": ("diamond", "#3b5b92"),
    "accepted": ("circle_cross", "#0f766e"),
    "corrected": ("star", "#7a3e9d"),
    "refused": ("x", "#57606a"),
}
"""Marker and colour of each `review.Kind`: no two of the same shape."""

TOOLTIPS: Final = [
    ("photo", "@uri"),
    ("answer", "@verdict"),
    ("error", "@error"),
    ("expected", "@expected"),
    ("matches", "@matches"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """Metres east and north of a point."""

    lat_deg: float
    lon_deg: float

    def project(self, positions: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Metres east and north of rows of lat_deg, lon_deg, to a decimetre; NaN stays NaN."""
        known = is_known(positions)
        east_north = np.full((len(positions), 2), np.nan)
        onto_plane = Proj(proj="aeqd", lat_0=self.lat_deg, lon_0=self.lon_deg, ellps="WGS84")
        east_north[known] = np.stack(onto_plane(positions[known, 1], positions[known, 0]), axis=1)
        return east_north.round(1)


def plane_at(positions: Float64[np.ndarray, "n 2"]) -> Plane:
    """The plane that touches the Earth at the known position of middle latitude: a real place, also at the date line."""
    by_latitude = sorted(positions[is_known(positions)].tolist())
    lat_deg, lon_deg = by_latitude[len(by_latitude) // 2]
    return Plane(lat_deg=round(lat_deg, 5), lon_deg=round(lon_deg, 5))


def answer_map(answers: Answers, coverage: Float64[np.ndarray, "photos 2"], plane: Plane) -> figure:
    """Draw the photos of the map as light dots and, above them, each answer with a line to where the photo was taken.

    What is seen at first is what the map covers and the answers: photos that were taken on other continents are a zoom away.

    Args:
        answers: one that is not known is drawn where its photo was taken, if that is known.
        coverage: positions of the map's photos.
        plane: what to draw on.
    """
    x_range, y_range = (DataRange1d(range_padding=0.06, default_span=200) for _ in "xy")
    plot = figure(
        height=600,
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll="wheel_zoom",
        match_aspect=True,
        x_range=x_range,
        y_range=y_range,
        x_axis_label=f"metres east of {plane.lat_deg:.5f}, {plane.lon_deg:.5f}",
        y_axis_label="metres north",
    )
    east, north = plane.project(coverage).astype(np.float32).T
    seen: list[Model] = []
    if len(coverage):
        seen.append(plot.scatter(east, north, size=4, color=COVERAGE, legend_label=f"photos of the map ({len(coverage):,})"))
    _draw_expected_errors(plot, answers, plane)
    for verdict in (Verdict.UNKNOWN, Verdict.UNCHECKED, Verdict.RIGHT, Verdict.WRONG):
        if verdict in answers.verdict:
            marks = _draw_answers(plot, answers, verdict, plane)
            seen += [marks] if verdict != Verdict.UNKNOWN else []
    x_range.renderers = y_range.renderers = seen or "auto"
    plot.add_layout(ScaleBar(range=plot.x_range, unit="m", location="bottom_right", border_line_color=None))
    calm(plot)
    return plot


def review_map() -> figure:
    """An empty map for the page on which positions are decided: its script fills it, by the names of the data sources.

    The script's plane is Mercator's, scaled to metres in the middle of the archive: the way back from a click is a line of code.
    """
    plot = figure(
        name="review-map",
        height=360,
        tools="pan,wheel_zoom,box_zoom",
        active_scroll="wheel_zoom",
        x_range=Range1d(start=-100, end=100),
        y_range=Range1d(start=-100, end=100),
        match_aspect=True,
        sizing_mode="stretch_width",
    )
    plot.axis.visible = False
    plot.toolbar.logo = plot.outline_line_color = None
    plot.grid.grid_line_color = GRID
    plot.scatter("x", "y", source=ColumnDataSource({"x": [], "y": []}, name="coverage"), size=3, color=COVERAGE)
    for kind, (marker, colour) in KINDS.items():
        source = ColumnDataSource({"x": [], "y": [], "uri": []}, name=kind)
        dots = plot.scatter("x", "y", source=source, marker=marker, color=colour, size=9, line_width=1.5, fill_alpha=0.55)
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[(kind, "@uri")], visible=False))
    places = ColumnDataSource({"x": [], "y": [], "label": []}, name="places")
    plot.scatter("x", "y", source=places, size=22, line_color="#23272a", line_width=2, fill_color="#ffffff", fill_alpha=0.7)
    plot.text("x", "y", "label", source=places, text_align="center", text_baseline="middle", text_font_size="13px")
    plot.add_layout(ScaleBar(range=plot.x_range, unit="m", location="bottom_right", border_line_color=None))
    return plot


def error_chart(curves: dict[str, Float64[np.ndarray, " e"]], *, queries: int, radius_m: float) -> figure:
    """Draw which share of the queries lies within how many metres.

    Args:
        curves: up to three, ascending errors in metres by name; the last is the answer itself and drawn strongest.
        queries: what a share is of, those without an answer included.
        radius_m: marked with a line.
    """
    plot = figure(
        height=360,
        tools="pan,box_zoom,reset",
        active_drag=None,
        x_axis_type="log",
        y_range=Range1d(start=0, end=102),
        x_axis_label="within this many metres of the truth",
        y_axis_label="% of the photos",
    )
    plot.add_layout(Span(location=radius_m, dimension="height", line_color=MUTED, line_dash="dotted"))
    plot.add_layout(Label(x=radius_m, y=3, x_offset=5, text=metres(radius_m), text_color=MUTED, text_font_size="12px"))
    styles = [("dotted", MUTED, 2), ("dashed", COLOURS[Verdict.UNCHECKED], 2), ("solid", COLOURS[Verdict.RIGHT], 3)]
    for (name, errors_m), (dash, colour, width) in zip(curves.items(), styles[-len(curves) :], strict=True):
        x, share = cumulative(errors_m, queries)
        line = plot.step(x, share, mode="after", line_dash=dash, line_color=colour, line_width=width, legend_label=name)
        plot.add_tools(HoverTool(renderers=[line], tooltips=[(name, "@y{0.0} % within @x{0.0} m")], visible=False))
    calm(plot)
    return plot


def cumulative(errors_m: Float64[np.ndarray, " e"], queries: int) -> tuple[list[float], list[float]]:
    """Corners of the curve: metres, and the percentage of `queries` up to there. Thinned to MAX_DRAWN steps."""
    share = 100 * np.arange(1, len(errors_m) + 1) / queries
    kept = _thinned(range(len(errors_m)))
    return [NEAREST_M, *np.maximum(errors_m[kept], NEAREST_M).round(1).tolist()], [0.0, *share[kept].tolist()]


def calibration_chart(answers: Answers) -> figure:
    """Draw the error that was foreseen against the one that came true; below the diagonal it turned out better."""
    plot = figure(
        height=360,
        tools="pan,box_zoom,reset",
        active_drag=None,
        x_axis_type="log",
        y_axis_type="log",
        x_axis_label="expected error, metres",
        y_axis_label="actual error, metres",
    )
    foreseen, actual = np.maximum(answers.expected_error_m, NEAREST_M), np.maximum(answers.error_m, NEAREST_M)
    end = float(np.nanmax([10 * NEAREST_M, *foreseen, *actual]))
    plot.line([NEAREST_M, end], [NEAREST_M, end], color=MUTED, line_dash="dotted", legend_label="exactly as expected")
    for verdict in (Verdict.RIGHT, Verdict.WRONG):
        if rows := _rows(answers, verdict):
            _draw_markers(plot, _source(answers, rows, foreseen[rows], actual[rows]), verdict, verdict.value)
    calm(plot)
    return plot


def _draw_answers(plot: figure, answers: Answers, verdict: Verdict, plane: Plane) -> Model:
    rows = _rows(answers, verdict)
    truth = plane.project(answers.truth[rows])
    place = truth if verdict == Verdict.UNKNOWN else plane.project(answers.position[rows])
    source = _source(answers, rows, place[:, 0], place[:, 1])
    source.add(truth[:, 0].tolist(), "true_x")
    source.add(truth[:, 1].tolist(), "true_y")
    label = f"{verdict.value} ({answers.count(verdict):,})"
    colour = COLOURS[verdict]
    if verdict in (Verdict.RIGHT, Verdict.WRONG):
        plot.segment("x", "y", "true_x", "true_y", source=source, color=colour, alpha=0.5, line_width=1.5, legend_label=label)
        ring = plot.scatter("true_x", "true_y", source=source, size=9, line_color=colour, fill_color=None, legend_label=label)
        ring.glyph.line_width = 1.5
    return _draw_markers(plot, source, verdict, label)


def _draw_markers(plot: figure, source: ColumnDataSource, verdict: Verdict, label: str) -> Model:
    dots = plot.scatter("x", "y", source=source, marker=MARKERS[verdict], color=COLOURS[verdict], size=9, legend_label=label)
    dots.glyph.fill_alpha, dots.glyph.line_width = 0.55, 2
    plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIPS, visible=False))
    return dots


def _draw_expected_errors(plot: figure, answers: Answers, plane: Plane) -> None:
    """Circles of the expected error, away until the legend is clicked: hundreds of them would hide the map."""
    rows = _thinned(np.flatnonzero(is_known(answers.position) & np.isfinite(answers.expected_error_m)).tolist())
    if not rows:
        return
    east, north = plane.project(answers.position[rows]).T
    circles = plot.circle(east, north, radius=answers.expected_error_m[rows], legend_label="expected error")
    circles.glyph.update(fill_color="#3b5b92", fill_alpha=0.06, line_color="#3b5b92", line_alpha=0.35)
    circles.visible = False


def _source(answers: Answers, rows: list[int], x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> ColumnDataSource:
    return ColumnDataSource(
        {
            "x": x,
            "y": y,
            "uri": [answers.uri[row] for row in rows],
            "verdict": [answers.verdict[row].value for row in rows],
            "error": [_or_dash(answers.error_m[row]) for row in rows],
            "expected": [_or_dash(answers.expected_error_m[row]) for row in rows],
            "matches": ["–" if np.isnan(answers.matches[row]) else f"{answers.matches[row]:.0f}" for row in rows],
        }
    )


def _or_dash(distance_m: float) -> str:
    return "–" if np.isnan(distance_m) else metres(distance_m)


def _rows(answers: Answers, verdict: Verdict) -> list[int]:
    return _thinned([row for row, of in enumerate(answers.verdict) if of == verdict])


def _thinned(rows: Sequence[int]) -> list[int]:
    """At most MAX_DRAWN of the rows, evenly taken, the first and last among them."""
    if len(rows) <= MAX_DRAWN:
        return list(rows)
    return [rows[at] for at in np.linspace(0, len(rows) - 1, MAX_DRAWN).round().astype(int).tolist()]


def calm(plot: figure) -> None:
    """The page's look: light grid, quiet axes, no logo, and a legend that switches what it names on and off."""
    plot.sizing_mode = "stretch_width"
    plot.toolbar.logo = None
    plot.outline_line_color = None
    plot.grid.grid_line_color = GRID
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = "#bdb7aa"
    plot.axis.minor_tick_line_color = None
    plot.axis.formatter = NumeralTickFormatter(format="0,0")
    for text in ("axis_label", "major_label"):
        setattr(plot.axis, f"{text}_text_font", FONT)
        setattr(plot.axis, f"{text}_text_color", MUTED)
    plot.axis.axis_label_text_font_style = "normal"
    plot.legend.click_policy = "hide"
    plot.legend.label_text_font, plot.legend.label_text_font_size = FONT, "12px"
    plot.legend.border_line_color, plot.legend.spacing = None, 8
    plot.legend.ncols = 2
    plot.legend.location = "left"
    plot.add_layout(plot.legend[0], "above")  # a legend inside would hide what lies under it
