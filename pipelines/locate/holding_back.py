"""Photos of a map as questions to the rest of it: whom to ask, what to leave out of the map for each, and what that teaches.

A photo taken a second before or after another one shows nearly the same, so leaving out the photo alone would make every question
easy. Its whole drive is left out where enough places were driven twice; else its neighbours in the drive. Photos that belong to
no drive are never asked.

Letters: n photos of the map, q photos asked, K candidates of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int64
from sklearn.neighbors import BallTree

from fol_model.config import PoolConfig, RerankConfig
from fol_model.reranking import best_first, fused_scores, matched_size
from fol_model.scheduling import pool_size

RADIUS_M: Final = 25.0
"""An answer is right up to this far from the truth."""

NEIGHBOUR_M: Final = 7.5
"""Photos of a drive nearer than this to the one asked are left out. Streets are photographed every 5 to 20 m, so most photos have
another one within the radius; further out, nothing would be left of a narrow street that shows the place."""

EARTH_M: Final = 6_371_000.0

SAME_VIEW_DEG: Final = 60.0
"""Two photos of a place that look further apart than this do not show the same; a street driven both ways is such a place."""

GAP_S: Final = 600.0
"""Photos of no named sequence that are further apart in time belong to different drives."""

MOST_ASKED: Final = 512
"""Photos held back, and of a small map at most half of it. More: surer numbers, at a tenth of a second each."""

LEAST_ASKED: Final = 30
"""Fewer that can be answered teach nothing."""

WITHOUT_ANSWER: Final = 1 / 4
"""At most this share of those asked stands where no other photo was taken: a place like those that the map lacks."""

KEPT: Final = 0.995
"""Share of early exits that must be right."""

ENOUGH: Final = (3.5, 4.0, 4.5, 5.0, 6.0, 8.0)
"""Of `RerankConfig.enough`. None is below the default, which was chosen on several towns: no map has seen the next night."""

NEVER: Final = 1000.0
"""No lead is as large."""

SURE_ERRORS: Final = 2.8
"""Standard errors by which another weight must win: as nine are tried, one wins by chance in one map of forty."""

WEIGHTS: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
SURE_GAPS: Final = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
SURE_SIGMAS: Final = (3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Places:
    """Where and when the photos of a map were taken, in the order of their image ids."""

    lat_deg: Float64[np.ndarray, " n"]
    lon_deg: Float64[np.ndarray, " n"]
    heading_deg: Float64[np.ndarray, " n"]
    """Clockwise from north; NaN: not known."""
    drive: Int64[np.ndarray, " n"]
    """-1: none."""

    @staticmethod
    def of(images: pa.Table) -> "Places":
        """Read photos in the schema of images."""
        return Places(
            lat_deg=images["lat_deg"].to_numpy(),
            lon_deg=images["lon_deg"].to_numpy(),
            heading_deg=images["heading_deg"].to_numpy().astype(np.float64),
            drive=drives_of(images),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeldBack:
    """What to ask."""

    rule: Literal["drives", "neighbours"]
    asked: Int64[np.ndarray, " q"]
    """Rows of `Places`."""
    with_answer: Bool[np.ndarray, " q"]

    def left_out(self, places: Places, number: int, among: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Mark, of some photos, what is no part of the map for one question: itself, and its drive or its neighbours in it."""
        row = int(self.asked[number])
        same: Bool[np.ndarray, " n"] = places.drive[among] == places.drive[row]
        if self.rule == "neighbours":
            same &= _metres(places, row, among) < NEIGHBOUR_M
        same |= among == row
        return same


