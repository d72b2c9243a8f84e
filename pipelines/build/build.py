"""The build, stage by stage: prepare, encode, publish. `folio build` and `folio backfill` call `run_build`, the flow its stages.

Killed at any point and started again it goes on where it was: what is finished has a receipt in the store. Readers see the
version before until `publish` has created the next manifest.
"""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from infra.cluster import ray_cluster
from infra.commits import head_or_none, probe
from infra.observability import Stopwatch, progress_bar
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.build.membership import (
    live_names,
    read_stored,
    still_to_encode,
)
from pipelines.build.plan import make_plan, require_room
from pipelines.build.publishing import publish_version, require_model, summarise
from pipelines.build.request import DEFAULT_RECIPE, BuildRequest, BuildSummary, Prepared
from pipelines.catalog.sources import Catalog, list_photos
from pipelines.engine.model import load_encoder, weights_file
from pipelines.engine.partition import Partition, cut
from pipelines.engine.run import Outcome, run_here, run_on_ray
from schemas import layout
from schemas.errors import CatalogError
from schemas.manifest import Receipt, encode_json
from schemas.reasons import RejectReason


def run_build(request: BuildRequest, settings: Settings) -> BuildSummary:
    """Bring a map up to date. See `BuildRequest`; raises any `FolioError`."""
    clock = Stopwatch()
    with clock.stage("catalog"):
        prepared = prepare(request, settings)
    with clock.stage("encode"):
        lost = encode(prepared, settings)
    with clock.stage("publish"):
        published = publish_version(prepared, lost)
    return summarise(prepared, published, clock)


def prepare(request: BuildRequest, settings: Settings) -> Prepared:
    """List the photos, find what the store already has, and plan the rest. Writes nothing.

    Raises:
        CatalogError: the photos cannot be listed.
        ModelError: the network cannot be made or is not the map's.
        PlanError: the work would not fit.
    """
    storage = open_storage(request.map_url, settings)
    head = head_or_none(storage)
    recipe = request.recipe or (head.model.recipe if head else DEFAULT_RECIPE)
    weights = weights_file(recipe, request.weights, settings)
    request = replace(request, weights=str(weights) if weights else None)  # so that workers need not look for them
    encoder = load_encoder(recipe, weights=weights, device=request.device)
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
    stored = read_stored(storage, encoder.fingerprint)
    fresh = catalog.images.filter(pa.array(still_to_encode(stored, catalog.images["photo_key"].to_pylist())))
    notes = list(catalog.notes)
    if request.mode == "backfill" and head:
        held = pc.is_in(fresh["image_id"], pa.array(live_names(head, stored), pa.string()))
        if left := pc.sum(held).as_py():
            notes.append(
                f"{left} photos differ from photos of that name in the map and are left out; `folio build` replaces them"
            )
        fresh = fresh.filter(pc.invert(held))
    partitions = list(cut(fresh, encoder.fingerprint, request.partition))
    plan = make_plan(
        catalog,
        len(fresh),
        [len(partition.images) for partition in partitions],
        encoder,
        mode=request.mode,
        workers=settings.threads,
    )
    require_room(plan, request.map_url)
    return Prepared(
        request=request,
        storage=storage,
        head=head,
        encoder=encoder,
        catalog=catalog,
        partitions=partitions,
        plan=plan,
        notes=notes,
    )


def encode(prepared: Prepared, settings: Settings) -> list[Partition]:
    """Encode what the store does not have yet.

    Returns:
        Partitions that were set aside because their workers died again and again.
    """
    request, storage = prepared.request, prepared.storage
    if prepared.head is None and not request.single_writer:
        probe(storage)
    # If absent: a run that goes on after an interruption keeps what it first set out to do.
    storage.put_if_absent(f"{layout.run_folder(prepared.plan.run_id)}/{layout.PLAN}", encode_json(prepared.plan))
    job = EncodeJob(
        map_url=request.map_url,
        recipe=prepared.encoder.recipe.name,
        weights=request.weights,
        device=request.device,
        limits=request.limits,
    )
    return [outcome.task for outcome in _run(prepared, job, settings) if outcome.result is None]


def _require_a_position(request: BuildRequest, catalog: Catalog) -> None:
    """Refuse sources whose every position is wrong: a mistake in the whole table, not in some of its rows."""
    reasons = set(catalog.rejects["reason"].to_pylist())
    if not len(catalog.images) and reasons == {RejectReason.POSITION_INVALID.value}:
        first = catalog.rejects.slice(0, 1).to_pylist()[0]
        raise CatalogError(
            f"{' '.join(request.photos)}: no photo has a position on Earth; the first is {first['uri']}: {first['detail']}. "
            "Nothing was written. Check the columns lat_deg and lon_deg."
        )


def _run(prepared: Prepared, job: EncodeJob, settings: Settings) -> Iterator[Outcome[Partition, Receipt]]:
    with progress_bar(prepared.plan.photos_to_encode, unit="photo", description="encode") as bar:
        if prepared.request.workers == "here":
            yield from run_here(
                prepared.partitions,
                lambda: SegmentWorker(job, prepared.encoder, settings),
                threads=settings.threads,
                on_photo=bar.update,
            )
        elif prepared.partitions:
            with ray_cluster(settings) as cluster:
                from pipelines.build.actors import start_actors  # here, because it imports Ray

                actors = start_actors(job, cluster, len(prepared.partitions))
                yield from run_on_ray(prepared.partitions, actors, on_task=lambda task: bar.update(len(task.images)))
