"""`geotag` as a Prefect flow, over the same stages that the command calls directly."""

from typing import Any

import msgspec
from prefect import flow

from infra.settings import Settings
from pipelines.engine.flow import require_places, require_server, show, show_photos, shown, stage
from pipelines.geotag.geotag import GeotagRequest, GeotagSummary, geotag_archive, watched


@flow(name="geotag", persist_result=False)
def geotag_flow(request: dict[str, Any]) -> dict[str, Any]:
    """Geotag an archive.

    Args:
        request: the fields of `GeotagRequest` as plain JSON; credentials never stand in it.

    Returns:
        The fields of `GeotagSummary`.
    """
    settings = Settings.from_environment()
    asked = asked_for(request)
    with shown("geotag", asked.map_url, settings), watched(asked, settings):
        summary = geotag_stage(asked, settings)
    return msgspec.to_builtins(summary)  # type: ignore[no-any-return]


def run_as_flow(request: GeotagRequest) -> GeotagSummary:
    """Run the flow here, known to the Prefect server that is configured; Prefect starts one for the run if none is."""
    require_server()
    return msgspec.convert(geotag_flow(msgspec.to_builtins(request)), GeotagSummary)


def asked_for(request: dict[str, Any]) -> GeotagRequest:
    """Read the parameters of a flow.

    Raises:
        CatalogError: the map, the archive or the results folder is not named.
    """
    asked = msgspec.convert(request, GeotagRequest, strict=False)
    require_places(map_url=asked.map_url, photos=asked.photos, out=asked.out)
    return asked


def geotag_stage(request: GeotagRequest, settings: Settings) -> GeotagSummary:
    """Geotag as one stage of a flow, and show what became of the photos."""
    summary = stage("geotag", lambda: geotag_archive(request, settings))
    show("geotag-summary", summary, "What became of the archive")
    counts = {
        "seen": summary.photos + sum(summary.rejected.values()),
        "answered": summary.answered,
        "interpolated": summary.interpolated,
        "don't know": summary.unknown,
    }
    show_photos("geotag-photos", counts, summary.rejected)
    return summary
