"""segments ▶ version: select the photos, index them, publish the next manifest if it differs, and say what was done."""

import logging
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc

from fol_model.inference import Reranker
from infra.commits import publish
from infra.metrics import show_version
from infra.observability import Stopwatch
from infra.settings import Settings
from infra.tables import read_table, write_table
from pipelines.build.calibrate import calibrate, still_calibrated
from pipelines.build.compact import NOTHING, Rewriting
from pipelines.build.drift import outcome
from pipelines.build.index import build_index
from pipelines.build.inventory import require_model
from pipelines.build.masking import content_id
from pipelines.build.membership import (
    Selection,
    StoredSegment,
    live_keys,
    masked_ranges,
    read_stored,
    require_whole,
    segment_object,
    selected_keys,
    without_taken_down,
)
from pipelines.build.merging import allowed_photos, choose, conflict, is_mergeable
from pipelines.build.purge import Purged
from pipelines.build.request import BuildSummary, Prepared, Published
from pipelines.build.shards import ShardTask, make_here
from pipelines.build.shards_on_ray import make_on_ray
from pipelines.build.tombstones import Tombstones, read_tombstones
from pipelines.build.tune import settled
from pipelines.engine.model import describe_model
from pipelines.engine.partition import Partition
from schemas import layout
from schemas.calibration import Calibration, encode_calibration
from schemas.errors import CatalogError
from schemas.manifest import Manifest, ObjectRef, Producer, Receipt, SegmentEntry, ShardEntry
from schemas.reasons import RejectReason, in_words
from schemas.rejects import REJECTS

_log = logging.getLogger(__name__)


def publish_version(
    prepared: Prepared,
    lost: list[Partition],
    rewriting: Rewriting = NOTHING,
    *,
    settings: Settings,
    check: Callable[[], None] = lambda: None,
) -> Published:
    """Index what is encoded and publish the next version, if it differs from the one before.

    Args:
        prepared: the run.
        lost: partitions that were set aside.
        rewriting: what the run has copied.
        settings: of this process.
        check: raises when the run must not publish any more; see `commits.publish`.

    Raises:
        CatalogError: no photo is left to make a map of.
        CommitError: nothing was published, or it is unknown whether it was.
    """
    storage, inventory, fingerprint = prepared.storage, prepared.inventory, prepared.encoder.fingerprint
    encoded = read_stored(storage, fingerprint, known=inventory.stored)
    rejects = _collect_rejects(prepared, encoded, lost)
    where = f"{layout.run_folder(prepared.plan.run_id)}/{layout.REJECTS}"
    write_table(storage, where, rejects, kind="rejects")
    drafts = _Drafts(prepared, rewriting, encoded, _count_reasons(prepared, rejects), settings)
    manifest = publish(storage, drafts.make, check=check)
    show_version(manifest)
    _log.info("version %d, %d photos", manifest.version, manifest.statistics["photos"])
    stored = read_stored(storage, fingerprint, known=encoded)
    return Published(
        manifest=manifest,
        encoded=sum(stored[part.segment_id].receipt.rows for part in prepared.partitions if part.segment_id in stored),
        dropped=len(inventory.held_keys - live_keys(manifest, stored)),
        replaced=len(rewriting.replaced),
        rejected=drafts.reasons,
        rejects=f"{storage.url}/{where}",
    )


def _last_resort(head: Manifest | None) -> str:
    if head is None or head.statistics["photos"]:
        return ""
    return "All photos of this map were taken down, and no version without photos can be made: to forget them, delete the map. "


def summarise(prepared: Prepared, published: Published, purged: Purged, clock: Stopwatch) -> BuildSummary:
    """Say what a build did."""
    before, manifest = prepared.inventory.head, published.manifest
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
        merged=published.replaced,
        purged=purged,
        rejected=published.rejected,
        rejects=published.rejects,
        segments=len(manifest.segments),
        shards=len(manifest.index.shards),
        bytes_per_photo=(manifest.statistics["segment_bytes"] + manifest.statistics["index_bytes"]) / photos,
        encode_photos_per_second=published.encoded / seconds["encode"] if published.encoded else 0.0,
        seconds=seconds,
        quantizer=manifest.statistics.get("quantizer", ""),
        recipe=manifest.model.recipe,
        trained=manifest.model.trained,
        notes=[*prepared.catalog.notes, *prepared.inventory.notes],
    )


