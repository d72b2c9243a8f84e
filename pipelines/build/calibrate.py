"""segments ▶ calibration: hold back photos of a version, ask the rest of it for them, and fit to what comes of it.

Needs no photos and no network: descriptors and local features are stored. It costs one pass over the descriptors and the matching
of `MOST_ASKED` pools, however large the map. A calibration is kept while the map is about as large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64

from fol_model.config import RerankConfig
from fol_model.inference import Reranked, Reranker
from fol_model.reranking import best_first, fused_scores, matched_size
from infra.arrays import LocalFeaturesReader
from infra.storage import Storage
from infra.tables import DescriptorReader, read_descriptors, read_table
from pipelines.build.membership import Selection, StoredSegment, segment_object
from pipelines.locate.confidence import signals_of
from pipelines.locate.fitting import calibration_error, fit_confidence, reliability_groups, risk_coverage
from pipelines.locate.holding_back import (
    RADIUS_M,
    BestOf,
    HeldBack,
    Places,
    choose_held_back,
    fit_early_exit,
    fit_enough,
    fit_weight,
)
from pipelines.locate.position import Group, PositionConfig, Vote, best_group, distances_m
from schemas import layout
from schemas.calibration import Calibration, ConfidenceFit, Evidence, PoolFit, decode_calibration
from schemas.local_features import LocalFeatures
from schemas.manifest import Manifest

STALE: Final = 1 / 4
"""A map that grew or shrank by more than this share is calibrated anew."""

COLUMNS: Final = ["image_id", "lat_deg", "lon_deg", "heading_deg", "taken_at", "sequence_id"]

Stored = Mapping[str, StoredSegment]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What came of one photo held back."""

    signals: dict[str, float]
    right: bool
    error_m: float
    radius_m: float


def still_calibrated(head: Manifest | None, photos: int, *, extend: bool) -> Calibration | None:
    """Take over the calibration of the version before, if it was fitted to about as many photos, or if this is a backfill."""
    before = decode_calibration(head.calibration) if head else None
    if before is None or not (extend or abs(photos - before.photos) <= STALE * before.photos):
        return None
    return before


def calibrate(storage: Storage, stored: Stored, selection: Selection, reranker: Reranker) -> Calibration | None:
    """Fit pools and probabilities to a version.

    Args:
        storage: of the map.
        stored: every segment that `selection` names.
        selection: the photos of the version.
        reranker: as queries use it.

    Returns:
        None: the map has too few photos to hold any back.

    Raises:
        DamagedError: something stored is missing or not what was written.
    """
    photos = _Photos(storage, stored, selection)
    held_back = choose_held_back(photos.places)
    if held_back is None:
        return None
    best = _search(photos, held_back, reranker.config.pool.max_size)
    right = [photos.distances_m(row, found) <= RADIUS_M for row, (_, found) in zip(held_back.asked.tolist(), best, strict=True)]
    cosines = [row for row, _ in best]
    reranker = Reranker(replace(reranker.config, pool=fit_early_exit(cosines, right, reranker.config.pool)))
    sizes = [reranker.pool_size(row) for row in cosines]
    matched = [
        _match(photos, row, found[:size], row_cosines, reranker)
        for row, (row_cosines, found), size in zip(held_back.asked.tolist(), best, sizes, strict=True)
    ]
    local = [one.ranking_scores for one in matched]
    weight = reranker.config.local_weight
    if reranker.config.mode == "adaptive":
        weight = fit_weight(cosines, local, right, reranker.config)
    config = replace(reranker.config, local_weight=weight)
    enough = fit_enough(cosines, local, right, config)
    config = replace(config, enough=enough)
    sizes = [matched_size(scores, row, config) for scores, row in zip(local, cosines, strict=True)]
    local = [scores[:size] for scores, size in zip(local, sizes, strict=True)]
    asked = [
        _ask(photos, row, found[:size], one, fused_scores(config, row_cosines, scores), config)
        for row, (row_cosines, found), size, one, scores in zip(
            held_back.asked.tolist(), best, sizes, matched, local, strict=True
        )
    ]
    answered = [one for one in asked if one is not None]
    is_right = np.array([one.right for one in answered], bool)
    fitted = fit_confidence(
        [one.signals for one in answered],
        is_right,
        _blocks(photos.places, held_back)[[one is not None for one in asked]],
        error_factor=_error_factor(answered),
    )
    firsts = [best_first(fused_scores(config, row, scores), config)[0] for row, scores in zip(cosines, local, strict=True)]
    return Calibration(
        photos=len(photos),
        pool=PoolFit(sure_gap=config.pool.sure_gap, sure_sigmas=config.pool.sure_sigmas, enough=enough),
        distinct_weight=weight,
        confidence=fitted[0] if fitted else None,
        evidence=_evidence(held_back, sizes, right, firsts, is_right, fitted, config.pool.max_size),
    )


