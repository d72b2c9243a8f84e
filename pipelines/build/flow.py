"""`build` and `backfill` as Prefect flows, over the same stages that the command calls directly."""

from typing import Any

import msgspec
from prefect import flow

from infra.leases import lease
from infra.observability import Stopwatch
from infra.settings import Settings
from pipelines.build.build import encode, named, prepare, purge_map, rewrite, survey, watched
from pipelines.build.price import price, read_prices
from pipelines.build.publishing import publish_version, summarise
from pipelines.build.request import BuildRequest, BuildSummary, Mode
from pipelines.engine.flow import require_places, require_server, show, show_photos, show_seconds, shown, stage


@flow(name="build", persist_result=False)
def build_flow(request: dict[str, Any]) -> dict[str, Any]:
    """Bring a map up to date.

    Args:
        request: the fields of `BuildRequest` as plain JSON; credentials never stand in it.

    Returns:
        The fields of `BuildSummary`.
    """
    return msgspec.to_builtins(_run(_asked(request, "build")))  # type: ignore[no-any-return]


@flow(name="backfill", persist_result=False)
def backfill_flow(request: dict[str, Any], photos: list[str] | None = None) -> dict[str, Any]:
    """Add photos to a map. As `build_flow`.

    Args:
        request: as there.
        photos: in place of those of `request`: what changes from run to run of a deployment.
    """
    asked = request if photos is None else {**request, "photos": photos}
    return msgspec.to_builtins(_run(_asked(asked, "backfill")))  # type: ignore[no-any-return]


def run_as_flow(request: BuildRequest) -> BuildSummary:
    """Run the flow here, known to the Prefect server that is configured; Prefect starts one for the run if none is."""
    require_server()
    run = backfill_flow if request.mode == "backfill" else build_flow
    return msgspec.convert(run(msgspec.to_builtins(request)), BuildSummary)


def _asked(request: dict[str, Any], mode: Mode) -> BuildRequest:
    asked = msgspec.convert({**request, "mode": mode}, BuildRequest, strict=False)
    require_places(map_url=asked.map_url, photos=asked.photos)
    return asked


def _run(request: BuildRequest) -> BuildSummary:
    settings = Settings.from_environment()
    name = request.mode
    clock = Stopwatch()
    with shown(name, request.map_url, settings), watched(request, settings):
        with clock.stage("catalog"):
            surveyed = stage("catalog", lambda: survey(request, settings))
        with named(surveyed), lease(surveyed.storage, run_id=surveyed.run_id, action=request.mode) as held:
            with clock.stage("catalog"):
                prepared = stage("plan", lambda: prepare(surveyed, settings))
            priced = price(prepared, read_prices(settings.prices))
            show(f"{name}-plan", priced, "What this run is going to do, and what that takes")
            with clock.stage("encode"):
                lost = stage("encode", lambda: encode(prepared, settings))
            with clock.stage("rewrite"):
                rewriting = stage("rewrite", lambda: rewrite(prepared, settings))
            with clock.stage("publish"):
                published = stage(
                    "publish", lambda: publish_version(prepared, lost, rewriting, settings=settings, check=held.require)
                )
            with clock.stage("purge"):
                purged = stage("purge", lambda: purge_map(prepared, check=held.require))
    summary = summarise(prepared, published, purged, clock)
    show(f"{name}-summary", summary, "What this run did")
    counts = {
        "seen": prepared.plan.photos_listed,
        "encoded": summary.encoded,
        "known before": summary.known,
        "kept in the map": summary.photos,
        "dropped from it": summary.dropped,
    }
    show_photos(f"{name}-photos", counts, summary.rejected)
    show_seconds(f"{name}-seconds", summary.seconds)
    return summary
