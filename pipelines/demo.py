"""The main job on the sample city, end to end: `folio demo`, which `make demo` calls."""

from collections.abc import Iterator
from pathlib import Path

from infra.observability import progress
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest, BuildSummary
from pipelines.catalog.sample_city.photos import plan_sample_city, write_photos
from pipelines.evaluate.evaluate import add_metrics, metric_row, run_evaluation
from pipelines.evaluate.summary import EvaluationSummary
from pipelines.geotag.geotag import GeotagRequest, run_geotag
from pipelines.report.page import write_report

RADIUS_M = 25.0


def run_demo(directory: Path, settings: Settings) -> Iterator[str]:
    """Make the sample city, build its map, geotag its queries, score them and write the report.

    Running it again keeps the photos and the map and only answers again.

    Yields:
        Lines for a person, as the steps finish.
    """
    photos = directory / "photos"
    city = plan_sample_city()
    database, queries = len(city.database), len(city.queries)
    for _ in progress(write_photos(city, photos), total=database + queries, unit="photo", description="sample city"):
        pass
    yield f"sample city: {database} photos for the map, {queries} query photos, in {photos}"
    built = run_build(BuildRequest(map_url=str(directory / "map"), photos=(str(photos / "database"),)), settings)
    yield from built.lines()[:-1]
    request = GeotagRequest(map_url=str(directory / "map"), photos=(str(photos / "queries"),), out=str(directory))
    geotagged = run_geotag(request, settings)
    metrics = run_evaluation(str(directory), radius_m=RADIUS_M, settings=settings)
    summary = EvaluationSummary.of(metrics, geotagged, radius_m=RADIUS_M)
    add_metrics(open_storage(str(directory), settings), _measured(built, summary))
    page = write_report(directory, settings=settings)
    yield from summary.lines()
    yield f"bytes per photo: {built.bytes_per_photo:,.0f}"
    yield f"report: {page}"


def _measured(built: BuildSummary, summary: EvaluationSummary) -> list[dict[str, object]]:
    rows = [metric_row("bytes_per_photo", "build", built.bytes_per_photo, "bytes/photo", built.photos)]
    if summary.photos_per_second:
        rows.append(metric_row("photos_per_second", "query", summary.photos_per_second, "photos/s", summary.queries))
    if built.encoded:
        rows.append(metric_row("photos_per_second", "build", built.encode_photos_per_second, "photos/s", built.encoded))
    return rows
