"""The build, stage by stage: prepare, encode, publish. `folio build` and `folio backfill` call `run_build`, the flow its stages.

Killed at any point and started again it goes on where it was: what is finished has a receipt in the store. Readers see the
version before until `publish` has created the next manifest.
"""

import hashlib
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from fol_model.inference import Encoder
from infra.cluster import ray_cluster
from infra.commits import head_or_none, probe, publish
from infra.observability import Stopwatch, progress_bar
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table, write_table
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.build.index import build_index
from pipelines.build.membership import (
    Selection,
    StoredSegment,
    live_keys,
    live_names,
    masked_ranges,
    read_stored,
    segment_object,
    select_added,
    select_exactly,
    still_to_encode,
)
from pipelines.build.plan import BuildPlan, make_plan, require_room
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import Catalog, list_photos
from pipelines.engine.model import describe_model, load_encoder, require_same_model, untrained_note
from pipelines.engine.partition import Partition, PartitionConfig, cut
from pipelines.engine.run import Outcome, run_here, run_on_ray
from pipelines.ivfpq import IndexConfig
from schemas import layout
from schemas.errors import CatalogError
from schemas.manifest import Manifest, Producer, Receipt, SegmentEntry, encode_json
from schemas.reasons import RejectReason
from schemas.rejects import REJECTS

