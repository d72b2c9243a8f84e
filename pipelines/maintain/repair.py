"""damage ▶ the same objects again, or a version without need of them.

What is made again and has the very sha256 that was published is put back in its place: every version that names it is whole
again, and nothing is published. On another machine, with another release of a library or without some of the photos the bytes
differ; then the newest version gets new segments and shards instead, and older versions that name what cannot be had any more
are retired. Nothing that is whole is written over, and of a damaged segment only the receipt is removed, after the version
without it is published, so that builds do not count on it.
"""

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow as pa

from fol_model.inference import Encoder
from infra.commits import (
    list_retired,
    list_versions,
    publish,
    read_head,
    read_manifest,
    receipt_path,
    retire,
    write_receipt,
)
from infra.leases import HeldLease, lease, live_leases
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import READ_THREADS, DescriptorReader, get_object, read_table, row_group_blocks
from pipelines.build.index import build_index
from pipelines.build.masking import checked_receipt, content_id
from pipelines.build.membership import live_rows, masked_ranges, read_segment, segment_object
from pipelines.build.tombstones import read_tombstones
from pipelines.catalog.limits import PhotoLimits
from pipelines.engine.model import load_encoder, require_same_model, weights_file
from pipelines.engine.partition import Partition, segment_id
from pipelines.maintain.encode_again import DamagedSegment, PhotoFinder, encoded_again
from pipelines.maintain.index_again import index_config, shard_again, train_again
from pipelines.maintain.verify import Verification, verify
from schemas import layout
from schemas.errors import CommitConflict, DamagedError, FormatError, MapError, ObjectMissing
from schemas.manifest import Manifest, ObjectRef, Receipt, SegmentEntry, decode_receipt, encode_json
from schemas.versions import FORMATS


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairRequest:
    """What a user asks for."""

    map_url: str
    photos: tuple[str, ...] = ()
    """Where to look for photos that are not where the map has them from, or of which the map has lost the names."""
    weights: str | None = None
    device: str = "auto"
    limits: PhotoLimits = field(default_factory=PhotoLimits)


