"""Maps of a few bytes, whose segments, shards and tombstones are objects that say their names."""

import msgspec

from infra.commits import publish, receipt_path, write_receipt
from infra.storage import Storage
from infra.tables import put_object
from schemas import layout
from schemas.manifest import Action, Manifest, Receipt, SegmentEntry, ShardEntry, ShardSegment
from tests.schemas import samples

FINGERPRINT = samples.manifest().model.fingerprint
BOX = (13.0, 55.0, 13.1, 55.1)


def images_path(name: str, attempt: str = "a") -> str:
    return f"{layout.segment_folder(name, attempt)}/{layout.IMAGES}"


def shard_path(name: str) -> str:
    return f"indexes/i/{name}/shard-00000.faiss"


def encode(storage: Storage, name: str, *, attempt: str = "a", rows: int = 1) -> Receipt:
    """Write a segment and its receipt."""
    image = put_object(storage, images_path(name, attempt), f"photos of {name}".encode())
    return write_receipt(
        storage,
        Receipt(
            segment_id=name,
            attempt=attempt,
            model_fingerprint=FINGERPRINT,
            rows=rows,
            rejected=0,
            bbox=BOX if rows else None,
            objects=[image],
        ),
    )


def entry(receipt: Receipt) -> SegmentEntry:
    return SegmentEntry(
        segment_id=receipt.segment_id, attempt=receipt.attempt, rows=receipt.rows, bbox=BOX, receipt_sha256=receipt.sha256
    )


def publish_segments(storage: Storage, *names: str, action: Action = "build") -> Manifest:
    """Publish a version of these segments, encoding what has no receipt; each has a shard of its own."""
    receipts = [encode(storage, name) for name in names]
    shards = [
        ShardEntry(
            file=put_object(storage, shard_path(name), f"shard of {name}".encode()),
            rows=1,
            bbox=BOX,
            segments=[ShardSegment(segment_id=name, first_id=0)],
        )
        for name in names
    ]
    index = msgspec.structs.replace(samples.manifest().index, quantizer=None, shards=shards)
    draft = msgspec.structs.replace(
        samples.manifest(),
        content_id="+".join(names),
        segments=[entry(receipt) for receipt in receipts],
        index=index,
        tombstones=[],
        calibration=None,
        action=action,
    )
    return publish(storage, lambda head: draft)


def objects_of(*names: str) -> set[str]:
    """What is stored for these segments."""
    return {path for name in names for path in (images_path(name), receipt_path(name), shard_path(name))}
