"""What the golden samples hold: one small example of every stored noun, the same in every run.

`make_golden.py` writes it, `test_golden.py` finds it again in the files. Three photos in Lund; every number can be read here.
"""

from datetime import UTC, datetime

import msgspec
import numpy as np
import pyarrow as pa

from infra.tables import descriptor_column
from pipelines.build.plan import BuildPlan
from pipelines.build.progress import Progress
from pipelines.ivfpq import IndexConfig, IvfPqParameters
from schemas.calibration import Calibration, ConfidenceFit, Evidence, PoolFit
from schemas.coverage import COVERAGE
from schemas.descriptors import descriptors_schema
from schemas.geoparquet import point_columns
from schemas.geotags import GEOTAGS
from schemas.images import IMAGES, image_id, photo_key
from schemas.local_features import LocalFeatures
from schemas.manifest import (
    IndexEntry,
    IndexReceipt,
    Lease,
    Manifest,
    ModelEntry,
    ObjectRef,
    Producer,
    Receipt,
    Retired,
    SegmentEntry,
    ShardEntry,
    ShardSegment,
    Tag,
)
from schemas.metrics import METRICS
from schemas.rejects import REJECTS
from schemas.results import RESULTS
from schemas.tombstones import TOMBSTONES

DIM = 16
LOCAL_DIM = 8
FEATURES_PER_PHOTO = 3
URIS = ["lund/0.jpg", "lund/1.jpg", "lund/ö 2.jpg"]
LAT_DEG = [55.7, 55.701, 55.702]
LON_DEG = [13.19, 13.191, 13.192]
TAKEN_AT = datetime(2026, 5, 17, 8, 30, 15, 250_000, tzinfo=UTC)
FACTS = {"map_version": 42, "model": "tiny", "trained": False, "grid_side": 16, "mode": "weighted"}

INDEX_CONFIG = IndexConfig(seed=7)
PARAMETERS = IvfPqParameters(pca_dim=8, nlist=4, code_bytes=1, nprobe=4)
SHARD_IDS = [0, 1, 7]
"""Of the three photos in the golden shard."""


def images() -> pa.Table:
    """Two photos of which all is known, and one of a query that has no position."""
    rows = [
        {
            "image_id": image_id(uri),
            "photo_key": photo_key(uri, 1000, "sha256:00"),
            "uri": uri,
            "root": "/photos",
            "size_bytes": 1000,
            "checksum": "sha256:00",
            "lat_deg": lat,
            "lon_deg": lon,
            "altitude_m": 51.5,
            "heading_deg": 270.0,
            "taken_at": TAKEN_AT,
            "sequence_id": "drive 1",
        }
        for uri, lat, lon in zip(URIS, LAT_DEG, LON_DEG, strict=True)
    ]
    rows[2].update(dict.fromkeys(["lat_deg", "lon_deg", "altitude_m", "heading_deg", "taken_at", "sequence_id"]))
    return with_points(rows, IMAGES)


def with_points(rows: list[dict[str, object]], schema: pa.Schema) -> pa.Table:
    """A table with a geometry from rows that have lat_deg and lon_deg."""
    lon, lat = (np.array([row[name] for row in rows], np.float64) for name in ("lon_deg", "lat_deg"))
    geometry, bbox = point_columns(lon, lat)
    plain = pa.Table.from_pylist(rows, pa.schema([field for field in schema if field.name not in ("geometry", "bbox")]))
    return pa.Table.from_arrays([*plain.columns, geometry, bbox], schema=schema)


def descriptor_numbers() -> np.ndarray:
    """(3, 16) float16 of unit length: photo n points along axis n."""
    return np.eye(3, DIM, dtype=np.float16)


def descriptors() -> pa.Table:
    geometry, bbox = point_columns(np.array(LON_DEG), np.array(LAT_DEG))
    names = pa.array([image_id(uri) for uri in URIS])
    return pa.Table.from_arrays([names, descriptor_column(descriptor_numbers()), geometry, bbox], schema=descriptors_schema(DIM))


def local_codes() -> list[LocalFeatures]:
    """The same in codes of four bits, some of them negative."""
    return [
        LocalFeatures(
            features=(photo.features * np.array([[7], [-7], [3]])[: len(photo)]).astype(np.int8),
            patch=photo.patch,
            reliability=photo.reliability,
        )
        for photo in local_features()
    ]


def local_features() -> list[LocalFeatures]:
    """Three features, none, and one; feature n of a photo points along axis n. As format 1 had them."""
    return [
        LocalFeatures(
            features=np.eye(count, LOCAL_DIM, dtype=np.float16),
            patch=np.array([[n, 15 - n] for n in range(count)], np.uint8).reshape(count, 2),
            reliability=np.array([255, 128, 0][:count], np.uint8),
        )
        for count in (3, 0, 1)
    ]


