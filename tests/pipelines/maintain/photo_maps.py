"""Whole small maps without a network: segments with all their objects, a flat index, a published version."""

from collections.abc import Mapping, Sequence
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow as pa

from infra.arrays import LocalFeaturesWriter
from infra.commits import publish, write_receipt
from infra.storage import Storage
from infra.tables import descriptor_column, put_object, write_table
from pipelines import ivfpq
from pipelines.build.masking import content_id
from pipelines.engine.partition import segment_id
from schemas import layout
from schemas.descriptors import descriptors_schema
from schemas.geoparquet import point_columns
from schemas.images import IMAGES, image_id, photo_key
from schemas.local_features import LocalFeatures
from schemas.manifest import Action, Manifest, Receipt, SegmentEntry, ShardEntry, ShardSegment
from schemas.rejects import REJECTS
from tests.schemas import samples

DIM = 16
LOCAL_DIM = 128
MODEL = samples.manifest().model


def name(number: int) -> str:
    """The image id of photo n."""
    return image_id(uri(number))


def uri(number: int) -> str:
    return f"lund/{number}.jpg"


def images(
    numbers: Sequence[int], *, same_bytes: Mapping[int, int] | None = None, lon_deg: Mapping[int, float] | None = None
) -> pa.Table:
    """Photos n at 13 + n / 1000 degrees east.

    Args:
        numbers: of the photos.
        same_bytes: photo -> photo that it is a copy of.
        lon_deg: photo -> where it stands instead.
    """
    lon = np.array([(lon_deg or {}).get(number, 13 + number / 1000) for number in numbers], np.float64)
    rows = []
    for number, degrees in zip(numbers, lon.tolist(), strict=True):
        checksum = f"sha256:{(same_bytes or {}).get(number, number):064x}"
        rows.append(
            {
                "image_id": name(number),
                "photo_key": photo_key(uri(number), 100, checksum),
                "uri": uri(number),
                "root": "/photos",
                "size_bytes": 100,
                "checksum": checksum,
                "lat_deg": 55.0,
                "lon_deg": degrees,
            }
        )
    plain = pa.Table.from_pylist(rows, pa.schema([field for field in IMAGES if field.name not in ("geometry", "bbox")]))
    return pa.Table.from_arrays([*plain.columns, *point_columns(lon, np.full(len(numbers), 55.0))], schema=IMAGES)


def descriptor(number: int) -> np.ndarray:
    """Of photo n: (DIM,) float32 of unit length, all different."""
    point = np.random.default_rng(number).normal(size=DIM)
    return (point / np.linalg.norm(point)).astype(np.float16).astype(np.float32)


def write_segment(
    storage: Storage, photos: pa.Table, *, rejected: Sequence[int] = (), attempt: str | None = None, finished: bool = True
) -> Receipt:
    """Write a segment with all its objects; unless `finished`, without a receipt."""
    keys = [*photos["photo_key"].to_pylist(), *(f"key of {number}" for number in rejected)]
    segment = segment_id(keys, MODEL.fingerprint)
    attempt = attempt or uuid4().hex[:12]
    folder = layout.segment_folder(segment, attempt)
    numbers = [int(each.removeprefix("lund/").removesuffix(".jpg")) for each in photos["uri"].to_pylist()]
    columns = [
        photos["image_id"],
        descriptor_column(np.array([descriptor(number) for number in numbers], np.float16).reshape(-1, DIM)),
        photos["geometry"],
        photos["bbox"],
    ]
    # So many features that a Zarr shard, which has room for 32 MB, is an index of a thousand photos and not of a million.
    features = LocalFeaturesWriter(
        storage, f"{folder}/{layout.LOCAL_FEATURES}", features_per_photo=128, dim=LOCAL_DIM, precision="float16"
    )
    for number in numbers:
        features.append(
            LocalFeatures(
                features=np.full((1, LOCAL_DIM), number / 1000, np.float16),
                patch=np.zeros((1, 2), np.uint8),
                reliability=np.ones(1, np.uint8),
            )
        )
    rejects = [
        {"uri": uri(n), "root": "/photos", "photo_key": f"key of {n}", "stage": "encode", "reason": "truncated", "detail": "half"}
        for n in rejected
    ]
    objects = [
        write_table(storage, f"{folder}/{layout.IMAGES}", photos, kind="images"),
        write_table(
            storage,
            f"{folder}/{layout.DESCRIPTORS}",
            pa.Table.from_arrays(columns, schema=descriptors_schema(DIM)),
            kind="descriptors",
        ),
        write_table(storage, f"{folder}/{layout.REJECTS}", pa.Table.from_pylist(rejects, REJECTS), kind="rejects"),
        *features.close(),
    ]
    lon = photos["lon_deg"].to_numpy()
    receipt = Receipt(
        segment_id=segment,
        attempt=attempt,
        model_fingerprint=MODEL.fingerprint,
        rows=len(photos),
        rejected=len(rejects),
        bbox=(float(lon.min()), 55.0, float(lon.max()), 55.0) if len(lon) else None,
        objects=sorted(objects, key=lambda ref: ref.path),
    )
    return write_receipt(storage, receipt) if finished else receipt


def write_shard(storage: Storage, receipts: Sequence[Receipt]) -> ShardEntry:
    """Write a flat shard of all photos of these segments."""
    members, blocks, first = [], [], 0
    for receipt in receipts:
        table = _images(storage, receipt)
        numbers = [int(each.removeprefix("lund/").removesuffix(".jpg")) for each in table]
        blocks.append((np.array([descriptor(number) for number in numbers], np.float32), np.arange(len(numbers)) + first))
        members.append(ShardSegment(segment_id=receipt.segment_id, first_id=first))
        first += receipt.rows
    path = f"{layout.index_folder('flat', uuid4().hex[:12])}/shard-00000.faiss"
    return ShardEntry(
        file=put_object(storage, path, ivfpq.make_shard(None, DIM, blocks)), rows=first, bbox=(13, 55, 14, 55), segments=members
    )


def publish_map(
    storage: Storage, receipts: Sequence[Receipt], *, action: Action = "build", keep: Manifest | None = None
) -> Manifest:
    """Publish a version of these segments, all in one shard.

    Args:
        storage: of the map.
        receipts: the segments.
        action: what publishes it.
        keep: whose tombstones to take over.
    """
    segments = [
        SegmentEntry(
            segment_id=each.segment_id,
            attempt=each.attempt,
            rows=each.rows,
            bbox=each.bbox or (0, 0, 0, 0),
            receipt_sha256=each.sha256,
        )
        for each in sorted(receipts, key=lambda each: each.segment_id)
    ]
    index = msgspec.structs.replace(
        samples.manifest().index,
        kind="flat",
        index_id="flat",
        parameters={},
        quantizer=None,
        shards=[write_shard(storage, receipts)] if receipts else [],
    )
    draft = msgspec.structs.replace(
        samples.manifest(),
        content_id=content_id(MODEL, segments, index),
        model=MODEL,
        segments=segments,
        index=index,
        tombstones=keep.tombstones if keep else [],
        calibration=None,
        statistics={"photos": sum(each.rows for each in receipts), "segment_bytes": 0, "index_bytes": 0, "rejected": {}},
        action=action,
    )
    return publish(storage, lambda head: draft)


def _images(storage: Storage, receipt: Receipt) -> list[str]:
    from infra.tables import read_table

    path = f"{layout.segment_folder(receipt.segment_id, receipt.attempt)}/{layout.IMAGES}"
    uris: list[str] = read_table(storage, path, kind="images")["uri"].to_pylist()
    return uris
