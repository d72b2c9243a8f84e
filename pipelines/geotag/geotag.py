"""results ▶ geotags ▶ files: geotag an archive of photos. `folio geotag`, and the first half of `folio evaluate`.

A results folder holds everything that was found, so that evaluation and report read files and search nothing again:
queries, results, geotags, rejects and coverage as Parquet, and geotags.geojson.
"""

from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.observability import Stopwatch
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import write_table
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import list_photos
from pipelines.engine.model import untrained_note
from pipelines.geotag.decisions import by_hand_note, with_decisions
from pipelines.geotag.geojson import to_geojson
from pipelines.locate.decide import locate, needed_probability
from pipelines.locate.position import PositionConfig, Vote
from pipelines.query.answering import Answers, answer_catalog
from pipelines.query.prior import Prior
from pipelines.query.worker import open_worker
from schemas.calibration import ConfidenceFit
from schemas.geoparquet import point_columns
from schemas.geotags import GEOTAGS, GeotagStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class GeotagRequest:
    """What a user asks for."""

    map_url: str
    photos: tuple[str, ...]
    out: str
    version: int | str | None = None
    """Number or tag; None: the newest, and should objects of it go meanwhile, the next."""
    weights: str | None = None
    utm_zone: str | None = None
    device: str = "auto"
    prior: Prior | None = None
    position: PositionConfig = field(default_factory=PositionConfig)
    limits: PhotoLimits = field(default_factory=PhotoLimits)


class GeotagSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an archive. `folio geotag --json` prints it."""

    out: str
    map_version: int
    photos: int
    answered: int
    unknown: int
    rejected: dict[str, int]
    photos_per_second: float
    recipe: str
    trained: bool
    notes: list[str]

    def lines(self) -> list[str]:
        """Say it to a person."""
        lines = [
            *(f"note: {note}" for note in self.notes),
            f"{self.photos:,} photos: {self.answered:,} answered, {self.unknown:,} don't know; "
            f"{self.photos_per_second:.1f} photos/s",
        ]
        if self.rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(f"{sum(self.rejected.values()):,} rejected ({reasons}), see {self.out}/rejects.parquet")
        lines.append(f"{self.out}: geotags.parquet and geotags.geojson, from version {self.map_version} of the map")
        if not self.trained:
            lines.append(untrained_note(self.recipe))
        return lines


def run_geotag(request: GeotagRequest, settings: Settings) -> GeotagSummary:
    """Geotag an archive into a results folder. Raises any `FolioError`."""
    worker = open_worker(
        request.map_url,
        settings,
        version=request.version,
        weights=Path(request.weights) if request.weights else None,
        device=request.device,
        prior=request.prior,
    )
    catalog = list_photos(
        request.photos, settings=settings, utm_zone=request.utm_zone, needs_position=False, limits=request.limits
    )
    clock = Stopwatch()
    with clock.stage("query"):
        answers = answer_catalog(worker, catalog, settings, request.limits, description="geotag")
    storage = open_storage(request.out, settings)
    geotags = with_decisions(make_geotags(answers, request.position), storage)
    write_results(storage, answers, geotags)
    seconds = clock.seconds()["query"]
    statuses = Counter(geotags["status"].to_pylist())
    return GeotagSummary(
        out=request.out,
        map_version=answers.facts["map_version"],
        photos=len(geotags),
        answered=statuses[GeotagStatus.ANSWERED],
        unknown=statuses[GeotagStatus.UNKNOWN],
        rejected=dict(Counter(answers.rejects["reason"].to_pylist()).most_common()),
        photos_per_second=len(geotags) / seconds if seconds else 0.0,
        recipe=answers.facts["model"],
        trained=answers.facts["trained"],
        notes=[
            *catalog.notes,
            *_moved_on(answers.versions),
            *_degraded(answers.without_features),
            *_unproven(answers, request.position),
            *by_hand_note(geotags),
        ],
    )


def make_geotags(answers: Answers, config: PositionConfig) -> pa.Table:
    """Decide on a position for each query photo: rows in the schema of geotags, in the order of the queries."""
    found: dict[str, list[dict[str, Any]]] = {}
    columns = ["query_id", "image_id", "uri", "lat_deg", "lon_deg", "matches", "local_score", "score", "cosine"]
    pool = answers.results.filter(pc.is_valid(answers.results["score"]))
    for row in pool.select(columns).to_pylist():
        found.setdefault(row["query_id"], []).append(row)
    confidence = answers.calibration.confidence if answers.calibration else None
    rows = [_geotag(query, found.get(query["image_id"], []), config, confidence) for query in answers.queries.to_pylist()]
    lon, lat = (np.array([row[name] for row in rows], np.float64) for name in ("lon_deg", "lat_deg"))
    geometry, bbox = point_columns(lon, lat)
    plain = pa.Table.from_pylist(rows, pa.schema([each for each in GEOTAGS if each.name not in ("geometry", "bbox")]))
    return plain.append_column("geometry", geometry).append_column("bbox", bbox).cast(GEOTAGS)


def write_results(storage: Storage, answers: Answers, geotags: pa.Table) -> None:
    """Write a results folder; the geotags come last, so a folder that has them is complete."""
    write_table(storage, "queries.parquet", answers.queries, kind="images")
    write_table(storage, "results.parquet", answers.results, kind="results", facts=answers.facts)
    write_table(storage, "rejects.parquet", answers.rejects, kind="rejects")
    write_table(storage, "coverage.parquet", answers.coverage, kind="coverage")
    storage.put("geotags.geojson", to_geojson(geotags, answers.facts))
    write_table(storage, "geotags.parquet", geotags, kind="geotags", facts=answers.facts)


def _moved_on(versions: list[int]) -> list[str]:
    if len(versions) < 2:
        return []
    return [f"objects of version {versions[0]} were removed meanwhile; later photos were answered from version {versions[-1]}"]


def _unproven(answers: Answers, config: PositionConfig) -> list[str]:
    """Say when the promise is not one: nothing was fitted to the map, or too little to prove it."""
    confidence = answers.calibration.confidence if answers.calibration else None
    if confidence is not None and needed_probability(confidence, config.precision) is not None:
        return []
    why = "is not calibrated" if confidence is None else f"could not prove {config.precision:.0%} on its own photos"
    return [f"the map {why}: what the candidates agree on is answered, and how often that is right is not known"]


def _degraded(queries: int) -> list[str]:
    if not queries:
        return []
    return [f"{queries} photos had candidates without usable local features, ranked by descriptor alone. Next: folio verify MAP"]


def _geotag(
    query: dict[str, Any], candidates: list[dict[str, Any]], config: PositionConfig, confidence: ConfidenceFit | None
) -> dict[str, Any]:
    votes = [Vote(**{field.name: row[field.name] for field in fields(Vote)}) for row in candidates]
    location = locate(votes, config, confidence)
    best = candidates[0] if candidates else {}
    return {
        "query_id": query["image_id"],
        "uri": query["uri"],
        "root": query["root"],
        "status": (GeotagStatus.UNKNOWN if location.reason else GeotagStatus.ANSWERED).value,
        "reason": location.reason,
        "lat_deg": location.lat_deg,
        "lon_deg": location.lon_deg,
        "expected_error_m": location.expected_error_m,
        "support": location.support,
        "probability": location.probability,
        "best_lat_deg": location.best_lat_deg,
        "best_lon_deg": location.best_lon_deg,
        "best_error_m": location.best_error_m,
        "sequence_id": query["sequence_id"],
        "duplicate_of": None,
        "matched_uri": best.get("uri"),
        "matched_image_id": best.get("image_id"),
        "matches": best.get("matches"),
        "cosine": best.get("cosine"),
        "pool_size": len(candidates),
        "known_lat_deg": query["lat_deg"],
        "known_lon_deg": query["lon_deg"],
        "taken_at": query["taken_at"],
    }
