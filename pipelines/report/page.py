"""Write report.html: everything a results folder says, on one page that works offline.

`folio report` and the demo call `write_report`. What to say is gathered here, how it looks stands in `page.html`. Scripts, styles
and photos are inside the file, and its content security policy allows the two scripts written here and no request to
anywhere: nothing that the name of a photo contains can run or call home.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from bokeh.embed import components
from bokeh.models import Model
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from infra.settings import Settings
from infra.storage import open_storage
from pipelines.report.answers import GIVEN, RERANKED, Answers, Verdict, error_curves, gather_answers, is_known, positions
from pipelines.report.examples import Photos, choose_examples, show_example
from pipelines.report.folder import ResultsFolder, read_folder
from pipelines.report.map_plot import answer_map, calibration_chart, error_chart, plane_at
from pipelines.report.photo_source import PhotoSource
from pipelines.report.scores import headlines, recall_ks, recall_rows, say, stage_name
from pipelines.report.wording import metres, percent

TITLE: Final = "Where were these photos taken?"

REPORT: Final = "report.html"


def write_report(
    directory: Path, *, settings: Settings, photos: str | None = None, examples: int = 12, title: str = TITLE
) -> Path:
    """Write `report.html` into a results folder: whole or not at all, in place of one before it.

    Args:
        directory: with queries.parquet and results.parquet, and what there is of geotags, metrics, rejects and coverage.
        settings: how to reach photos in a bucket.
        photos: where the photos are now, in place of the roots that the tables name. A photo that cannot be read is a grey box.
        examples: queries to show with their photos; each adds about 150 kB.
        title: heading of the page.

    Returns:
        The file.

    Raises:
        ObjectMissing: no queries or no results in the folder.
        FormatError: a table is of a kind or format that this Folio does not read.
    """
    folder = read_folder(directory, settings)
    with PhotoSource(settings, root=photos) as source:
        html = render_page(folder, source, examples=examples, title=title)
    open_storage(str(directory), settings).put(REPORT, html.encode())
    return directory / REPORT


def render_page(folder: ResultsFolder, photos: Photos, *, examples: int, title: str) -> str:
    """Make the page. Does not touch the folder again; reads only the photos of the examples."""
    answers = gather_answers(folder.queries, folder.results, folder.geotags, radius_m=folder.radius_m)
    metrics = [] if folder.metrics is None else folder.metrics.to_pylist()
    script, drawings = _embed(_drawings(folder, answers))
    bokeh = Markup("\n".join(Resources(mode="inline", components=["bokeh"]).js_raw))
    return _template().render(
        title=title,
        facts=folder.facts,
        radius_m=folder.radius_m,
        answers=answers,
        verdicts=Verdict,
        missing=[name for name in ("metrics", "geotags") if getattr(folder, name) is None],
        headlines=headlines(metrics),
        recall_ks=recall_ks(metrics),
        recall_rows=recall_rows(metrics),
        metrics=metrics,
        drawings=drawings,
        foreseen=_foreseen(answers),
        examples=[
            (heading, [show_example(answers, row, folder.results, folder.facts["grid_side"], photos) for row in rows])
            for heading, rows in choose_examples(answers, examples)
        ],
        rejects=_rejects_by_reason(folder.rejects),
        scripts=[bokeh, script],
        policy=_policy([bokeh, script]),
    )


def _drawings(folder: ResultsFolder, answers: Answers) -> dict[str, Model]:
    """The drawings that there is something to draw in."""
    coverage = np.empty((0, 2)) if folder.coverage is None else positions(folder.coverage)
    places = np.concatenate([answers.truth, answers.position, coverage])
    drawings: dict[str, Model] = {}
    if is_known(places).any():
        drawings["map"] = answer_map(answers, coverage, plane_at(places))
    checkable = int(is_known(answers.truth).sum())
    if checkable:
        given_as = RERANKED if folder.geotags is None else GIVEN
        curves = error_curves(folder.queries, folder.results, answers, given_as=given_as)
        drawings["errors"] = error_chart(curves, queries=checkable, radius_m=folder.radius_m)
    if _foreseen(answers) is not None:
        drawings["calibration"] = calibration_chart(answers)
    return drawings


def _foreseen(answers: Answers) -> tuple[int, int] | None:
    """How many answers lie within their expected error, of how many that can be checked; None: none can."""
    checkable = np.isfinite(answers.error_m) & np.isfinite(answers.expected_error_m)
    within = answers.error_m[checkable] <= answers.expected_error_m[checkable]
    return (int(within.sum()), int(checkable.sum())) if checkable.any() else None


def _rejects_by_reason(rejects: pa.Table | None) -> list[tuple[str, int, Mapping[str, Any]]]:
    """Reason, how many photos, and one of them; the most frequent first."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for row in [] if rejects is None else rejects.to_pylist():
        by_reason.setdefault(row["reason"], []).append(row)
    return sorted(((reason, len(rows), rows[0]) for reason, rows in by_reason.items()), key=lambda entry: (-entry[1], entry[0]))


def _embed(drawings: dict[str, Model]) -> tuple[Markup, dict[str, Markup]]:
    """The script that draws, and an element for each drawing. Bokeh escapes the data it writes into the script."""
    if not drawings:
        return Markup(""), {}
    script, elements = components(drawings, wrap_script=False)
    return Markup(script), {name: Markup(element) for name, element in elements.items()}


def _policy(scripts: list[Markup]) -> str:
    """A content security policy that runs exactly these scripts and asks nothing of any network."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pipelines.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metres": metres, "percent": percent, "say": say, "stage_name": stage_name}
    return environment.get_template("page.html")