def _collect_rejects(prepared: Prepared, stored: Mapping[str, StoredSegment], lost: list[Partition]) -> pa.Table:
    """Put together the rejects of the catalog, of the segments and of lost workers, for the photos asked for now.

    A photo counts once, also when a segment that was copied still lies beside its copy, and not at all when it was encoded in the
    end. Photos taken down are in no table of the store.
    """
    images, tombstones = prepared.inventory.images, prepared.inventory.tombstones
    usable = {key for segment in stored.values() for key in segment.photo_keys}
    missing = set(images["photo_key"].to_pylist()) - usable
    parts = [prepared.catalog.rejects]
    for segment in stored.values():
        if found := missing.intersection(segment.rejected_keys):
            ref = segment_object(segment.receipt, layout.REJECTS)
            table = read_table(prepared.storage, ref.path, kind="rejects", expected=ref)
            parts.append(table.filter(pc.is_in(table["photo_key"], pa.array(sorted(found), pa.string()))))
            missing -= found
    for partition in lost:
        photos = partition.images.select(["uri", "root", "photo_key"]).to_pylist()
        detail = f"partition {partition.segment_id} lost its worker again and again; the next build tries it anew"
        gave_up = [{**photo, "stage": "encode", "reason": RejectReason.GAVE_UP.value, "detail": detail} for photo in photos]
        parts.append(pa.Table.from_pylist(gave_up, REJECTS))
    rejects = pa.concat_tables([part.cast(REJECTS).replace_schema_metadata(None) for part in parts])
    rejects = rejects.filter(pa.array(~tombstones.cover_rejects(rejects)))
    return rejects.sort_by([("uri", "ascending"), ("reason", "ascending")])


def _count_reasons(prepared: Prepared, rejects: pa.Table) -> dict[str, int]:
    reasons = dict(Counter(rejects["reason"].to_pylist()).most_common())
    taken_down = len(prepared.catalog.images) - len(prepared.inventory.images)
    taken_down += int(prepared.inventory.tombstones.cover_rejects(prepared.catalog.rejects).sum())
    return {**reasons, RejectReason.TAKEN_DOWN.value: taken_down} if taken_down else reasons