Mode = Literal["build", "backfill"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """What a user asks for."""

    map_url: str
    photos: tuple[str, ...]
    mode: Mode = "build"
    recipe: str | None = None
    """None: the map's own, or `DEFAULT_RECIPE` for a new map."""
    weights: str | None = None
    """A safetensors file; None: the recipe's seeded weights."""
    replace_model: bool = False
    """Encode all photos again when the network is not the map's."""
    utm_zone: str | None = None
    workers: Literal["here", "ray"] = "here"
    device: str = "auto"
    single_writer: bool = False
    """Publish to a store that does not honour create-if-absent."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    limits: PhotoLimits = field(default_factory=PhotoLimits)


DEFAULT_RECIPE = "tiny"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the stages after `prepare` work from."""

    request: BuildRequest
    storage: Storage
    head: Manifest | None
    encoder: Encoder
    catalog: Catalog
    partitions: list[Partition]
    plan: BuildPlan
    notes: list[str]
    """For the user: how the photos were understood."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the last stage gives to the summary."""

    manifest: Manifest
    encoded: int
    dropped: int
    rejected: dict[str, int]
    rejects: str


class BuildSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a build did. `folio build --json` prints it."""

    map: str
    version: int
    published: bool
    """False: the map already was what was asked for."""
    photos: int
    """In the map now."""
    encoded: int
    known: int
    dropped: int
    """In the version before, not in this one; a photo that has changed counts here and as encoded."""
    rejected: dict[str, int]
    rejects: str
    """Where the table of rejects lies."""
    segments: int
    shards: int
    bytes_per_photo: float
    encode_photos_per_second: float
    seconds: dict[str, float]
    recipe: str
    trained: bool
    notes: list[str]

    def lines(self) -> list[str]:
        """Say it to a person."""
        rate = f", {self.encode_photos_per_second:.1f} photos/s" if self.encoded else ""
        lines = [
            *(f"note: {note}" for note in self.notes),
            f"{self.encoded:,} photos encoded{rate}; {self.known:,} were known, {self.dropped:,} dropped",
        ]
        if self.rejected:
            lines.append(f"{sum(self.rejected.values()):,} rejected ({in_words(self.rejected)}), see {self.rejects}")
        state = "published" if self.published else "unchanged, nothing published"
        lines.append(
            f"{self.map}: version {self.version} {state}, {self.photos:,} photos in {self.segments:,} segments and "
            f"{self.shards:,} shards, {self.bytes_per_photo:,.0f} bytes/photo"
        )
        if not self.trained:
            lines.append(untrained_note(self.recipe))
        return lines


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
    encoder = _open_network(request, head)
    catalog = list_photos(
        request.photos,
        settings=settings,
        utm_zone=request.utm_zone,
        needs_position=True,
        limits=request.limits,
        show_progress=True,
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


def publish_version(prepared: Prepared, lost: list[Partition]) -> Published:
    """Index what is encoded and publish the next version, if it differs from the one before.

    Raises:
        CatalogError: no photo is left to make a map of.
        CommitError: nothing was published, or it is unknown whether it was.
    """
    request, storage = prepared.request, prepared.storage
    rejects = _collect_rejects(prepared, read_stored(storage, prepared.encoder.fingerprint), lost)
    where = f"{layout.run_folder(prepared.plan.run_id)}/{layout.REJECTS}"
    write_table(storage, where, rejects, kind="rejects")
    reasons = dict(Counter(rejects["reason"].to_pylist()).most_common())
    wanted = set(prepared.catalog.images["photo_key"].to_pylist())

    def make(head: Manifest | None) -> Manifest | None:
        if head:
            _require_model(request, prepared.encoder, head)  # again: another run may have published since
        stored = read_stored(storage, prepared.encoder.fingerprint)
        same = head if head is not None and head.model.fingerprint == prepared.encoder.fingerprint else None
        if request.mode == "backfill":
            selection = select_added(stored, same, wanted)
        else:
            selection = select_exactly(stored, wanted)
        if not selection:
            raise CatalogError(
                f"{' '.join(request.photos)}: none of {prepared.plan.photos_listed} photos can be part of a map "
                f"({in_words(reasons)}). Nothing was published. See {storage.url}/{where}"
            )
        draft = _draft(prepared, stored, selection, same, reasons)
        return None if head is not None and head.content_id == draft.content_id else draft

    manifest = publish(storage, make)
    stored = read_stored(storage, prepared.encoder.fingerprint)
    before = live_keys(prepared.head, stored) if prepared.head else set()
    return Published(
        manifest=manifest,
        encoded=sum(stored[part.segment_id].receipt.rows for part in prepared.partitions if part.segment_id in stored),
        dropped=len(before - live_keys(manifest, stored)),
        rejected=reasons,
        rejects=f"{storage.url}/{where}",
    )


def summarise(prepared: Prepared, published: Published, clock: Stopwatch) -> BuildSummary:
    """Say what a build did."""
    before, manifest = prepared.head, published.manifest
    photos = manifest.statistics["photos"]
    seconds = clock.seconds()
    return BuildSummary(
        map=prepared.storage.url,
        version=manifest.version,
        published=before is None or manifest.version != before.version,
        photos=photos,
        encoded=published.encoded,
        known=prepared.plan.photos_known,
        dropped=published.dropped,
        rejected=published.rejected,
        rejects=published.rejects,
        segments=len(manifest.segments),
        shards=len(manifest.index.shards),
        bytes_per_photo=(manifest.statistics["segment_bytes"] + manifest.statistics["index_bytes"]) / photos,
        encode_photos_per_second=published.encoded / seconds["encode"] if published.encoded else 0.0,
        seconds=seconds,
        recipe=manifest.model.recipe,
        trained=manifest.model.trained,
        notes=prepared.notes,
    )


def _require_a_position(request: BuildRequest, catalog: Catalog) -> None:
    """Refuse sources whose every position is wrong: a mistake in the whole table, not in some of its rows."""
    reasons = set(catalog.rejects["reason"].to_pylist())
    if not len(catalog.images) and reasons == {RejectReason.POSITION_INVALID.value}:
        first = catalog.rejects.slice(0, 1).to_pylist()[0]
        raise CatalogError(
            f"{' '.join(request.photos)}: no photo has a position on Earth; the first is {first['uri']}: {first['detail']}. "
            "Nothing was written. Check the columns lat_deg and lon_deg."
        )


def _open_network(request: BuildRequest, head: Manifest | None) -> Encoder:
    recipe = request.recipe or (head.model.recipe if head else DEFAULT_RECIPE)
    encoder = load_encoder(recipe, weights=Path(request.weights) if request.weights else None, device=request.device)
    if head:
        _require_model(request, encoder, head)
    return encoder


def _require_model(request: BuildRequest, encoder: Encoder, head: Manifest) -> None:
    if request.mode == "backfill":
        remedy = "Build another map, or give the network the map was made with."
    else:
        remedy = "To encode every photo again with the new one: --replace-model"
    if not request.replace_model:
        require_same_model(encoder, head.model, map_url=request.map_url, remedy=remedy)


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


def _collect_rejects(prepared: Prepared, stored: dict[str, StoredSegment], lost: list[Partition]) -> pa.Table:
    """Put together the rejects of the catalog, of the segments and of lost workers, for the photos asked for now."""
    wanted = prepared.catalog.images["photo_key"]
    parts = [prepared.catalog.rejects]
    for segment in stored.values():
        if segment.rejected_keys:
            ref = segment_object(segment.receipt, layout.REJECTS)
            table = read_table(prepared.storage, ref.path, kind="rejects", expected=ref)
            parts.append(table.filter(pc.is_in(table["photo_key"], wanted)))
    for partition in lost:
        photos = partition.images.select(["uri", "root", "photo_key"]).to_pylist()
        detail = f"partition {partition.segment_id} lost its worker again and again; the next build tries it anew"
        gave_up = [{**photo, "stage": "encode", "reason": RejectReason.GAVE_UP.value, "detail": detail} for photo in photos]
        parts.append(pa.Table.from_pylist(gave_up, REJECTS))
    plain = [part.cast(REJECTS).replace_schema_metadata(None) for part in parts]
    return pa.concat_tables(plain).sort_by([("uri", "ascending"), ("reason", "ascending")])


def _draft(
    prepared: Prepared, stored: dict[str, StoredSegment], selection: Selection, head: Manifest | None, reasons: dict[str, int]
) -> Manifest:
    request = prepared.request
    index = build_index(
        prepared.storage,
        stored,
        selection,
        head,
        descriptor_dim=prepared.encoder.descriptor_dim,
        config=request.index,
        extend=request.mode == "backfill",
    )
    segments = [_segment_entry(stored[name].receipt, selection) for name in sorted(selection)]
    model = describe_model(prepared.encoder)
    seen = [model.fingerprint, [(s.segment_id, s.masked_rows) for s in segments], index.index_id, index.kind]
    shards = [(shard.file.sha256, shard.segments) for shard in index.shards]
    return Manifest(
        version=0,
        parent=None,
        commit_id="",
        created_at="",
        content_id=hashlib.sha256(msgspec.json.encode([seen, shards])).hexdigest(),
        producer=Producer(name="folio-vpr", version=version("folio-vpr"), python=platform.python_version()),
        model=model,
        segments=segments,
        index=index,
        statistics=_statistics(stored, selection, index.shards, reasons),
        configuration={"partition": asdict(request.partition), "index": asdict(request.index), "limits": asdict(request.limits)},
        single_writer=request.single_writer,
    )


def _segment_entry(receipt: Receipt, selection: Selection) -> SegmentEntry:
    assert receipt.bbox is not None, "a selected segment has at least one photo"
    return SegmentEntry(
        segment_id=receipt.segment_id,
        attempt=receipt.attempt,
        rows=receipt.rows,
        masked_rows=masked_ranges(selection[receipt.segment_id]),
        bbox=receipt.bbox,
        receipt_sha256=hashlib.sha256(encode_json(receipt)).hexdigest(),
    )


def _statistics(
    stored: dict[str, StoredSegment], selection: Selection, shards: list[Any], reasons: dict[str, int]
) -> dict[str, Any]:
    objects = [ref for name in selection for ref in stored[name].receipt.objects]
    return {
        "photos": sum(int(live.sum()) for live in selection.values()),
        "segment_bytes": sum(ref.size_bytes for ref in objects),
        "index_bytes": sum(shard.file.size_bytes for shard in shards),
        "rejected": reasons,
    }


def in_words(reasons: dict[str, int]) -> str:
    """Say counts by reason in one phrase."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
