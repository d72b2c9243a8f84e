"""catalog + store ▶ plan: what the store has of the photos asked for, what is to be encoded and copied, and how it is cut."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from fol_model.inference import Encoder
from infra.commits import head_or_none
from infra.settings import Settings
from infra.storage import Storage
from pipelines.build.compact import NOTHING, Rewriting, plan_rewriting, segments_to_purge
from pipelines.build.drift import WILL_TRAIN, learned_from, outlook
from pipelines.build.membership import (
    Selection,
    StoredSegment,
    expected_segment,
    live_keys,
    live_names,
    read_stored,
    require_whole,
    selected_keys,
    to_try_again,
    tried_keys,
    without_taken_down,
)
from pipelines.build.merging import allowed_photos, choose
from pipelines.build.plan import (
    SEGMENT_BYTES,
    BuildPlan,
    bytes_per_photo,
    decode_plan,
    index_bytes,
    memory_needed,
    training_memory,
)
from pipelines.build.request import BuildRequest, Inventory, Surveyed
from pipelines.build.tombstones import read_tombstones
from pipelines.build.tune import settled
from pipelines.engine.model import require_same_model
from pipelines.engine.partition import Partition, cut, segment_id
from schemas import layout
from schemas.errors import MapError, ObjectMissing
from schemas.manifest import Manifest, encode_json

_log = logging.getLogger(__name__)


def take_inventory(surveyed: Surveyed) -> Inventory:
    """Compare the photos asked for with what the store holds. Writes nothing.

    Raises:
        DamagedError: a receipt of the map is missing or not what was written.
        ModelError: the network is not the map's.
    """
    request, storage, encoder = surveyed.request, surveyed.storage, surveyed.encoder
    head = head_or_none(storage)
    if head:
        require_model(request, encoder, head)
    tombstones = read_tombstones(storage, head.tombstones if head else [])
    stored = without_taken_down(read_stored(storage, encoder.fingerprint), head, tombstones)
    require_whole(storage, head, encoder.fingerprint, stored)
    images = allowed_photos(surveyed.catalog.images, tombstones)
    placed = {entry.segment_id for entry in head.segments} if head else set()
    reused = _reused(surveyed, head, stored, tried_keys(stored, placed), placed)
    fresh = images.filter(pc.invert(_among(images["photo_key"], tried_keys(stored, placed | reused))))
    tried_in = to_try_again(stored)
    again = images.filter(_among(images["photo_key"], set(tried_in)))
    notes = []
    if request.mode == "backfill" and head:
        names = live_names(head, stored)
        held = _among(fresh["image_id"], names)
        if left := pc.sum(held).as_py():
            notes.append(
                f"{left} photos differ from photos of that name in the map and are left out; `folio build` replaces them"
            )
        fresh, again = fresh.filter(pc.invert(held)), again.filter(pc.invert(_among(again["image_id"], names)))
    cuts = cut(fresh, encoder.fingerprint, photos_per_segment=request.partition.photos_per_segment(len(fresh)))
    second_cuts = cut(again, encoder.fingerprint, photos_per_segment=request.partition.photos_per_segment(len(again)))
    return Inventory(
        head=head,
        held_keys=frozenset(live_keys(head, stored)) if head else frozenset(),
        stored=stored,
        images=images,
        tombstones=tombstones,
        to_purge=frozenset(segments_to_purge(storage, head, stored, tombstones)) if head else frozenset(),
        reused=frozenset(reused),
        cuts=[*cuts, *(_second_attempt(partition, tried_in, encoder.fingerprint) for partition in second_cuts)],
        notes=notes,
    )


def make_plan(surveyed: Surveyed, inventory: Inventory, settings: Settings) -> BuildPlan:
    """Work out what a build would take."""
    request, encoder, catalog, head = surveyed.request, surveyed.encoder, surveyed.catalog, inventory.head
    todo = [partition for partition in inventory.cuts if partition.segment_id not in inventory.stored]
    to_encode = sum(len(partition.images) for partition in todo)
    expected = {**inventory.stored, **{task.segment_id: expected_segment(task, encoder.fingerprint) for task in todo}}
    rewriting = choose_rewriting(request, encoder, inventory, expected)
    selection = _choose(request, inventory, expected)
    same = head.index if head and head.model.fingerprint == encoder.fingerprint else None
    photos = sum(int(live.sum()) for live in selection.values())
    largest = max((len(partition.images) for partition in todo), default=0)
    quantizer = outlook(
        same,
        photos,
        encoder.descriptor_dim,
        settled(request.index, head),
        taken_down=learned_from(surveyed.storage, same, head.tombstones if head else []),
        extend=request.mode == "backfill",
    )
    training = training_memory(encoder, photos, request.index) if quantizer.startswith(WILL_TRAIN) else 0
    workers = min(settings.threads, max(1, len(todo)))
    return BuildPlan(
        run_id=surveyed.run_id,
        mode=request.mode,
        recipe=encoder.recipe.name,
        trained=encoder.trained,
        photos_listed=len(catalog.images) + len(catalog.rejects),
        photos_rejected=len(catalog.images) - len(inventory.images) + len(catalog.rejects),
        photos_known=len(inventory.images) - to_encode,
        photos_to_encode=to_encode,
        segments_to_encode=len(todo),
        photos_dropped=len(inventory.held_keys - selected_keys(selection, expected)),
        segments_to_merge=len(rewriting.replaced),
        photos_to_copy=rewriting.photos,
        quantizer=quantizer,
        training_bytes=training,
        workers=workers,
        memory_bytes=max(memory_needed(encoder, largest, workers, request.limits), training),
        store_bytes=(to_encode + rewriting.photos) * bytes_per_photo(encoder)
        + (len(todo) + len(rewriting.partitions)) * SEGMENT_BYTES
        + (index_bytes(encoder, photos) if to_encode or rewriting.photos else 0),
        base=head.version if head else None,
        reused=sorted(inventory.reused),
    )


def choose_rewriting(
    request: BuildRequest, encoder: Encoder, inventory: Inventory, stored: Mapping[str, StoredSegment]
) -> Rewriting:
    """Choose what a build copies on top of the version it started from; a backfill copies nothing."""
    if request.mode == "backfill":
        return NOTHING
    return plan_rewriting(
        stored,
        _choose(request, inventory, stored),
        inventory.images,
        purged=inventory.to_purge,
        model_fingerprint=encoder.fingerprint,
        config=request.partition,
    )


def keep_plan(storage: Storage, plan: BuildPlan) -> None:
    """Store the plan of a run that has something to encode, unless it goes on with the one that is there."""
    there = _stored_plan(storage, plan.run_id)
    if there is None or there.base != plan.base:
        storage.put(_plan_path(plan.run_id), encode_json(plan))


def require_model(request: BuildRequest, encoder: Encoder, head: Manifest) -> None:
    """Refuse a network that is not the map's, unless every photo is to be encoded again.

    Raises:
        ModelError: it is another one.
    """
    if request.mode == "backfill":
        remedy = "Build another map, or give the network the map was made with."
    else:
        remedy = "To encode every photo again with the new one: --replace-model"
    if not request.replace_model:
        require_same_model(encoder, head.model, map_url=request.map_url, remedy=remedy)


def _choose(request: BuildRequest, inventory: Inventory, stored: Mapping[str, StoredSegment]) -> Selection:
    """Choose the photos of the next version as long as nobody else publishes."""
    return choose(
        request.mode,
        inventory.images,
        head=inventory.head,
        held_before=inventory.held_keys,
        stored=stored,
        tombstones=inventory.tombstones,
        planned=inventory.planned,
    )


def _second_attempt(partition: Partition, tried_in: Mapping[str, list[str]], model_fingerprint: str) -> Partition:
    """Name a partition also by the segments in which its photos could not be read: the name that it had is taken."""
    keys = partition.images["photo_key"].to_pylist()
    before = sorted({f"after {name}" for key in keys for name in tried_in[key]})
    return replace(partition, segment_id=segment_id([*keys, *before], model_fingerprint), tried_before=True)


def _reused(
    surveyed: Surveyed, head: Manifest | None, stored: Mapping[str, StoredSegment], placed_keys: set[str], placed: set[str]
) -> set[str]:
    """Name the segments beyond those of the version before in which this run finds photos that it need not encode.

    When the run was interrupted, those it found at its first start: what it has finished itself since must not change its cuts.
    """
    # The plan is read after the segments: a run of the same photos beside this one writes its plan before its first segment.
    plan = _stored_plan(surveyed.storage, surveyed.run_id)
    if plan and plan.base == (head.version if head else None):
        return set(plan.reused) & set(stored)
    missing = set(surveyed.catalog.images["photo_key"].to_pylist()) - placed_keys
    return {name for name in stored if name not in placed and not missing.isdisjoint(tried_keys(stored, [name]))}


def _stored_plan(storage: Storage, run_id: str) -> BuildPlan | None:
    path = _plan_path(run_id)
    try:
        return decode_plan(storage.get(path), where=f"{storage.url}/{path}")
    except ObjectMissing:
        return None
    except MapError as error:  # it decides nothing but where segments are cut, so a new one is as good
        _log.warning("the plan of an earlier run cannot be used, planning anew: %s", error)
        return None


def _plan_path(run_id: str) -> str:
    return f"{layout.run_folder(run_id)}/{layout.PLAN}"


def _among(column: pa.ChunkedArray, names: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(sorted(names), pa.string()))