def training_sample() -> np.ndarray:
    """(256, 16) float32: as many points as an 8-bit quantizer needs at least."""
    points = np.random.default_rng(20_261_121).normal(size=(256, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def rejects() -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "uri": "lund/half.jpg",
                "root": "/photos",
                "photo_key": "k1",
                "stage": "encode",
                "reason": "truncated",
                "detail": "ends after 10 of 20 rows",
            },
            {
                "uri": "lund/gone.jpg",
                "root": "/photos",
                "photo_key": None,
                "stage": "catalog",
                "reason": "missing",
                "detail": "no such file",
            },
        ],
        REJECTS,
    )


def receipt() -> Receipt:
    return Receipt(
        segment_id="0123456789abcdef01234567",
        attempt="a1b2c3d4e5f6",
        model_fingerprint="f00d",
        rows=3,
        rejected=1,
        bbox=(13.19, 55.7, 13.192, 55.702),
        objects=[
            ObjectRef(path="segments/0123456789abcdef01234567/a1b2c3d4e5f6/images.parquet", size_bytes=7, sha256="ab"),
            ObjectRef(
                path="segments/0123456789abcdef01234567/a1b2c3d4e5f6/descriptors.parquet",
                size_bytes=9,
                sha256="cd",
                blocks=((5, 3_000_000_000), (4, 17)),
            ),
        ],
    )


def manifest() -> Manifest:
    return Manifest(
        version=42,
        parent=41,
        commit_id="c0ffee",
        content_id="beef",
        created_at="2026-11-21T03:00:00+00:00",
        producer=Producer(name="folio-vpr", version="0.1.0", python="3.11.7"),
        model=ModelEntry(recipe="tiny", fingerprint="f00d", trained=False, settings={"mode": "weighted", "input_size": 224}),
        segments=[
            SegmentEntry(
                segment_id="0123456789abcdef01234567",
                attempt="a1b2c3d4e5f6",
                rows=8,
                masked_rows=[(2, 7)],
                bbox=(13.19, 55.7, 13.192, 55.702),
                receipt_sha256="cd",
            )
        ],
        index=IndexEntry(
            quantizer_format=1,
            shard_format=1,
            kind="ivfpq",
            index_id="89abcdef0123456789abcdef",
            seed=7,
            trained_on=256,
            trained_for=256,
            parameters=PARAMETERS.to_json(),
            quantizer=ObjectRef(path="indexes/89abcdef0123456789abcdef/a/quantizer.faiss", size_bytes=9, sha256="ef"),
            shards=[
                ShardEntry(
                    file=ObjectRef(path="indexes/89abcdef0123456789abcdef/a/shard-00000.faiss", size_bytes=9, sha256="12"),
                    rows=3,
                    bbox=(13.19, 55.7, 13.192, 55.702),
                    segments=[ShardSegment(segment_id="0123456789abcdef01234567", first_id=0)],
                )
            ],
        ),
        tombstones=[ObjectRef(path="tombstones/1.parquet", size_bytes=1, sha256="34")],
        calibration={"sharpness": 4.0},
        statistics={"photos": 3, "segment_bytes": 7, "index_bytes": 9, "rejected": {"truncated": 1}},
        configuration={"index": {"seed": 7}},
        single_writer=True,
        action="backfill",
    )


def tag() -> Tag:
    return Tag(version=42, created_at="2026-11-21T03:00:00+00:00")


def lease() -> Lease:
    return Lease(run_id="0011223344556677", action="rollback", pins=[41])


def retired() -> Retired:
    return Retired(version=3, reason="purge")


def tombstones() -> pa.Table:
    gone = {"image_id": image_id(URIS[1]), "photo_key": photo_key(URIS[1], 1000, "sha256:00"), "checksum": "sha256:00"}
    return pa.Table.from_pylist([gone], TOMBSTONES)


def plan() -> BuildPlan:
    return BuildPlan(
        run_id="0011223344556677",
        mode="build",
        recipe="tiny",
        trained=False,
        photos_listed=6,
        photos_rejected=1,
        photos_known=2,
        photos_to_encode=3,
        segments_to_encode=1,
        workers=2,
        memory_bytes=1_800_000_000,
        store_bytes=120_000,
    )


def progress() -> Progress:
    return Progress(
        run_id="0011223344556677",
        mode="build",
        recipe="tiny",
        device="cpu",
        segments_planned=3,
        photos_planned=192,
        segments_finished=2,
        photos_finished=128,
        rejected={"truncated": 3},
        started_at_s=1_795_000_000.0,
        last_receipt_at_s=1_795_000_032.0,
        photos_since_start=64,
        bytes_since_start=6_400_000,
        worker_s=32.0,
        network_s=30.0,
        segments_since_start=1,
    )


