"""Write report.html: everything a results folder says, on one page that works offline; and review.html, to decide by hand.

`folio report` and the demo call `write_report`. What to say is gathered here, how it looks stands in `page.html`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from bokeh.models import Model

from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.catalog.locations import is_remote, without_file_scheme
from pipelines.report.answers import GIVEN, RERANKED, Answers, Verdict, error_curves, gather_answers, is_known, positions
from pipelines.report.confidence_plot import coverage_chart, coverage_series, reliability_chart, reliability_series
from pipelines.report.examples import Photos, choose_examples, show_example
from pipelines.report.folder import ResultsFolder, read_folder
from pipelines.report.map_plot import answer_map, calibration_chart, error_chart, plane_at
from pipelines.report.offline import render_offline
from pipelines.report.photo_source import PhotoSource
from pipelines.report.review import render_review
from pipelines.report.scores import headlines, recall_ks, recall_rows
from schemas.errors import ObjectMissing
from schemas.manifest import encode_json
from schemas.report_options import ReportOptions, decode_report_options

TITLE: Final = "Where were these photos taken?"

REPORT: Final = "report.html"
REVIEW: Final = "review.html"
OPTIONS: Final = "report.json"


def write_report(
    directory: Path,
    *,
    settings: Settings,
    photos: str | None = None,
    examples: int = 12,
    review: int = 100,
    title: str = TITLE,
) -> Path:
    """Write `report.html` into a results folder, and `review.html` where it has geotags, in place of those before them.

    Each is written whole or not at all. What was asked for is kept for `write_report_again`.

    Args:
        directory: with queries.parquet and results.parquet, and what there is of geotags, metrics, rejects and coverage.
        settings: how to reach photos in a bucket.
        photos: where the photos are now, in place of the roots that the tables name. A photo that cannot be read is a grey box.
        examples: queries to show with their photos; each adds about 150 kB.
        review: photos that `review.html` shows with pictures, the doubtful ones first; each adds about 100 kB.
        title: heading of the report.

    Returns:
        The report.

    Raises:
        ObjectMissing: no queries or no results in the folder.
        FormatError: a table is of a kind or format that this Folio does not read.
    """
    folder = read_folder(directory, settings)
    with PhotoSource(settings, root=photos) as source:
        html = render_page(folder, source, examples=examples, title=title)
        to_review = _render_review(folder, source, evidence=review)
    storage = open_storage(str(directory), settings)
    if to_review is not None:
        storage.put(REVIEW, to_review.encode())
    storage.put(REPORT, html.encode())
    _keep(storage, ReportOptions(photos=photos and _from_anywhere(photos), review=review))
    return directory / REPORT


def write_report_again(directory: Path, *, settings: Settings) -> Path:
    """Write the pages of a results folder as they were asked for the last time, now that its tables have changed.

    Raises:
        FormatError: what was asked for cannot be read.
        FolioError: as of `write_report`.
    """
    storage = open_storage(str(directory), settings)
    try:
        asked = decode_report_options(storage.get(OPTIONS), where=f"{storage.url}/{OPTIONS}")
    except ObjectMissing:
        asked = ReportOptions()
    return write_report(directory, settings=settings, photos=asked.photos, review=asked.review)


def render_page(folder: ResultsFolder, photos: Photos, *, examples: int, title: str) -> str:
    """Make the page. Does not touch the folder again; reads only the photos of the examples."""
    answers = gather_answers(folder.queries, folder.results, folder.geotags, radius_m=folder.radius_m)
    metrics = [] if folder.metrics is None else folder.metrics.to_pylist()
    return render_offline(
        "page.html",
        _drawings(folder, answers),
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
        foreseen=_foreseen(answers),
        calibration=folder.facts.get("calibration"),
        examples=[
            (heading, [show_example(answers, row, folder.results, folder.facts["grid_side"], photos) for row in rows])
            for heading, rows in choose_examples(answers, examples)
        ],
        rejects=_rejects_by_reason(folder.rejects),
    )


def _keep(storage: Storage, asked: ReportOptions) -> None:
    if asked == ReportOptions():
        storage.delete(OPTIONS)
    else:
        storage.put(OPTIONS, encode_json(asked))


def _from_anywhere(photos: str) -> str:
    """Name a folder so that it is found from another working directory too."""
    return photos if is_remote(photos) else str(Path(without_file_scheme(photos)).absolute())


def _render_review(folder: ResultsFolder, photos: Photos, *, evidence: int) -> str | None:
    if folder.geotags is None:
        return None
    return render_review(folder.geotags, folder.results, folder.coverage, photos, facts=folder.facts, evidence=evidence)


def _drawings(folder: ResultsFolder, answers: Answers) -> dict[str, Model]:
    """The drawings that there is something to draw in."""
    coverage = np.empty((0, 2)) if folder.coverage is None else positions(folder.coverage)
    places = np.concatenate([answers.truth, answers.position, coverage])
    drawings: dict[str, Model] = {}
    if is_known(places).any():
        drawings["map"] = answer_map(answers, coverage, plane_at(coverage if is_known(coverage).any() else places))
    checkable = int(is_known(answers.truth).sum())
    if checkable:
        given_as = RERANKED if folder.geotags is None else GIVEN
        curves = error_curves(folder.queries, folder.results, answers, given_as=given_as)
        drawings["errors"] = error_chart(curves, queries=checkable, radius_m=folder.radius_m)
    if _foreseen(answers) is not None:
        drawings["calibration"] = calibration_chart(answers)
    fitted = folder.facts.get("calibration")
    if reliability := reliability_series(answers, fitted, radius_m=folder.radius_m):
        drawings["reliability"] = reliability_chart(reliability)
        drawings["coverage"] = coverage_chart(coverage_series(answers, fitted, radius_m=folder.radius_m))
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
