"""Archives whose photos, times and candidates are set by hand: so many metres north of a place in Lund, and so sure of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from pipelines.locate.confidence import LEAST
from pipelines.query.answering import Answers
from schemas.calibration import Calibration, ConfidenceFit, Evidence
from schemas.coverage import COVERAGE
from schemas.images import IMAGES, image_id
from schemas.rejects import REJECTS
from schemas.results import RESULTS
from tests.schemas.samples import FACTS

LAT_DEG, LON_DEG = 55.7, 13.19
M_LAT = 1 / 111_340  # degrees a metre on the ellipsoid, here
START = datetime(2026, 6, 1, 8, tzinfo=UTC)
ELSEWHERE_M = 5000.0
"""Where the next best candidate of every photo stands, from its best one."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One photo of an archive."""

    name: str
    seconds: float | None
    """After START."""
    north_m: float
    """Of its best candidate."""
    chance: float
    """That this is right, by the photo alone; 0: it has no candidates."""
    known_m: float | None = None
    """Where the photo itself says it was taken."""
    others: Sequence[tuple[float, float]] = field(default_factory=tuple)
    """More candidates: metres north, and score; that of the best one is 1."""


def walk(count: int, *, every_s: float = 10.0, step_m: float = 12.0, chance: float = 0.97) -> list[Shot]:
    """So many photos along a street, all of them sure."""
    return [
        Shot(name=f"walk/{number:03}.jpg", seconds=every_s * number, north_m=step_m * number, chance=chance)
        for number in range(count)
    ]


def north(metres: float) -> float:
    """The latitude so many metres north."""
    return LAT_DEG + metres * M_LAT


def answers_of(shots: Sequence[Shot], *, calibrated: bool = True, promises: dict[str, float] | None = None) -> Answers:
    """What a search would have found; the map has two thousand photos, 100 m apart."""
    queries = [
        {
            "image_id": image_id(shot.name),
            "photo_key": f"key of {shot.name}",
            "uri": shot.name,
            "root": "/archive",
            "size_bytes": 1,
            "checksum": "sha256:00",
            "lat_deg": None if shot.known_m is None else north(shot.known_m),
            "lon_deg": None if shot.known_m is None else LON_DEG,
            "taken_at": None if shot.seconds is None else START + timedelta(seconds=shot.seconds),
        }
        for shot in shots
    ]
    results = [row for shot in shots if shot.chance for row in _candidates(shot)]
    coverage = [
        {"uri": f"map/{number}.jpg", "lat_deg": north(100.0 * number), "lon_deg": LON_DEG} for number in range(-1000, 1000)
    ]
    return Answers(
        queries=pa.Table.from_pylist(queries, IMAGES),
        results=pa.Table.from_pylist(results, RESULTS),
        rejects=REJECTS.empty_table(),
        coverage=pa.Table.from_pylist(coverage, COVERAGE),
        versions=[1],
        facts=FACTS,
        calibration=_calibration(promises or {"0.80": 0.8, "0.90": 0.9, "0.95": 0.95}) if calibrated else None,
    )


def _candidates(shot: Shot) -> list[dict[str, Any]]:
    places = [(shot.north_m, 1.0), *shot.others, (shot.north_m + ELSEWHERE_M, 0.5)]
    return [
        {
            "query_id": image_id(shot.name),
            "rank": rank,
            "image_id": image_id(f"{shot.name} {rank}"),
            "uri": f"map/{shot.name} {rank}",
            "root": "/map",
            "lat_deg": north(metres),
            "lon_deg": LON_DEG,
            "global_rank": rank,
            "cosine": 0.9 - 0.01 * rank,
            "matches": 50,
            "local_score": max(0.0, shot.chance / (1 - shot.chance) - LEAST),
            "score": score,
        }
        for rank, (metres, score) in enumerate(places, start=1)
    ]


def _calibration(promises: dict[str, float]) -> Calibration:
    """The best candidate's local score is the odds."""
    evidence = Evidence(
        held_back="drives",
        queries=200,
        with_answer=180,
        mean_pool=20.0,
        fixed_pool=100,
        pool_recall=0.9,
        fixed_recall=0.9,
        right=150,
        first_by_descriptor=0.7,
        first_reranked=0.8,
        calibration_error=0.01,
        reliability=[],
        risk_coverage=[],
    )
    confidence = ConfidenceFit(weights={"log_local_score": 1.0}, intercept=0.0, thresholds=promises, error_factor=1.0)
    return Calibration(photos=2000, pool=None, distinct_weight=None, confidence=confidence, evidence=evidence)