def index_receipt() -> IndexReceipt:
    """A quantizer that a run has trained."""
    return IndexReceipt(
        key="0011223344556677",
        file=ObjectRef(path="indexes/aa/bb/quantizer.faiss", size_bytes=12, sha256="ab"),
        entry=msgspec.structs.replace(manifest().index, shards=[]),
    )


def results() -> pa.Table:
    """One query with a re-ranked candidate and one that was not re-ranked."""
    query, first, second = (image_id(uri) for uri in URIS)
    found = {"query_id": query, "root": "/photos", "lat_deg": 55.7, "lon_deg": 13.19}
    reranked = {"matches": 31, "local_score": 30.5, "score": 0.75, "matched_patches": [0, 1, 2, 3, 15, 14, 13, 12]}
    return pa.Table.from_pylist(
        [
            {**found, "rank": 1, "image_id": second, "uri": URIS[2], "global_rank": 2, "cosine": 0.5, **reranked},
            {**found, "rank": 2, "image_id": first, "uri": URIS[1], "global_rank": 1, "cosine": 0.625},
        ],
        RESULTS,
    )


def geotags() -> pa.Table:
    """An answer and a don't-know."""
    common = {"root": "/photos", "pool_size": 10, "known_lat_deg": 55.7, "known_lon_deg": 13.19, "taken_at": TAKEN_AT}
    place = {"lat_deg": 55.7001, "lon_deg": 13.1902, "expected_error_m": 12.5}
    answer = {"status": "answered", **place, "support": 0.875, "probability": 0.96875}
    best = {"matched_uri": URIS[1], "matched_image_id": image_id(URIS[1]), "matches": 31, "cosine": 0.625}
    unknown = {"status": "unknown", "reason": "candidates disagree", "support": 0.25, "duplicate_of": image_id(URIS[0])}
    supported = {"best_lat_deg": 55.7001, "best_lon_deg": 13.1902, "best_error_m": 12.5, "sequence_id": "walk"}
    nothing = dict.fromkeys(["lat_deg", "lon_deg", "expected_error_m"])
    return with_points(
        [
            {"query_id": image_id(URIS[0]), "uri": URIS[0], **common, **answer, **supported, **best},
            {"query_id": image_id(URIS[2]), "uri": URIS[2], **common, **nothing, **unknown},
        ],
        GEOTAGS,
    )


def metrics() -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"metric": "recall", "stage": "global", "at": 1.0, "value": 0.5, "unit": "fraction", "queries": 4},
            {"metric": "answered", "stage": "geotag", "at": None, "value": 0.75, "unit": "fraction", "queries": 4},
        ],
        METRICS,
    )


def calibration() -> Calibration:
    return Calibration(
        photos=360,
        pool=PoolFit(sure_gap=0.2, sure_sigmas=6.0, enough=4.0),
        distinct_weight=1.5,
        confidence=ConfidenceFit(weights={"support": 2.0}, intercept=-1.0, thresholds={"0.95": 0.9}, error_factor=0.8),
        evidence=Evidence(
            held_back="drives",
            queries=180,
            with_answer=150,
            mean_pool=12.5,
            fixed_pool=100,
            pool_recall=0.95,
            fixed_recall=0.96,
            right=140,
            first_by_descriptor=0.75,
            first_reranked=0.8,
            calibration_error=0.05,
            reliability=[(0.25, 0.3, 90), (0.9, 0.95, 90)],
            risk_coverage=[(0.95, 0.5, 1.0), (0.25, 1.0, 0.78)],
        ),
    )


def coverage() -> pa.Table:
    rows = [{"uri": uri, "lat_deg": lat, "lon_deg": lon} for uri, lat, lon in zip(URIS, LAT_DEG, LON_DEG, strict=True)]
    return pa.Table.from_pylist(rows, COVERAGE)


TABLES = {
    "images": (images, {}),
    "rejects": (rejects, {}),
    "descriptors": (descriptors, {}),
    "results": (results, FACTS),
    "geotags": (geotags, FACTS),
    "metrics": (metrics, FACTS | {"radius_m": 25.0}),
    "coverage": (coverage, {}),
    "tombstones": (tombstones, {}),
}
"""Rows and file facts, by kind."""

DOCUMENTS = {
    "receipt": receipt,
    "manifest": manifest,
    "plan": plan,
    "progress": progress,
    "index_receipt": index_receipt,
    "tag": tag,
    "lease": lease,
    "retired": retired,
}
"""What is stored as JSON, by kind."""
