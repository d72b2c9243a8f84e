"""`geotag` as a Prefect flow, over the same stages that the command calls directly."""

from typing import Any

import msgspec
from prefect import flow

from infra.settings import Settings
from pipelines.engine.flow import require_server, show, stage
from pipelines.geotag.geotag import GeotagRequest, GeotagSummary, run_geotag


@flow(name="geotag", persist_result=False)
def geotag_flow(request: dict[str, Any]) -> dict[str, Any]:
    """Geotag an archive.

    Args:
        request: the fields of `GeotagRequest` as plain JSON; credentials never stand in it.

    Returns:
        The fields of `GeotagSummary`.
    """
    settings = Settings.from_environment()
    asked = msgspec.convert(request, GeotagRequest, strict=False)
    summary = stage("geotag", lambda: run_geotag(asked, settings))
    show("geotag-summary", summary, "What became of the archive")
    return msgspec.to_builtins(summary)  # type: ignore[no-any-return]


def run_as_flow(request: GeotagRequest) -> GeotagSummary:
    """Run the flow here, known to the Prefect server that is configured; Prefect starts one for the run if none is."""
    require_server()
    return msgspec.convert(geotag_flow(msgspec.to_builtins(request)), GeotagSummary)
