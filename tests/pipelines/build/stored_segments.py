"""Segments for the tests of the build: by hand, or written into a store with small descriptors and without a network."""

import hashlib

import numpy as np
import pyarrow as pa

from infra.storage import Storage
from infra.tables import descriptor_column, write_table
from pipelines.build.membership import Selection, StoredSegment, masked_ranges
from schemas import layout
from schemas.descriptors import descriptors_schema
from schemas.geoparquet import point_columns
from schemas.manifest import IndexEntry, Manifest, ModelEntry, Producer, Receipt, SegmentEntry

FINGERPRINT = "f00d"
NO_INDEX = IndexEntry(kind="flat", index_id="", seed=0, trained_on=0, trained_for=0, parameters={}, quantizer=None, shards=[])


def segment(name: str, photos: dict[str, str], rejected: list[str] | None = None) -> StoredSegment:
    """A segment by hand, of image ids and photo keys."""
    receipt = Receipt(
        segment_id=name,
        attempt="a",
        model_fingerprint=FINGERPRINT,
        rows=len(photos),
        rejected=len(rejected or []),
        bbox=(13.0, 55.0, 13.1, 55.1),
        objects=[],
    )
    return StoredSegment(
        receipt=receipt,
        image_ids=list(photos),
        photo_keys=list(photos.values()),
        rejected_keys=rejected or [],
        rejected_ids=[],
        passing_keys=[],
    )


def stored_of(*segments: StoredSegment) -> dict[str, StoredSegment]:
    """As `read_stored` gives them: by name, in the order of the names."""
    return {each.receipt.segment_id: each for each in sorted(segments, key=lambda each: each.receipt.segment_id)}


def manifest_of(stored: dict[str, StoredSegment], selection: Selection, index: IndexEntry = NO_INDEX) -> Manifest:
    """A published version with these photos."""
    entries = [
        SegmentEntry(
            segment_id=name,
            attempt="a",
            rows=len(live),
            masked_rows=masked_ranges(live),
            bbox=stored[name].receipt.bbox or (0, 0, 0, 0),
            receipt_sha256="",
        )
        for name, live in selection.items()
    ]
    return Manifest(
        version=1,
        parent=None,
        commit_id="",
        content_id="",
        created_at="",
        producer=Producer(name="folio-vpr", version="0", python="3"),
        model=ModelEntry(recipe="tiny", fingerprint=FINGERPRINT, trained=False, settings={}),
        segments=entries,
        index=index,
        statistics={},
        configuration={},
    )


def all_of(stored: dict[str, StoredSegment]) -> Selection:
    """Select every photo."""
    return {name: np.ones(each.receipt.rows, bool) for name, each in stored.items()}


def image_name(photo: int) -> str:
    """The image id of a photo: in an order that has nothing to do with its number, as hashes are."""
    return hashlib.sha256(f"photo {photo}".encode()).hexdigest()[:32]


def write_segment(
    storage: Storage, name: str, photos: range, *, lon_deg: float = 13.0, descriptors: np.ndarray | None = None
) -> StoredSegment:
    """Write the descriptors of these photos, which stand in a row that runs 0.001 degrees north from 55.0.

    Without `descriptors` those of `DESCRIPTORS`.
    """
    rows = len(photos)
    image_ids = [image_name(photo) for photo in photos]
    geometry, bbox = point_columns(np.full(rows, lon_deg), np.linspace(55.0, 55.001, rows))
    chosen = DESCRIPTORS[photos.start : photos.stop] if descriptors is None else descriptors
    columns = [pa.array(image_ids), descriptor_column(chosen), geometry, bbox]
    table = pa.Table.from_arrays(columns, schema=descriptors_schema(DIM))
    receipt = Receipt(
        segment_id=name,
        attempt="a",
        model_fingerprint=FINGERPRINT,
        rows=rows,
        rejected=0,
        bbox=(lon_deg, 55.0, lon_deg, 55.001),
        objects=[write_table(storage, f"{layout.segment_folder(name, 'a')}/{layout.DESCRIPTORS}", table, kind="descriptors")],
    )
    return StoredSegment(
        receipt=receipt,
        image_ids=image_ids,
        photo_keys=[f"key of {each}" for each in image_ids],
        rejected_keys=[],
        rejected_ids=[],
        passing_keys=[],
    )


def _unit_vectors(count: int) -> np.ndarray:
    points = np.random.default_rng(11).normal(size=(count, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


DIM = 32
DESCRIPTORS = _unit_vectors(700)
"""Of photo 0, 1, 2 ..."""