class Repaired(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio verify --repair` did."""

    map: str
    version: int
    """The newest one now."""
    published: bool
    """False: everything that could be repaired is again what was published before."""
    restored: list[str]
    """Objects that are again, byte for byte, what was published."""
    encoded: int
    """Photos that went through the network."""
    replaced: list[str]
    """Segments whose photos are in a new segment now."""
    retired: list[int]
    """Older versions that named those, and cannot be opened any more."""
    lost: list[str]
    """Photos of the newest version that could not be found any more, by name or image id; they left the map."""
    notes: list[str]
    found: Verification
    """What a search found afterwards."""

    def lines(self) -> list[str]:
        """Say it to a person."""
        lines = [*(f"{path}: restored" for path in self.restored), *(f"note: {note}" for note in self.notes)]
        if self.replaced:
            lines.append(f"{len(self.replaced)} segments replaced: {', '.join(self.replaced)}")
        if self.retired:
            lines.append(f"versions retired, which named what is lost: {', '.join(map(str, self.retired))}")
        lines += [f"{name}: not found any more, left the map" for name in self.lost]
        state = f"version {self.version} published" if self.published else f"version {self.version} stands, nothing published"
        return [*lines, f"{self.map}: {self.encoded:,} photos encoded again, {state}", *self.found.lines()]


def repair(request: RepairRequest, settings: Settings) -> Repaired:
    """Make again what is damaged or missing in a map. Safe to stop and run again.

    Raises:
        MapMissing: there is no map.
        DamagedError: the newest manifest is damaged, or something that is needed to make the rest again.
        ModelError: the network cannot be made or is not the map's.
        CommitConflict: another run published meanwhile; what was put back in place stays so.
    """
    storage = open_storage(request.map_url, settings)
    head = read_head(storage)
    run_id = f"repair-{uuid4().hex[:12]}"
    with lease(storage, run_id=run_id, action="repair", pins=[head.version]) as held:
        work = _Repair(request, settings, storage, head, {problem.path for problem in verify(storage).problems})
        work.segments()
        work.index()
        work.forget_unpublished(run_id)
        manifest = work.publish(held)
        retired = work.retire_broken(held.require) if manifest.version != head.version else []
    return Repaired(
        map=storage.url,
        version=manifest.version,
        published=manifest.version != head.version,
        restored=sorted(work.restored),
        encoded=work.encoded,
        replaced=sorted(work.replaced),
        retired=retired,
        lost=work.lost,
        notes=work.notes,
        found=verify(storage),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Replacement:
    """A segment that stands in for one that cannot be had any more."""

    receipt: Receipt
    live: np.ndarray


class _Repair:
    """One repair of a map whose newest version is `head`; `damaged` are the paths that verify named."""

    def __init__(self, request: RepairRequest, settings: Settings, storage: Storage, head: Manifest, damaged: set[str]) -> None:
        self._request = request
        self._settings = settings
        self._storage = storage
        self._head = head
        self._damaged = damaged
        self.restored: set[str] = set()
        self.replaced: dict[str, _Replacement] = {}
        self.encoded = 0
        self.lost: list[str] = []
        self.notes: list[str] = []

    def segments(self) -> None:
        """Make damaged segments again: in their places, or else, for the newest version, as new segments."""
        left = {re.split(r"[/.]", path)[1] for path in self._damaged if path.startswith(("receipts/", "segments/"))}
        done: set[tuple[str, str]] = set()
        for manifest in reversed(self._manifests):
            for entry in manifest.segments:
                if entry.segment_id in left and (entry.segment_id, entry.attempt) not in done:
                    self._segment(entry, manifest)
                    done.add((entry.segment_id, entry.attempt))

    def index(self) -> None:
        """Make damaged quantizers and shards again in their places, where that gives the same bytes."""
        tried: set[str] = set()
        for manifest in self._manifests:  # the first that names an object is the one that made it
            quantizer = manifest.index.quantizer
            if quantizer and quantizer.path not in tried:
                self._restore(quantizer, partial(train_again, self._storage, manifest))
            for shard in manifest.index.shards:
                if shard.file.path not in tried:
                    self._restore(shard.file, partial(shard_again, self._storage, manifest, shard))
            tried |= {ref.path for ref in _index_objects(manifest)}

    def forget_unpublished(self, own_run: str) -> None:
        """Remove receipts of damaged segments that no version names, so that builds encode their photos again."""
        named = {receipt_path(entry.segment_id) for manifest in self._manifests for entry in manifest.segments}
        for path in [info.path for info in self._storage.list("receipts") if info.path not in named]:
            with suppress(MapError):
                receipt = decode_receipt(self._storage.get(path), where=path)
                if not any(ref.path in self._damaged for ref in receipt.objects):
                    continue
            if [one.run_id for one in live_leases(self._storage) if one.run_id != own_run]:
                self.notes.append(f"{path}: left as it is, because a run that may need it is at work; repair again later")
                continue
            self._storage.delete(path)
            self.notes.append(
                f"{path}: of a damaged segment that no version has; removed, the next build encodes its photos again"
            )

    def publish(self, held: HeldLease) -> Manifest:
        """Publish a version without what could not be restored, where the newest one needs it.

        Raises:
            CommitConflict: it is not the newest version any more.
        """
        if not self.replaced and not any(self._is_lost(ref) for ref in _index_objects(self._head)):
            return self._head
        draft = self._draft()

        def make(head: Manifest | None) -> Manifest | None:
            if head is None or head.version != self._head.version:
                raise CommitConflict(
                    f"{self._storage.url}: another run published after version {self._head.version}, which was being repaired. "
                    "Nothing was published, what was restored stays so. Run the same command again."
                )
            return draft

        return publish(self._storage, make, check=held.require)

    def retire_broken(self, check: Callable[[], None]) -> list[int]:
        """Retire the versions that cannot be whole again, and remove the receipts that builds would stumble over.

        Args:
            check: called before each mark; raises when this run's lease has lapsed.
        """
        broken = [
            manifest.version
            for manifest in self._manifests
            if any(entry.segment_id in self.replaced for entry in manifest.segments)
            or any(self._is_lost(ref) for ref in _index_objects(manifest))
        ]
        retire(self._storage, broken, reason="repair", check=check)
        for name in self.replaced:
            self._storage.delete(receipt_path(name))
        return broken

    def _segment(self, entry: SegmentEntry, manifest: Manifest) -> None:
        receipt = self._receipt(entry, manifest)
        if receipt and not any(ref.path in self._damaged for ref in receipt.objects):
            return
        in_head = {one.segment_id: one for one in self._head.segments if one.attempt == entry.attempt}.get(entry.segment_id)
        live = live_rows(in_head) if in_head else np.zeros(entry.rows, bool)
        photos = self._finder.find(DamagedSegment(folder=_folder(entry), live=live, bbox=entry.bbox))
        same_model = manifest.model.fingerprint == self._head.model.fingerprint
        if not same_model or not len(photos.images) or not (in_head or photos.complete):
            why = "not all of its photos were found; say where they are: --repair PHOTOS" if same_model else "of another network"
            self.notes.append(f"segment {entry.segment_id} of version {manifest.version} stays damaged: {why}")
            return
        keys = photos.images["photo_key"].to_pylist()
        partition = Partition(segment_id=self._new_name(entry, keys), images=photos.images)
        with encoded_again(partition, self._encoder, self._settings, self._request.limits) as (scratch, made):
            self.encoded += made.rows
            if photos.complete and self._put_back(entry, receipt, scratch, made):
                return
            if not in_head:
                self.notes.append(
                    f"segment {entry.segment_id} of version {manifest.version} stays damaged: its bytes differ here"
                )
                return
            self._stand_in(entry, scratch, made, set(photos.images.filter(pa.array(photos.live))["image_id"].to_pylist()))
            self.lost += photos.lost

    def _receipt(self, entry: SegmentEntry, manifest: Manifest) -> Receipt | None:
        """Read a receipt, or write it again where the objects prove that it is what was published."""
        with suppress(MapError):
            return checked_receipt(self._storage, entry)
        paths = [info.path for info in self._storage.list(_folder(entry))]
        with suppress(MapError, ObjectMissing):
            rejects = read_table(self._storage, f"{_folder(entry)}/{layout.REJECTS}", kind="rejects", columns=["uri"])
            objects = [_describe(path, self._storage.get(path)) for path in paths]
            receipt = _proven(entry, manifest.model.fingerprint, objects, len(rejects))
            if receipt:
                self._write_receipt(receipt)
            return receipt
        return None

    def _write_receipt(self, receipt: Receipt) -> None:
        path = receipt_path(receipt.segment_id)
        self._storage.put(path, encode_json(receipt))
        self.restored.add(path)

    def _put_back(self, entry: SegmentEntry, receipt: Receipt | None, scratch: Storage, made: Receipt) -> bool:
        """Put the damaged objects of a segment back in their places, if what was made again is the same, byte for byte."""
        before = layout.segment_folder(made.segment_id, made.attempt)
        again = {ref.path.replace(before, _folder(entry), 1): ref for ref in made.objects}
        if receipt is None:
            objects = [msgspec.structs.replace(ref, path=path) for path, ref in again.items()]
            whole = _proven(entry, made.model_fingerprint, objects, made.rejected)
        else:
            whole = receipt
        if whole is None:
            return False
        broken = [ref for ref in whole.objects if not _is_whole(self._storage, ref)]
        if any(ref.path not in again or again[ref.path].sha256 != ref.sha256 for ref in broken):
            return False
        for ref in broken:
            self._storage.put(ref.path, scratch.get(again[ref.path].path))
            self.restored.add(ref.path)
        if receipt is None:
            self._write_receipt(whole)
        return True

    def _stand_in(self, entry: SegmentEntry, scratch: Storage, made: Receipt, live_ids: set[str]) -> None:
        """Store what was made again as a segment of its own."""
        for ref in made.objects:
            self._storage.put(ref.path, scratch.get(ref.path))
        stands = write_receipt(self._storage, made)
        live = np.array([name in live_ids for name in read_segment(self._storage, stands).image_ids], bool)
        self.replaced[entry.segment_id] = _Replacement(receipt=stands, live=live)

    def _new_name(self, entry: SegmentEntry, keys: list[str]) -> str:
        """Name a segment as if it were encoded for the first time, unless that name is taken."""
        taken = {info.path for info in self._storage.list("receipts")} | {receipt_path(entry.segment_id)}
        name = segment_id(keys, self._head.model.fingerprint)
        if receipt_path(name) not in taken:
            return name
        return segment_id([*keys, f"instead of {entry.attempt}"], self._head.model.fingerprint)

    def _restore(self, ref: ObjectRef, make: Callable[[], bytes]) -> None:
        if ref.path not in self._damaged:
            return
        with suppress(MapError):  # what it is made of is damaged as well
            data = make()
            if hashlib.sha256(data).hexdigest() == ref.sha256:
                self._storage.put(ref.path, data)
                self.restored.add(ref.path)

    def _is_lost(self, ref: ObjectRef) -> bool:
        return ref.path in self._damaged and ref.path not in self.restored

    def _draft(self) -> Manifest:
        """Make the next version: new segments for those replaced, and an index that fits."""
        head = self._head
        kept_entries = [entry for entry in head.segments if entry.segment_id not in self.replaced]
        selection = {entry.segment_id: live_rows(entry) for entry in kept_entries}
        selection |= {stand_in.receipt.segment_id: stand_in.live for stand_in in self.replaced.values()}
        with ThreadPoolExecutor(READ_THREADS) as pool:
            receipts = list(pool.map(partial(checked_receipt, self._storage), kept_entries))
            receipts += [stand_in.receipt for stand_in in self.replaced.values()]
            stored = {segment.receipt.segment_id: segment for segment in pool.map(partial(read_segment, self._storage), receipts)}
        kept = msgspec.structs.replace(head.index, shards=[one for one in head.index.shards if not self._is_lost(one.file)])
        lost_quantizer = head.index.quantizer is not None and self._is_lost(head.index.quantizer)
        index = build_index(
            self._storage,
            stored,
            selection,
            None if lost_quantizer else msgspec.structs.replace(head, index=kept),
            tombstones=head.tombstones,
            descriptor_dim=DescriptorReader(self._storage, segment_object(receipts[0], layout.DESCRIPTORS)).read([0]).shape[1],
            config=index_config(head),
            extend=True,
        )
        segments = [_entry(stored[name].receipt, selection[name]) for name in sorted(selection)]
        sizes = {
            "photos": sum(int(live.sum()) for live in selection.values()),
            "segment_bytes": sum(ref.size_bytes for receipt in receipts for ref in receipt.objects),
            "index_bytes": sum(shard.file.size_bytes for shard in index.shards),
        }
        return msgspec.structs.replace(
            head,
            format_version=FORMATS["manifest"],
            action="repair",
            segments=segments,
            index=index,
            statistics={**head.statistics, **sizes},
            content_id=content_id(head.model, segments, index),
        )

    @cached_property
    def _manifests(self) -> list[Manifest]:
        """The versions that are not retired and can be read, oldest first."""
        manifests = []
        for version in sorted(set(list_versions(self._storage)) - list_retired(self._storage)):
            with suppress(DamagedError, FormatError):
                manifests.append(read_manifest(self._storage, version))
        return manifests

    @cached_property
    def _encoder(self) -> Encoder:
        recipe = self._head.model.recipe
        weights = weights_file(recipe, self._request.weights, self._settings)
        encoder = load_encoder(recipe, weights=weights, device=self._request.device, arithmetic=self._settings.arithmetic)
        remedy = "Give the weights the map was made with: --weights FILE.safetensors"
        require_same_model(encoder, self._head.model, map_url=self._storage.url, remedy=remedy)
        return encoder

    @cached_property
    def _finder(self) -> PhotoFinder:
        return PhotoFinder(
            self._storage,
            self._request.photos,
            self._settings,
            self._request.limits,
            tombstones=read_tombstones(self._storage, self._head.tombstones),
            held=self._held,
        )

    def _held(self) -> set[str]:
        """List the photos that whole segments of the newest version hold or have found unusable."""
        held: set[str] = set()
        for entry in self._head.segments:
            with suppress(MapError):
                segment = read_segment(self._storage, checked_receipt(self._storage, entry))
                held.update(segment.photo_keys, segment.rejected_keys)
        return held


def _folder(entry: SegmentEntry) -> str:
    return layout.segment_folder(entry.segment_id, entry.attempt)


def _index_objects(manifest: Manifest) -> list[ObjectRef]:
    quantizer = [manifest.index.quantizer] if manifest.index.quantizer else []
    return [*quantizer, *(shard.file for shard in manifest.index.shards)]


def _is_whole(storage: Storage, ref: ObjectRef) -> bool:
    try:
        get_object(storage, ref)
    except DamagedError:
        return False
    return True


def _describe(path: str, data: bytes) -> ObjectRef:
    """Say of stored bytes what the receipt of a segment says of them."""
    blocks = row_group_blocks(data) if path.endswith(f"/{layout.DESCRIPTORS}") else ()
    return ObjectRef(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), blocks=blocks)


def _proven(entry: SegmentEntry, fingerprint: str, objects: list[ObjectRef], rejected: int) -> Receipt | None:
    """Write the receipt of a segment anew; None where it is not the one that the manifest names, by its sha256."""
    receipt = Receipt(
        segment_id=entry.segment_id,
        attempt=entry.attempt,
        model_fingerprint=fingerprint,
        rows=entry.rows,
        rejected=rejected,
        bbox=entry.bbox,
        objects=sorted(objects, key=lambda ref: ref.path),
    )
    sealed = decode_receipt(encode_json(receipt), where=receipt_path(entry.segment_id))
    return sealed if sealed.sha256 == entry.receipt_sha256 else None


def _entry(receipt: Receipt, live: np.ndarray) -> SegmentEntry:
    assert receipt.bbox is not None, "a selected segment has at least one photo"
    return SegmentEntry(
        segment_id=receipt.segment_id,
        attempt=receipt.attempt,
        rows=receipt.rows,
        masked_rows=masked_ranges(live),
        bbox=receipt.bbox,
        receipt_sha256=receipt.sha256,
    )
