"""manifest + photos ▶ results: answer every photo of a catalog and keep what was found as tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from infra.observability import progress
from infra.settings import Settings
from pipelines.build.membership import live_rows
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader
from pipelines.catalog.rows import load_photo, reject_row
from pipelines.catalog.sources import Catalog
from pipelines.query.opened_map import OpenedMap
from pipelines.query.worker import Answer, QueryWorker
from schemas.calibration import Calibration
from schemas.coverage import COVERAGE
from schemas.errors import PhotoError
from schemas.rejects import REJECTS
from schemas.results import RESULTS

COVERAGE_POINTS = 20_000
"""Photos of the map that are kept for drawing, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a search found, as the tables that are stored."""

    queries: pa.Table
    """Photos that could be used, in the schema of images."""
    results: pa.Table
    rejects: pa.Table
    coverage: pa.Table
    versions: list[int]
    """That answers came from: more than one when the map had to be followed to a newer version meanwhile."""
    facts: dict[str, Any]
    """Of the results: map version, model, trained, grid_side, mode."""
    calibration: Calibration | None = None
    """Of the newest of these versions; None: the map is not calibrated."""
    without_features: int = 0
    """Queries of which some candidate kept its global place, since its local features were missing, damaged or of no use."""


def answer_catalog(
    worker: QueryWorker, catalog: Catalog, settings: Settings, limits: PhotoLimits, *, description: str
) -> Answers:
    """Answer each photo of a catalog; photos that cannot be used land in the rejects."""
    rejects: list[dict[str, object]] = []
    batches: list[pa.RecordBatch] = []
    versions: set[int] = set()
    degraded = 0
    usable = np.ones(len(catalog.images), bool)
    with PhotoDecoder(limits) as decoder:
        reader = PhotoReader(settings, limits)
        rows = progress(range(len(catalog.images)), total=len(catalog.images), unit="photo", description=description)
        for row in rows:
            try:
                pixels = load_photo(catalog.images, row, reader, decoder, min_side=worker.encoder.decode_side)
            except PhotoError as error:
                rejects.append(reject_row(catalog.images, row, "query", error))
                usable[row] = False
                continue
            query_id = catalog.images["image_id"][row].as_py()
            answer = worker.answer(pixels)
            versions.add(answer.map.manifest.version)
            degraded += bool(answer.without_features)
            batches.append(pa.RecordBatch.from_pylist(list(_rows(query_id, answer)), RESULTS))
    return Answers(
        queries=catalog.images.filter(pa.array(usable)),
        results=pa.Table.from_batches(batches, RESULTS),
        rejects=pa.concat_tables([catalog.rejects, pa.Table.from_pylist(rejects, REJECTS)]),
        coverage=_coverage(worker),
        versions=sorted(versions),
        calibration=worker.calibration,
        without_features=degraded,
        facts=facts_of(worker),
    )


def facts_of(worker: QueryWorker) -> dict[str, Any]:
    """Say which map and network answers come from: the file facts of results and geotags."""
    manifest = worker.map.manifest
    return {
        "map_version": manifest.version,
        "model": manifest.model.recipe,
        "trained": manifest.model.trained,
        "grid_side": worker.encoder.grid_side,
        "mode": manifest.model.settings["mode"],
        "calibration": manifest.calibration,
    }


def _rows(query_id: str, answer: Answer) -> Iterator[dict[str, object]]:
    for rank, candidate in enumerate(answer.candidates, start=1):
        yield {
            "query_id": query_id,
            "rank": rank,
            **candidate.photo.image,
            "global_rank": candidate.global_rank,
            "cosine": candidate.cosine,
            "matches": candidate.matches,
            "local_score": candidate.local_score,
            "score": candidate.score,
            "matched_patches": answer.matched_patches.ravel().tolist() if rank == 1 else None,
        }


def _coverage(worker: QueryWorker) -> pa.Table:
    return worker.read(_thinned).select(COVERAGE.names).cast(COVERAGE)


def _thinned(opened: OpenedMap) -> pa.Table:
    photos = sum(int(live_rows(entry).sum()) for entry in opened.manifest.segments)
    return opened.positions(step=max(1, photos // COVERAGE_POINTS))
