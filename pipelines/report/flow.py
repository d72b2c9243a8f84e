"""The archive job as a Prefect flow: geotag, then the page that shows what came of it."""

from pathlib import Path
from typing import Any

import msgspec
from prefect import flow
from prefect.artifacts import create_link_artifact

from infra.observability import Stopwatch
from infra.settings import Settings
from pipelines.engine.flow import show_seconds, shown, stage
from pipelines.geotag.flow import asked_for, geotag_stage
from pipelines.geotag.geotag import watched
from pipelines.report.page import write_report


@flow(name="geotag-archive", persist_result=False)
def archive_flow(request: dict[str, Any], photos: list[str] | None = None, out: str | None = None) -> dict[str, Any]:
    """Geotag an archive and write its report.

    The report lies beside the results where they are in a folder. In a bucket there is none: a page needs somebody to serve it.

    Args:
        request: the fields of `GeotagRequest` as plain JSON; credentials never stand in it.
        photos: in place of those of `request`: what changes from run to run of a deployment.
        out: the same.

    Returns:
        The fields of `GeotagSummary`.
    """
    settings = Settings.from_environment()
    changed = {"photos": photos, "out": out}
    asked = asked_for({**request, **{name: value for name, value in changed.items() if value is not None}})
    clock = Stopwatch()
    with shown("geotag", asked.map_url, settings), watched(asked, settings):
        with clock.stage("geotag"):
            summary = geotag_stage(asked, settings)
        if "://" not in asked.out:
            with clock.stage("report"):
                page = stage("report", lambda: write_report(Path(asked.out), settings=settings))
            create_link_artifact(page.absolute().as_uri(), link_text=str(page), key="geotag-report", description="The report")
    show_seconds("geotag-seconds", clock.seconds())
    return msgspec.to_builtins(summary)  # type: ignore[no-any-return]
