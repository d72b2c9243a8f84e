"""Write RUN/report.html: how a training went, in the look of the other reports, on one page that works offline."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, Final

import numpy as np
from bokeh.models import BasicTicker, BasicTickFormatter, DataRange1d, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure

from infra.settings import Settings
from pipelines.report.map_plot import calm
from pipelines.report.offline import render_offline
from pipelines.report.photo_source import PhotoSource
from pipelines.report.pictures import Picture, make_picture
from pipelines.report.wording import amount, percent
from pipelines.train.layouts import Place
from pipelines.train.photos import TrainingPhoto
from pipelines.train.run_folder import Plan, RecallLine, RunFolder, StepLine
from pipelines.train.validation import RECALL_AT

POINTS: Final = 400
"""Most points of a curve: each is the mean of a run of steps."""

EXAMPLES: Final = 5
"""Places that are shown with their photos ..."""

EXAMPLE_PHOTOS: Final = 4
"""... of which so many."""

QUIET_STEPS: Final = 50
"""So many steps in a row without a pseudo-correspondence are worth a warning."""

QUIET_WARNING: Final = (
    f"no pseudo-correspondences in {QUIET_STEPS} steps in a row: their loss teaches nothing. "
    "Usual at the start from random weights; otherwise train longer, or start from weights that tell patches apart"
)

COLOURS: Final = ("#0f766e", "#c2410c", "#3b5b92", "#7a5195", "#57606a", "#8a6d1d", "#a03a5b")

TERMS: Final = {
    "global_": "global: multi-similarity of descriptors",
    "local": "local: mutual nearest neighbours",
    "separation": "separation: salient against the rest",
    "alignment": "alignment of mass and reliability",
    "correspondence": "pseudo-correspondences",
    "reliability": "known reliability",
}
"""What the page calls a term of the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExamplePhoto:
    """A photo of an example place. No picture: it cannot be read."""

    uri: str
    picture: Picture | None


def write_training_report(
    run: RunFolder, plan: Plan, photos: Sequence[TrainingPhoto], places: Sequence[Place], settings: Settings, *, notes: list[str]
) -> None:
    """Write the page from what the run's folder says.

    Args:
        run: the folder.
        plan: what the run was started with.
        photos: all of the training set.
        places: of one epoch, for the examples.
        settings: how to reach the photos.
        notes: for the user, shown in the page too.
    """
    lines = run.lines()
    steps = [line for line in lines if isinstance(line, StepLine)]
    recalls = [line for line in lines if isinstance(line, RecallLine)]
    with PhotoSource(settings, root=None) as source:
        examples = _examples(photos, places, source)
    run.write_page(
        render_offline(
            "training.html",
            {**_curves(steps), **_recall_curves(recalls)},
            title=f"How {plan['recipe']['name']} was trained",
            plan=plan,
            terms=TERMS,
            headlines=_headlines(steps, recalls),
            settings=list(_settings(plan)),
            recalls=recalls,
            recall_at=RECALL_AT,
            examples=examples,
            notes=notes,
            warnings=quiet_notes(steps),
        )
    )


def quiet_notes(steps: Sequence[StepLine]) -> list[str]:
    """Say so where many steps in a row found no pseudo-correspondence: that is never silent."""
    longest = max((len(list(run)) for quiet, run in groupby(steps, _is_quiet) if quiet), default=0)
    return [f"{QUIET_WARNING} (longest: {longest:,} steps)"] if longest >= QUIET_STEPS else []


def _is_quiet(line: StepLine) -> bool:
    return not line.pseudo_correspondences