def drives_of(images: pa.Table) -> Int64[np.ndarray, " n"]:
    """Number the drives: named sequences, and runs in time of the other photos. -1: neither a sequence nor a time is known."""
    names = images["sequence_id"].to_pylist()
    numbers = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
    drive = np.array([-1 if name is None else numbers[name] for name in names], np.int64)
    taken = images["taken_at"].cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64)  # NaN: not known
    loose = np.flatnonzero((drive < 0) & np.isfinite(taken))
    loose = loose[np.argsort(taken[loose], kind="stable")]
    drive[loose] = len(numbers) + np.cumsum(np.diff(taken[loose], prepend=taken[loose][:1]) > GAP_S * 1e6)
    return drive


def choose_held_back(places: Places) -> HeldBack | None:
    """Choose whom to ask.

    Returns:
        None: hardly any place was photographed twice, or nobody knows in which drive.
    """
    tree = BallTree(np.radians(np.stack([places.lat_deg, places.lon_deg], axis=1)), metric="haversine")
    most = min(MOST_ASKED, len(places.drive) // 2)
    candidates = np.flatnonzero(places.drive >= 0)[: 4 * most]
    if not len(candidates):
        return None
    positions = np.radians(np.stack([places.lat_deg[candidates], places.lon_deg[candidates]], axis=1))
    near = tree.query_radius(positions, RADIUS_M / EARTH_M)
    rules: tuple[Literal["drives", "neighbours"], ...] = ("drives", "neighbours")
    for rule in rules:
        answered = np.array([_has_answer(places, row, around, rule) for row, around in zip(candidates, near, strict=True)])
        if answered.sum() >= LEAST_ASKED and answered.mean() >= 1 / 3:
            asked = candidates[answered][:most]
            lost = candidates[~answered][: round(len(asked) * WITHOUT_ANSWER)]
            rows = np.sort(np.concatenate([asked, lost]))
            return HeldBack(rule=rule, asked=rows, with_answer=np.isin(rows, asked))
    return None


def fit_early_exit(
    cosines: Sequence[Float64[np.ndarray, " K"]], right: Sequence[Bool[np.ndarray, " K"]], base: PoolConfig
) -> PoolConfig:
    """Find when the first candidate alone is enough (SPEC 10.4); never, where too few photos prove any lead.

    Args:
        cosines: of the candidates of each photo asked, largest first.
        right: whether each shows the place.
        base: the limits that are not fitted.
    """
    exits = []
    for gap, sigmas in product(SURE_GAPS, SURE_SIGMAS):
        config = replace(base, sure_gap=gap, sure_sigmas=sigmas)
        alone = [hits for row, hits in zip(cosines, right, strict=True) if pool_size(row, config) == 1]
        if len(alone) >= LEAST_ASKED and np.mean([hits[0] for hits in alone]) >= KEPT:
            exits.append((len(alone), config))
    return max(exits, key=lambda pair: pair[0])[1] if exits else replace(base, sure_gap=NEVER)


def fit_weight(
    cosines: Sequence[Float64[np.ndarray, " all"]],
    local: Sequence[Float64[np.ndarray, " K"]],
    right: Sequence[Bool[np.ndarray, " all"]],
    config: RerankConfig,
) -> float:
    """Choose how much local features weigh, none at all included: another weight than the usual only where it surely wins.

    Args:
        cosines: of the candidates of each photo asked, largest first.
        local: `ranking_scores` of the pool, the first K of them.
        right: whether each candidate shows the place.
        config: with the usual weight.
    """
    usual = _first_right(cosines, local, right, config)

    def lead(weight: float) -> float:
        """In standard errors: of the photos that only one of the two gets right, how many more are this weight's."""
        here = _first_right(cosines, local, right, replace(config, local_weight=weight))
        return float((here.sum() - usual.sum()) / np.sqrt(max((here != usual).sum(), 1)))

    best = max(WEIGHTS, key=lead)
    return best if lead(best) >= SURE_ERRORS else config.local_weight


def fit_enough(
    cosines: Sequence[Float64[np.ndarray, " all"]],
    local: Sequence[Float64[np.ndarray, " K"]],
    right: Sequence[Bool[np.ndarray, " all"]],
    config: RerankConfig,
) -> float:
    """Find how soon matching may end so that as many right candidates are first as after all of it.

    Args:
        cosines: of the candidates of each photo asked, largest first.
        local: `ranking_scores` of the largest pool, the first K of them.
        right: whether each candidate shows the place.
        config: as fitted so far; its own `enough` is the least.
    """
    target = _first_right(cosines, local, right, config).sum()
    for enough in ENOUGH:
        trial = replace(config, enough=enough)
        pools = [one[: matched_size(one, row, trial)] for one, row in zip(local, cosines, strict=True)]
        if _first_right(cosines, pools, right, config).sum() >= target:
            return enough
    return NEVER


def _first_right(
    cosines: Sequence[Float64[np.ndarray, " all"]],
    local: Sequence[Float64[np.ndarray, " K"]],
    right: Sequence[Bool[np.ndarray, " all"]],
    config: RerankConfig,
) -> Bool[np.ndarray, " q"]:
    """Say for each photo asked whether the first candidate is right when these pools are re-ranked."""
    return np.array(
        [
            bool(hits[best_first(fused_scores(config, row, pool), config)[0]]) if len(pool) else False
            for row, pool, hits in zip(cosines, local, right, strict=True)
        ],
        bool,
    )


class BestOf:
    """The K most similar photos of each question, of blocks of photos that come one after the other."""

    def __init__(self, queries: Float32[np.ndarray, "q D"], kept: int) -> None:
        self._queries = queries
        self._kept = kept
        self.cosines = np.full((len(queries), 0), -np.inf, np.float32)
        self.rows = np.full((len(queries), 0), -1, np.int64)

    def add(self, descriptors: Float32[np.ndarray, "n D"], rows: Int64[np.ndarray, " n"], skip: Bool[np.ndarray, "q n"]) -> None:
        """Consider a block; equal cosines go to the smaller row.

        Args:
            descriptors: of unit length.
            rows: their numbers.
            skip: what is left out for each question.
        """
        fresh = np.where(skip, -np.inf, self._queries @ descriptors.T).astype(np.float32)
        cosines = np.concatenate([self.cosines, fresh], axis=1)
        numbers = np.concatenate([self.rows, np.broadcast_to(rows, fresh.shape)], axis=1)
        order = np.lexsort((numbers, -cosines), axis=1)[:, : self._kept]
        self.cosines, self.rows = np.take_along_axis(cosines, order, axis=1), np.take_along_axis(numbers, order, axis=1)

    def __iter__(self) -> Iterator[tuple[Float64[np.ndarray, " K"], Int64[np.ndarray, " K"]]]:
        """Go through the questions: cosines, largest first, and rows."""
        for cosines, rows in zip(self.cosines, self.rows, strict=True):
            found = np.isfinite(cosines)
            yield cosines[found].astype(np.float64), rows[found]


def _has_answer(places: Places, row: int, around: Int64[np.ndarray, " m"], rule: str) -> bool:
    others = around[around != row]
    turn = np.abs((places.heading_deg[others] - places.heading_deg[row] + 180) % 360 - 180)
    others = others[~(turn > SAME_VIEW_DEG)]  # an unknown heading may be any
    elsewhere = places.drive[others] != places.drive[row]
    if rule == "neighbours":
        elsewhere |= _metres(places, row, others) >= NEIGHBOUR_M
    return bool(elsewhere.any())


def _metres(places: Places, row: int, others: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """From one photo to others, on a plane: good for the hundred metres round it, and far for all that is far."""
    north = np.radians(places.lat_deg[others] - places.lat_deg[row])
    east = np.radians((places.lon_deg[others] - places.lon_deg[row] + 180) % 360 - 180) * np.cos(np.radians(places.lat_deg[row]))
    metres: Float64[np.ndarray, " n"] = np.hypot(north, east) * EARTH_M
    return metres