class _Drafts:
    """Makes the next version of a map, and anew on top of each version with which another run was faster."""

    def __init__(
        self,
        prepared: Prepared,
        rewriting: Rewriting,
        encoded: Mapping[str, StoredSegment],
        reasons: dict[str, int],
        settings: Settings,
    ) -> None:
        self.reasons = reasons
        self._settings = settings
        self._prepared = prepared
        self._encoded = encoded
        self._replaced = rewriting.replaced
        copies = {partition.segment_id for partition in rewriting.partitions}
        self._planned = (prepared.inventory.planned - rewriting.replaced) | copies
        self._written: list[str] = []
        """What the draft before has written for itself alone."""

    def make(self, head: Manifest | None) -> Manifest | None:
        """Make the version that follows `head`; see `commits.publish`."""
        request, storage, fingerprint = self._prepared.request, self._prepared.storage, self._prepared.encoder.fingerprint
        while self._written:  # the number of that draft is another run's, so nothing will ever name these
            storage.delete(self._written.pop())
        if head:
            require_model(request, self._prepared.encoder, head)  # again: another run may have published since
        tombstones = read_tombstones(storage, head.tombstones if head else [])
        stored = read_stored(storage, fingerprint, known=self._encoded)  # and what that run has encoded
        stored = without_taken_down(stored, head, tombstones, planned=self._planned)
        require_whole(storage, head, fingerprint, stored)
        if head is None or request.mode == "backfill" or is_mergeable(storage, self._started, head, fingerprint):
            selection = self._choose(head, stored, tombstones, held_before=self._prepared.inventory.held_keys)
        else:
            selection = self._choose(head, stored, tombstones, held_before=live_keys(head, stored))
            if selected_keys(selection, stored) != live_keys(head, stored):
                raise conflict(storage, self._started, head)
            return None  # the other run was asked for the same photos
        draft = self._draft(head, stored, selection)
        self._written.extend(_index_paths(draft) - (_index_paths(head) if head else set()))
        gains = head is not None and head.calibration is None and draft.calibration is not None
        return None if head is not None and head.content_id == draft.content_id and not gains else draft

    @property
    def _started(self) -> Manifest | None:
        return self._prepared.inventory.head

    def _choose(
        self, head: Manifest | None, stored: Mapping[str, StoredSegment], tombstones: Tombstones, *, held_before: Set[str]
    ) -> Selection:
        return choose(
            self._prepared.request.mode,
            allowed_photos(self._prepared.inventory.images, tombstones),
            head=head,
            held_before=held_before,
            stored=stored,
            tombstones=tombstones,
            planned=self._planned,
            replaced=self._replaced,
        )

    def _make_shards(self, tasks: Sequence[ShardTask]) -> list[ObjectRef]:
        """Make shards where the photos were encoded; a single one is not worth starting Ray for."""
        if self._prepared.request.workers == "ray" and len(tasks) > 1:
            return make_on_ray(self._prepared.request.map_url, self._settings)(tasks)
        return make_here(self._prepared.storage, self._settings.threads)(tasks)

    def _calibrate(self, same: Manifest | None, stored: Mapping[str, StoredSegment], selection: Selection) -> Calibration | None:
        photos = sum(int(live.sum()) for live in selection.values())
        before = still_calibrated(same, photos, extend=self._prepared.request.mode == "backfill")
        if before is not None:
            return before
        return calibrate(self._prepared.storage, stored, selection, Reranker(self._prepared.encoder.reranking))

    def _draft(self, head: Manifest | None, stored: Mapping[str, StoredSegment], selection: Selection) -> Manifest:
        request, encoder = self._prepared.request, self._prepared.encoder
        if not selection:
            raise CatalogError(
                f"{' '.join(request.photos)}: none of {self._prepared.plan.photos_listed} photos can be part of a map "
                f"({in_words(self.reasons)}). Nothing was published. {_last_resort(head)}See {self._prepared.storage.url}/"
                f"{layout.run_folder(self._prepared.plan.run_id)}/{layout.REJECTS}"
            )
        model, config = describe_model(encoder), settled(request.index, head)
        same = head if head and head.model.fingerprint == model.fingerprint else None
        index = build_index(
            self._prepared.storage,
            stored,
            selection,
            same,
            tombstones=head.tombstones if head else [],
            descriptor_dim=encoder.descriptor_dim,
            config=config,
            extend=request.mode == "backfill",
            run_id=self._prepared.plan.run_id,
            make_shards=self._make_shards,
        )
        segments = [_segment_entry(stored[name].receipt, selection) for name in sorted(selection)]
        calibration = self._calibrate(same, stored, selection)
        return Manifest(
            version=0,
            parent=None,
            commit_id="",
            created_at="",
            content_id=content_id(model, segments, index),
            producer=Producer(name="folio-vpr", version=version("folio-vpr"), python=platform.python_version()),
            model=model,
            segments=segments,
            index=index,
            tombstones=head.tombstones if head else [],
            calibration=encode_calibration(calibration),
            statistics={
                **_statistics(stored, selection, index.shards),
                "quantizer": outcome(index, same.index if same else None),
                "rejected": self.reasons,
            },
            configuration={
                "partition": asdict(request.partition),
                "index": asdict(config),
                "limits": asdict(request.limits),
            },
            single_writer=request.single_writer,
            action=request.mode,
        )


def _index_paths(manifest: Manifest) -> set[str]:
    index = manifest.index
    return {ref.path for ref in (index.quantizer, *(shard.file for shard in index.shards)) if ref}


def _segment_entry(receipt: Receipt, selection: Selection) -> SegmentEntry:
    assert receipt.bbox is not None, "a selected segment has at least one photo"
    return SegmentEntry(
        segment_id=receipt.segment_id,
        attempt=receipt.attempt,
        rows=receipt.rows,
        masked_rows=masked_ranges(selection[receipt.segment_id]),
        bbox=receipt.bbox,
        receipt_sha256=receipt.sha256,
    )


def _statistics(stored: Mapping[str, StoredSegment], selection: Selection, shards: list[ShardEntry]) -> dict[str, int]:
    objects = [ref for name in selection for ref in stored[name].receipt.objects]
    return {
        "photos": sum(int(live.sum()) for live in selection.values()),
        "segment_bytes": sum(ref.size_bytes for ref in objects),
        "index_bytes": sum(shard.file.size_bytes for shard in shards),
    }
