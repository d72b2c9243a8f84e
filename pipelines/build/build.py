"""The build, stage by stage: survey, prepare, encode, rewrite, publish, purge. `folio build` and `folio backfill` call
`run_build`, the flow its stages.

Killed at any point and started again it goes on where it was: what is finished has a receipt in the store, and the cuts of a run
are fixed by its plan, so that the map comes out the same. Readers see the version before until `publish` has created the next
manifest.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fol_model.inference import device_named
from infra.cluster import ray_cluster
from infra.commits import head_or_none, probe
from infra.leases import lease
from infra.machine import keep_freed_memory, memory_bytes
from infra.metrics import METRICS, PHOTOS_SEEN, exported, show_version
from infra.observability import Stopwatch, log_fields, progress_bar
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.compact import Rewriting, SegmentCopier
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.build.inventory import choose_rewriting, keep_plan, make_plan, require_model, take_inventory
from pipelines.build.membership import read_stored
from pipelines.build.plan import memory_needed, name_run, require_memory, require_room
from pipelines.build.progress import EncodedSegment, Progress, ProgressKeeper, begin, read_progress
from pipelines.build.publishing import publish_version, summarise
from pipelines.build.purge import Purged, purge
from pipelines.build.request import DEFAULT_RECIPE, BuildRequest, BuildSummary, Prepared, Surveyed
from pipelines.catalog.sources import Catalog, list_photos
from pipelines.engine.model import load_encoder, weights_file
from pipelines.engine.partition import Partition
from pipelines.engine.run import Outcome, run_here, run_on_ray
from schemas.errors import CatalogError
from schemas.reasons import RejectReason

_log = logging.getLogger(__name__)


def run_build(request: BuildRequest, settings: Settings) -> BuildSummary:
    """Bring a map up to date. See `BuildRequest`; raises any `FolioError`."""
    clock = Stopwatch()
    with watched(request, settings):
        with clock.stage("catalog"):
            surveyed = survey(request, settings)
        with named(surveyed), lease(surveyed.storage, run_id=surveyed.run_id, action=request.mode) as held:
            with clock.stage("catalog"):
                prepared = prepare(surveyed, settings)
            with clock.stage("encode"):
                lost = encode(prepared, settings)
            with clock.stage("rewrite"):
                rewriting = rewrite(prepared, settings)
            with clock.stage("publish"):
                published = publish_version(prepared, lost, rewriting, settings=settings, check=held.require)
            with clock.stage("purge"):
                purged = purge_map(prepared, check=held.require)
    return summarise(prepared, published, purged, clock)


@contextmanager
def watched(request: BuildRequest, settings: Settings) -> Iterator[None]:
    """Count a run for Prometheus while the block runs: all of it, as a night whose photos cannot be listed has failed too.

    Raises:
        WorkError: the port or file that the settings name cannot be used.
    """
    with exported(settings, {"map": open_storage(request.map_url, settings).url, "action": request.mode}):
        yield


@contextmanager
def named(surveyed: Surveyed) -> Iterator[None]:
    """Name the run in the log while the block runs."""
    with log_fields(run_id=surveyed.run_id):
        _log.info("%s of %s: %d photos listed", surveyed.request.mode, surveyed.storage.url, len(surveyed.catalog.images))
        yield


def plan_build(request: BuildRequest, settings: Settings) -> Prepared:
    """Work out what a build would do, and write nothing; raises as `survey` and `prepare`."""
    return prepare(survey(request, settings), settings)


def survey(request: BuildRequest, settings: Settings) -> Surveyed:
    """Open the network and list the photos. Writes nothing.

    Raises:
        CatalogError: the photos cannot be listed.
        ModelError: the network cannot be made or is not the map's.
    """
    storage = open_storage(request.map_url, settings)
    head = head_or_none(storage)
    recipe = request.recipe or (head.model.recipe if head else DEFAULT_RECIPE)
    weights = weights_file(recipe, request.weights, settings)
    request = replace(request, weights=str(weights) if weights else None)  # so that workers need not look for them
    encoder = load_encoder(recipe, weights=weights, device=request.device, arithmetic=settings.arithmetic)
    if head:
        require_model(request, encoder, head)
    catalog = list_photos(
        request.photos,
        settings=settings,
        utm_zone=request.utm_zone,
        needs_position=True,
        limits=request.limits,
    )
    _require_a_position(request, catalog)
    run_id = name_run(request.mode, encoder.fingerprint, catalog.images["photo_key"].to_pylist())
    return Surveyed(request=request, storage=storage, encoder=encoder, catalog=catalog, run_id=run_id)


def prepare(surveyed: Surveyed, settings: Settings) -> Prepared:
    """Find what the store already has, and plan the rest. Writes nothing.

    Raises:
        ModelError: the network is not the map's.
        PlanError: the work would not fit.
    """
    inventory = take_inventory(surveyed)
    plan = make_plan(surveyed, inventory, settings)
    require_room(plan, surveyed.request.map_url)
    if surveyed.request.workers == "here":  # where Ray runs them, Ray knows its machines
        largest = max((len(partition.images) for partition in inventory.cuts), default=0)
        encoder, limits = surveyed.encoder, surveyed.request.limits
        require_memory(plan, memory_bytes(), lambda workers: memory_needed(encoder, largest, workers, limits))
    return Prepared(
        request=surveyed.request,
        storage=surveyed.storage,
        encoder=surveyed.encoder,
        catalog=surveyed.catalog,
        inventory=inventory,
        partitions=[partition for partition in inventory.cuts if partition.segment_id not in inventory.stored],
        plan=plan,
    )


def encode(prepared: Prepared, settings: Settings) -> list[Partition]:
    """Encode what the store does not have yet.

    Returns:
        Partitions that were set aside because their workers died again and again.
    """
    request, storage = prepared.request, prepared.storage
    keep_freed_memory()
    if prepared.inventory.head is None and not request.single_writer:
        probe(storage)
    if prepared.partitions:
        keep_plan(storage, prepared.plan)
    job = EncodeJob(
        map_url=request.map_url,
        recipe=prepared.encoder.recipe.name,
        weights=request.weights,
        device=request.device,
        limits=request.limits,
        run_id=prepared.plan.run_id,
    )
    if prepared.inventory.head:
        show_version(prepared.inventory.head)
    if not prepared.partitions:
        return []
    keeper = ProgressKeeper(storage, _progress(prepared))
    lost = []
    try:
        for outcome in _run(prepared, job, settings):
            if outcome.result is None:
                lost.append(outcome.task)
                keeper.set_aside()
                _log.warning("segment %s is set aside: its workers died each time, also alone", outcome.task.segment_id)
            else:
                keeper.finished(outcome.result)
    finally:
        keeper.write()
    return lost


def rewrite(prepared: Prepared, settings: Settings) -> Rewriting:
    """Copy, in a build, the photos of segments that are to be merged or purged into fresh ones; see `compact`.

    Raises:
        DamagedError: what is to be copied is missing or not what was written.
        StorageError: the store does not answer. What is finished is kept.
    """
    storage, encoder, inventory = prepared.storage, prepared.encoder, prepared.inventory
    stored = read_stored(storage, encoder.fingerprint, known=inventory.stored)
    rewriting = choose_rewriting(prepared.request, encoder, inventory, stored)
    tasks = [partition for partition in rewriting.partitions if partition.segment_id not in stored]
    with progress_bar(sum(len(task.images) for task in tasks), unit="photo", description="merge") as bar:
        copiers = run_here(
            tasks,
            lambda: SegmentCopier(storage, stored, rewriting, encoder),
            threads=settings.threads,
            on_photo=bar.update,
        )
        for _ in copiers:
            pass
    return rewriting


def purge_map(prepared: Prepared, *, check: Callable[[], None]) -> Purged:
    """Remove, after a build, all that still holds photos taken down; see `purge`. A backfill leaves it to the next build."""
    if prepared.request.mode == "backfill":
        return Purged()
    return purge(prepared.storage, own_run=prepared.plan.run_id, check=check)


def _require_a_position(request: BuildRequest, catalog: Catalog) -> None:
    """Refuse sources whose every position is wrong: a mistake in the whole table, not in some of its rows."""
    reasons = set(catalog.rejects["reason"].to_pylist())
    if not len(catalog.images) and reasons == {RejectReason.POSITION_INVALID.value}:
        first = catalog.rejects.slice(0, 1).to_pylist()[0]
        raise CatalogError(
            f"{' '.join(request.photos)}: no photo has a position on Earth; the first is {first['uri']}: {first['detail']}. "
            "Nothing was written. Check the columns lat_deg and lon_deg."
        )


def _progress(prepared: Prepared) -> Progress:
    """Say where the run stands before it encodes: what an earlier start of it has finished counts."""
    storage, inventory, plan = prepared.storage, prepared.inventory, prepared.plan
    receipts = {name: inventory.stored[name].receipt for name in inventory.planned if name in inventory.stored}
    started = Progress(
        run_id=plan.run_id,
        mode=plan.mode,
        recipe=plan.recipe,
        device=device_named(prepared.request.device).type,
        segments_planned=len(inventory.cuts),
        photos_planned=sum(len(partition.images) for partition in inventory.cuts),
        started_at_s=time.time(),
    )
    return begin(started, receipts, read_progress(storage, plan.run_id) if receipts else None)


def _run(prepared: Prepared, job: EncodeJob, settings: Settings) -> Iterator[Outcome[Partition, EncodedSegment]]:
    with progress_bar(prepared.plan.photos_to_encode, unit="photo", description="encode") as bar:

        def seen(photos: int = 1) -> None:
            METRICS.add(PHOTOS_SEEN, photos)
            bar.update(photos)

        if prepared.request.workers == "here":
            yield from run_here(
                prepared.partitions,
                lambda: SegmentWorker(job, prepared.encoder, settings),
                threads=settings.threads,
                on_photo=seen,
            )
        elif prepared.partitions:
            with ray_cluster(settings) as cluster:
                from pipelines.build.actors import encode_actors  # here, because it imports Ray

                yield from run_on_ray(
                    prepared.partitions,
                    encode_actors(job, cluster),
                    cluster.workers,
                    on_task=lambda task: seen(len(task.images)),
                )
