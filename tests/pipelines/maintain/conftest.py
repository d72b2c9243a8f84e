"""A small map to look after: one segment and one shard, whose objects are a few bytes each."""

from uuid import uuid4

import msgspec
import pytest

from infra.commits import publish, receipt_path, write_receipt
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import put_object
from schemas.manifest import Manifest
from tests.schemas import samples

SEGMENT = "0123456789abcdef01234567"
RECEIPT = receipt_path(SEGMENT)
IMAGES = f"segments/{SEGMENT}/a1b2c3d4e5f6/images.parquet"
QUANTIZER = "indexes/i/a/quantizer.faiss"
SHARD = "indexes/i/a/shard-00000.faiss"


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


@pytest.fixture
def first(storage: Storage) -> Manifest:
    """Version 1, written in full: the sample manifest with objects that are there."""
    receipt = write_receipt(storage, msgspec.structs.replace(samples.receipt(), objects=[put_object(storage, IMAGES, b"images")]))
    entry = msgspec.structs.replace(samples.manifest().segments[0], receipt_sha256=receipt.sha256)
    shard = msgspec.structs.replace(samples.manifest().index.shards[0], file=put_object(storage, SHARD, b"a shard"))
    index = msgspec.structs.replace(
        samples.manifest().index, quantizer=put_object(storage, QUANTIZER, b"a quantizer"), shards=[shard]
    )
    draft = msgspec.structs.replace(
        samples.manifest(), content_id="first", segments=[entry], index=index, tombstones=[], calibration=None
    )
    return publish(storage, lambda head: draft)


def publish_another(storage: Storage, content_id: str) -> Manifest:
    return publish(storage, lambda head: head and msgspec.structs.replace(head, content_id=content_id))
