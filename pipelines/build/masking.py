"""manifest ▶ manifest without some of its photos: what takedown and rollback publish, and how older versions are opened.

No segment and no shard is written: readers pass over masked rows, and the next rebuild purges those that were taken down.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa

from infra.commits import receipt_path
from infra.storage import Storage
from infra.tables import read_table
from pipelines.build.membership import live_rows, masked_ranges, segment_object
from pipelines.build.tombstones import read_tombstones
from schemas import layout
from schemas.errors import DamagedError, ObjectMissing
from schemas.manifest import IndexEntry, Manifest, ModelEntry, ObjectRef, Receipt, SegmentEntry, decode_receipt

READ_THREADS: Final = 16
"""Tables of photos that are read at once."""


def read_photos(storage: Storage, segments: Sequence[SegmentEntry], columns: list[str]) -> list[pa.Table]:
    """Read columns of the photos of published segments, masked ones too, several segments at a time.

    Raises:
        DamagedError: a receipt or a table is missing or not what was written.
    """

    def read(entry: SegmentEntry) -> pa.Table:
        ref = segment_object(checked_receipt(storage, entry), layout.IMAGES)
        return read_table(storage, ref.path, kind="images", columns=columns, expected=ref).replace_schema_metadata(None)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(read, segments))


def checked_receipt(storage: Storage, entry: SegmentEntry) -> Receipt:
    """Read the receipt of a published segment.

    Raises:
        DamagedError: it is missing or not the one that the manifest names.
    """
    path = receipt_path(entry.segment_id)
    try:
        receipt = decode_receipt(storage.get(path), where=f"{storage.url}/{path}")
    except ObjectMissing as error:
        raise _wrong_receipt(storage, path, "nothing", entry) from error
    if receipt.sha256 != entry.receipt_sha256:
        raise _wrong_receipt(storage, path, receipt.sha256[:12], entry)
    return receipt


def without(storage: Storage, manifest: Manifest, tombstones: Sequence[ObjectRef]) -> Manifest:
    """Make of a version what it is without the photos that these tables list; itself where that changes nothing.

    Args:
        storage: of the map.
        manifest: the version.
        tombstones: all that hold: those of the newest version.

    Raises:
        DamagedError: a receipt or a table is missing or not what was written.
    """
    if {ref.path for ref in tombstones} <= {ref.path for ref in manifest.tombstones}:
        return manifest
    down = read_tombstones(storage, tombstones)
    photos = read_photos(storage, manifest.segments, ["image_id", "checksum"])
    masks = [down.cover(table["image_id"], table["checksum"]) for table in photos]
    return with_masked(manifest, masks, tombstones)


def with_masked(manifest: Manifest, masks: Sequence[np.ndarray], tombstones: Sequence[ObjectRef]) -> Manifest:
    """Mask more rows of a version: one (rows,) bool for each of its segments, True where a photo goes."""
    lives = [live_rows(entry) & ~mask for entry, mask in zip(manifest.segments, masks, strict=True)]
    segments = [
        msgspec.structs.replace(entry, masked_rows=masked_ranges(live))
        for entry, live in zip(manifest.segments, lives, strict=True)
    ]
    return msgspec.structs.replace(
        manifest,
        segments=segments,
        tombstones=list(tombstones),
        statistics={**manifest.statistics, "photos": sum(int(live.sum()) for live in lives)},
        content_id=content_id(manifest.model, segments, manifest.index),
    )


def content_id(model: ModelEntry, segments: Sequence[SegmentEntry], index: IndexEntry) -> str:
    """Hash what a reader of a version sees; equal for equal maps however often they are built."""
    seen = [model.fingerprint, [(entry.segment_id, entry.masked_rows) for entry in segments], index.index_id, index.kind]
    shards = [(shard.file.sha256, shard.segments) for shard in index.shards]
    return hashlib.sha256(msgspec.json.encode([seen, shards])).hexdigest()


def _wrong_receipt(storage: Storage, path: str, found: str, entry: SegmentEntry) -> DamagedError:
    return DamagedError(
        f"{storage.url}/{path}: sha256 {found} was found, but the manifest needs {entry.receipt_sha256[:12]}. "
        f"Nothing of it was used. See what else is damaged: folio verify {storage.url}"
    )