def smoothed(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Thin a curve to at most `POINTS`: the middle step (from 1) and the mean of each run of steps."""
    array = np.asarray(values, np.float64)
    edges = np.linspace(0, len(array), min(len(array), POINTS) + 1).round().astype(int)
    starts, ends = edges[:-1], edges[1:]
    middles = (starts + ends + 1) / 2
    return middles.tolist(), [float(array[start:end].mean()) for start, end in zip(starts, ends, strict=True)]


def _curves(steps: Sequence[StepLine]) -> dict[str, figure]:
    """A drawing for the total, each term, and what else is measured at each step."""
    if not steps:
        return {}
    measured: dict[str, list[float]] = {"total": [line.total for line in steps]}
    for name in steps[0].losses:
        values = [line.losses[name] for line in steps]
        if any(values):  # a term of weight 0 is not computed
            measured[name] = values
    measured["pairs"] = [line.pseudo_correspondences for line in steps]
    measured["speed"] = [line.images / max(line.seconds, 1e-9) for line in steps]
    measured["rate"] = [line.learning_rate for line in steps]
    return {
        name: _step_chart(name, *smoothed(values), colour=COLOURS[at % len(COLOURS)])
        for at, (name, values) in enumerate(measured.items())
    }


def _recall_curves(recalls: Sequence[RecallLine]) -> dict[str, figure]:
    if not recalls:
        return {}
    epochs = [float(line.epoch) for line in recalls]
    stages = {"re-ranked": [line.reranked for line in recalls], "by descriptor": [line.global_ for line in recalls]}
    curves = {
        f"@{k} {stage}": [100 * values[at] for values in measured]
        for stage, measured in stages.items()
        for at, k in enumerate(RECALL_AT)
    }
    plot = figure(height=360, tools="pan,box_zoom,reset", active_drag=None, x_axis_label="epochs done", y_axis_label="recall, %")
    plot.y_range = Range1d(start=0, end=102)
    for at, (name, percents) in enumerate(curves.items()):
        dash = "solid" if at < len(RECALL_AT) else "dashed"
        colour = COLOURS[at % len(RECALL_AT)]
        plot.line(epochs, percents, line_width=2, line_dash=dash, line_color=colour, legend_label=name)
        dots = plot.scatter(epochs, percents, size=7, color=colour, legend_label=name)
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[(name, "@y{0.0} % after epoch @x{0}")], visible=False))
    calm(plot)
    plot.legend.ncols = 3
    plot.xaxis.formatter = NumeralTickFormatter(format="0")
    plot.xaxis.ticker = BasicTicker(min_interval=1)
    return {"recall": plot}


def _step_chart(name: str, steps: list[float], values: list[float], *, colour: str) -> figure:
    plot = figure(height=220, tools="pan,box_zoom,reset", active_drag=None, x_axis_label="step")
    plot.y_range = DataRange1d(range_padding=0.08)
    line = plot.line(steps, values, line_width=2, line_color=colour, legend_label=name)
    if len(steps) == 1:
        plot.scatter(steps, values, size=7, color=colour, legend_label=name)  # a line of one point is none
    plot.add_tools(HoverTool(renderers=[line], tooltips=[("step", "@x{0}"), (name, "@y")], visible=False))
    calm(plot)
    plot.legend.visible = False  # the heading above says what it is
    plot.yaxis.formatter = BasicTickFormatter(precision=3)
    return plot


def _headlines(steps: Sequence[StepLine], recalls: Sequence[RecallLine]) -> list[tuple[str, str, str]]:
    """Value, label and note of the figures a reader looks for first."""
    figures: list[tuple[str, str, str]] = []
    if recalls:
        best = max(recalls, key=lambda line: line.goodness)
        for at, k in enumerate(RECALL_AT):
            note = f"{percent(best.global_[at])} by descriptor alone, after epoch {best.epoch}"
            figures.append((percent(best.reranked[at]), f"recall@{k}", note))
    if steps:
        seconds = sum(line.seconds for line in steps)
        waited = sum(line.waited for line in steps) / max(seconds, 1e-9)
        speed = sum(line.images for line in steps) / max(seconds, 1e-9)
        pairs = float(np.mean([line.pseudo_correspondences for line in steps]))
        figures += [
            (f"{len(steps):,}", "steps", f"in {steps[-1].epoch + 1} epochs"),
            (amount(speed), "images per second", f"{percent(round(waited, 3))} of the time spent waiting for photos"),
            (
                amount(pairs),
                "pseudo-correspondences a step",
                f"none in {sum(not s.pseudo_correspondences for s in steps):,} steps",
            ),
        ]
    return figures


def _settings(plan: Plan, name: str = "") -> "chain[tuple[str, Any]]":
    """Every setting with its dotted name."""
    return chain.from_iterable(
        _settings(value, f"{name}{key}.") if isinstance(value, dict) else [(f"{name}{key}", value)] for key, value in plan.items()
    )


def _examples(photos: Sequence[TrainingPhoto], places: Sequence[Place], source: PhotoSource) -> list[list[ExamplePhoto]]:
    """Some places with several photos, evenly over all; where none has, single photos."""
    several = [place for place in places if len(place) > 1] or list(places)
    chosen = np.unique(np.linspace(0, len(several) - 1, min(EXAMPLES, len(several))).round().astype(int)).tolist()
    return [[_example(photos[row], source) for row in several[at][:EXAMPLE_PHOTOS]] for at in chosen]


def _example(photo: TrainingPhoto, source: PhotoSource) -> ExamplePhoto:
    pixels = source.read(photo.uri, photo.root, min_side=240)
    return ExamplePhoto(uri=photo.uri, picture=None if pixels is None else make_picture(pixels, long_side=260))