class _Photos:
    """The live photos of a version, by number in the order of their image ids."""

    def __init__(self, storage: Storage, stored: Stored, selection: Selection) -> None:
        self._storage = storage
        self._stored = stored
        tables, homes = [], []
        for segment, live in sorted(selection.items()):
            ref = segment_object(stored[segment].receipt, layout.IMAGES)
            images = read_table(storage, ref.path, kind="images", columns=COLUMNS, expected=ref).replace_schema_metadata(None)
            tables.append(images.filter(pa.array(live)))
            homes += [(segment, row) for row in np.flatnonzero(live).tolist()]
        images = pa.concat_tables(tables)
        order = np.argsort(np.array(images["image_id"].to_pylist()), kind="stable")
        self.places = Places.of(images.take(order))
        self._homes = [homes[place] for place in order.tolist()]
        self._features: dict[str, LocalFeaturesReader] = {}

    def __len__(self) -> int:
        return len(self._homes)

    def blocks(self) -> "list[tuple[str, Int64[np.ndarray, ' n'], Int64[np.ndarray, ' n']]]":
        """List the segments, with the numbers of their live photos and the rows these have there."""
        found: dict[str, list[tuple[int, int]]] = {}
        for number, (segment, row) in enumerate(self._homes):
            found.setdefault(segment, []).append((number, row))
        return [(segment, *np.array(pairs, np.int64).T) for segment, pairs in found.items()]

    def descriptors(self, segment: str, rows: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        """Read a segment's descriptors, of unit length."""
        found = read_descriptors(self._storage, segment_object(self._stored[segment].receipt, layout.DESCRIPTORS))[rows]
        return _unit(found.astype(np.float32))

    def descriptors_of(self, numbers: Int64[np.ndarray, " q"]) -> Float32[np.ndarray, "q D"]:
        """Read the descriptors of some photos, only the row groups they are in."""
        places: dict[str, list[tuple[int, int]]] = {}
        for place, number in enumerate(numbers.tolist()):
            segment, row = self._homes[number]
            places.setdefault(segment, []).append((place, row))
        parts = {
            segment: DescriptorReader(self._storage, segment_object(self._stored[segment].receipt, layout.DESCRIPTORS)).read(
                [row for _, row in pairs]
            )
            for segment, pairs in places.items()
        }
        dim = next(iter(parts.values())).shape[1]
        found = np.empty((len(numbers), dim), np.float32)
        for segment, pairs in places.items():
            found[[place for place, _ in pairs]] = parts[segment]
        return _unit(found)

    def local_features(self, numbers: Sequence[int]) -> list[LocalFeatures]:
        """Read the local features of some photos."""
        return [self._reader(self._homes[number][0]).read([self._homes[number][1]])[0] for number in numbers]

    def distances_m(self, number: int, others: Int64[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
        """Measure from one photo to others."""
        lat, lon = self.places.lat_deg, self.places.lon_deg
        return distances_m(np.full(len(others), lat[number]), np.full(len(others), lon[number]), lat[others], lon[others])

    def _reader(self, segment: str) -> LocalFeaturesReader:
        if segment not in self._features:
            receipt = self._stored[segment].receipt
            path = f"{layout.segment_folder(segment, receipt.attempt)}/{layout.LOCAL_FEATURES}"
            self._features[segment] = LocalFeaturesReader(self._storage, path, expected=receipt.objects)
        return self._features[segment]


def _search(photos: _Photos, held_back: HeldBack, kept: int) -> list[tuple[Float64[np.ndarray, " K"], Int64[np.ndarray, " K"]]]:
    """Compare the photos asked with all others, a segment at a time."""
    best = BestOf(photos.descriptors_of(held_back.asked), kept)
    for segment, numbers, rows in photos.blocks():  # what is left out as well: for all photos it would be half a kilobyte each
        left_out = np.stack([held_back.left_out(photos.places, number, numbers) for number in range(len(held_back.asked))])
        best.add(photos.descriptors(segment, rows), numbers, left_out)
    return list(best)


def _match(
    photos: _Photos, number: int, pool: Int64[np.ndarray, " K"], cosines: Float64[np.ndarray, " all"], reranker: Reranker
) -> Reranked:
    """Match one photo with its pool, as a query would be."""
    query, *candidates = photos.local_features([number, *pool.tolist()])
    return reranker.rerank(query, candidates, cosines)


def _ask(
    photos: _Photos,
    number: int,
    pool: Int64[np.ndarray, " K"],
    matched: Reranked,
    scores: Float32[np.ndarray, " K"],
    config: RerankConfig,
) -> _Asked | None:
    """Answer one photo as a query would be; None: nothing has anything in common with it."""
    votes = [
        Vote(
            lat_deg=float(photos.places.lat_deg[pool[place]]),
            lon_deg=float(photos.places.lon_deg[pool[place]]),
            score=float(scores[place]),
            matches=int(matched.matches[place]),
            local_score=float(matched.local_scores[place]),
        )
        for place in best_first(scores, config).tolist()
    ]
    group = best_group(votes, PositionConfig())
    if group is None:
        return None
    error_m = _error_m(photos.places, number, group)
    return _Asked(signals=signals_of(votes, group), right=error_m <= RADIUS_M, error_m=error_m, radius_m=group.radius_m)


def _error_m(places: Places, number: int, group: Group) -> float:
    here = (np.array([places.lat_deg[number]]), np.array([places.lon_deg[number]]))
    return float(distances_m(*here, np.array([group.lat_deg]), np.array([group.lon_deg]))[0])


def _error_factor(answered: Sequence[_Asked]) -> float:
    """What radii are to be multiplied by, so that nine of ten right answers lie within."""
    ratios = [one.error_m / one.radius_m for one in answered if one.right]
    return max(0.1, float(np.quantile(ratios, 0.9))) if ratios else 1.0


def _blocks(places: Places, held_back: HeldBack) -> Int64[np.ndarray, " q"]:
    """Number the parts that judge one another: drives, or, where there are few, squares of 100 m in them."""
    drive: Int64[np.ndarray, " q"] = places.drive[held_back.asked]
    if held_back.rule == "drives" and len(np.unique(drive)) >= 5:
        return drive
    north = np.floor(places.lat_deg[held_back.asked] * 1113)
    east = np.floor(places.lon_deg[held_back.asked] * 1113 * np.cos(np.radians(places.lat_deg[held_back.asked].mean())))
    squares = np.unique(np.stack([north, east], axis=1), axis=0, return_inverse=True)[1]
    return np.asarray(squares, np.int64).reshape(-1)


def _evidence(
    held_back: HeldBack,
    sizes: Sequence[int],
    right: Sequence[Bool[np.ndarray, " K"]],
    firsts: Sequence[int],
    is_right: Bool[np.ndarray, " n"],
    fitted: tuple[ConfidenceFit, Float64[np.ndarray, " n"]] | None,
    fixed: int,
) -> Evidence:
    groups = reliability_groups(fitted[1], is_right) if fitted else []
    in_pool = [bool(hits[:size].any()) for hits, size in zip(right, sizes, strict=True)]
    return Evidence(
        held_back=held_back.rule,
        queries=len(sizes),
        with_answer=int(held_back.with_answer.sum()),
        mean_pool=round(float(np.mean(sizes)), 3),
        fixed_pool=fixed,
        pool_recall=round(float(np.mean(in_pool)), 6),
        fixed_recall=round(float(np.mean([bool(hits.any()) for hits in right])), 6),
        right=int(is_right.sum()),
        first_by_descriptor=round(float(np.mean([bool(hits[0]) for hits in right])), 6),
        first_reranked=round(float(np.mean([bool(hits[first]) for hits, first in zip(right, firsts, strict=True)])), 6),
        calibration_error=calibration_error(groups) if fitted else None,
        reliability=groups,
        risk_coverage=risk_coverage(fitted[1], is_right) if fitted else [],
    )


def _unit(rows: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
    unit: Float32[np.ndarray, "n D"] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
