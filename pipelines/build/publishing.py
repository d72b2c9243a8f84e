"""segments ▶ version: select the photos, index them, publish the next manifest if it differs, and say what was done."""

import hashlib
import platform
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from fol_model.inference import Encoder
from infra.commits import publish
from infra.observability import Stopwatch
from infra.tables import read_table, write_table
from pipelines.build.index import build_index
from pipelines.build.membership import (
    Selection,
    StoredSegment,
    live_keys,
    masked_ranges,
    read_stored,
    segment_object,
    select_added,
    select_exactly,
)
from pipelines.build.request import BuildRequest, BuildSummary, Prepared, Published, in_words
from pipelines.engine.model import describe_model, require_same_model
from pipelines.engine.partition import Partition
from schemas import layout
from schemas.errors import CatalogError
from schemas.manifest import Manifest, Producer, Receipt, SegmentEntry
from schemas.reasons import RejectReason
from schemas.rejects import REJECTS


def publish_version(prepared: Prepared, lost: list[Partition]) -> Published:
    """Index what is encoded and publish the next version, if it differs from the one before.

    Raises:
        CatalogError: no photo is left to make a map of.
        CommitError: nothing was published, or it is unknown whether it was.
    """
    request, storage = prepared.request, prepared.storage
    encoded = read_stored(storage, prepared.encoder.fingerprint)
    rejects = _collect_rejects(prepared, encoded, lost)
    where = f"{layout.run_folder(prepared.plan.run_id)}/{layout.REJECTS}"
    write_table(storage, where, rejects, kind="rejects")
    reasons = dict(Counter(rejects["reason"].to_pylist()).most_common())
    wanted = set(prepared.catalog.images["photo_key"].to_pylist())

    def make(head: Manifest | None) -> Manifest | None:
        if head:
            require_model(request, prepared.encoder, head)  # again: another run may have published since
        stored = read_stored(storage, prepared.encoder.fingerprint, known=encoded)  # and what that run has encoded
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
    stored = read_stored(storage, prepared.encoder.fingerprint, known=encoded)
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
        action=request.mode,
    )


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
