"""Say how alike two photos are by their local features, and put a pool of candidates in order by it and their global cosine.

`inference.Reranker` calls this; the modes are those of `config.RerankConfig`. Sources: FoL (count), FoL++ (reliability-weighted
sum, paper), our design (bounded similarity, distinct similarity, adaptive).

Letters: S_g global cosine, mu its background, S_l local similarity, S'_l the same in 0..1, D'_l what of it sets a candidate apart
from the others, R reliability, p mutual pairs, K pool size, Q features of the query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from fol_model.config import RerankConfig
from fol_model.geometry import consistent
from fol_model.matching import NOBODY, Features, Matches, is_lone_pair, match_block
from fol_model.scheduling import background, pool_size, stage_ends

COMPARED: Final = 20
"""So many of the globally best candidates say what a feature of the query finds anywhere. So whom a pool holds beside these does
not change the score of any other."""

COMMON: Final = 1.0
"""A match at most so many deviations above what its feature finds elsewhere counts nothing: any street has it ..."""

DISTINCT: Final = 4.0
"""... and from so many on it counts in full. Both, and the weight 4, were chosen on the sets of fol_model/README.md."""

LEAST_DEVIATION: Final = 0.02
"""Of a feature's cosines: those of a feature that finds the same everywhere differ by rounding, which must not count."""

LEAST_SPREAD: Final = 0.006
"""Added to the deviation of D'_l of candidates that show other places: of twenty alone it is known badly. Chosen together with
`RerankConfig.enough`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSide:
    """The local features of one photo, ready for matching."""

    features: Features

    reliability: UInt8[np.ndarray, " n"]
    """R, 0 to 255 for 0.0 to 1.0."""

    patch: UInt8[np.ndarray, "n 2"] | None = None
    """Row and column of each feature; needed by `RerankConfig.geometry` only."""

    @property
    def total(self) -> float:
        """Sum of R."""
        return int(self.reliability.sum(dtype=np.int64)) / 255

    @property
    def places(self) -> UInt8[np.ndarray, "n 2"]:
        """Row and column of each feature.

        Raises:
            ValueError: they were not given.
        """
        if self.patch is None:
            raise ValueError("a check of the geometry needs the patches of the features")
        return self.patch


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the local features of a query say of some candidates."""

    matches: Int32[np.ndarray, " K"]
    """FoL's count in mode `count`: mutual pairs above the least cosine, but 0 where only one pair chose each other at all. In the
    other modes simply the pairs above the least cosine."""

    local_scores: Float64[np.ndarray, " K"]
    """By mode. `count`: the matches. `paper`: S_l. `adaptive`: S'_l."""

    pairs: Matches
    """The pairs above the least cosine."""

    weights: Float32[np.ndarray, " p"]
    """What each of them adds to S_l."""

    possible: Float64[np.ndarray, " K"]
    """sqrt(sum R_q * sum R_c), the highest that S_l can be."""


def compare(query: LocalSide, candidates: Sequence[LocalSide], config: RerankConfig) -> Comparison:
    """Match a query with some candidates, in the memory of one block of cosines; see `matching.match_block`."""
    pairs = match_block(query.features, [candidate.features for candidate in candidates], min_cosine=config.min_cosine)
    if config.geometry == "affine":
        pairs = pairs.only(consistent(pairs, query.places, [candidate.places for candidate in candidates]))
    weights = pair_weights(pairs, query, candidates, cosine_weight=config.cosine_weight)
    possible = np.sqrt(np.array([query.total * candidate.total for candidate in candidates], np.float64))
    matches = pairs.counts
    local = np.bincount(pairs.place, weights=weights.astype(np.float64), minlength=len(candidates)).astype(np.float64)
    if config.mode == "count":
        lone = [
            place for place in np.flatnonzero(matches == 1).tolist() if is_lone_pair(query.features, candidates[place].features)
        ]
        matches[lone] = 0
        local = matches.astype(np.float64)
    elif config.mode == "adaptive":
        local = bounded_similarity(local, possible)
    return Comparison(matches=matches.astype(np.int32), local_scores=local, pairs=pairs, weights=weights, possible=possible)


def pair_weights(
    pairs: Matches, query: LocalSide, candidates: Sequence[LocalSide], *, cosine_weight: bool
) -> Float32[np.ndarray, " p"]:
    """Weigh each pair by sqrt(R_q R_c), times its cosine if asked. Their sum is S_l."""
    starts = np.cumsum([0, *(len(candidate.reliability) for candidate in candidates)])[:-1]
    of_candidates = np.concatenate([candidate.reliability for candidate in candidates]) if candidates else np.empty(0, np.uint8)
    of_pair = of_candidates[starts[pairs.place] + pairs.candidate].astype(np.float32) / 255
    weights: Float32[np.ndarray, " p"] = np.sqrt(query.reliability[pairs.query].astype(np.float32) / 255 * of_pair)
    return weights * pairs.cosine if cosine_weight else weights


def bounded_similarity(
    local_similarity: Float64[np.ndarray, " K"], possible: Float64[np.ndarray, " K"]
) -> Float64[np.ndarray, " K"]:
    """Scale S_l to S'_l in 0..1, so that it depends neither on the number of features nor on what a photo shows.

    S'_l = S_l / sqrt(sum R_q * sum R_c): at most 1 by Cauchy-Schwarz, as pairs are one to one. 0 where nothing is reliable.
    """
    return np.where(possible > 0, local_similarity / np.where(possible > 0, possible, 1), 0.0)


def distinct_weights(pool: Sequence[Comparison], config: RerankConfig) -> list[Float64[np.ndarray, " _"]]:
    """Say what each pair of the candidates of a pool adds to what they are ordered by.

    Mode `adaptive`: its weight in S_l, times how far its cosine lies above what its feature of the query finds in other
    candidates, from 0 at `COMMON` deviations to 1 at `DISTINCT`. Windows, kerbs and foliage match everywhere and say nothing of
    where. The other modes: its weight. (That a match counts by its lead over other images is the idea of local naive Bayes
    nearest neighbours, McCann and Lowe, CVPR 2012.)

    Args:
        pool: the candidates compared with one query, in global order.
        config: of the comparison.
    """
    if config.mode != "adaptive" or not pool:
        return [one.weights.astype(np.float64) for one in pool]
    nearest = _first_rows([one.pairs.nearest for one in pool], COMPARED)
    elsewhere = _Elsewhere(count=len(nearest), total=nearest.sum(axis=0), squares=(nearest**2).sum(axis=0))
    counted, before = [], 0
    for one in pool:
        lead = _deviations_above(one.pairs, elsewhere, one.pairs.place + before < COMPARED)
        counted.append(one.weights * np.clip((lead - COMMON) / (DISTINCT - COMMON), 0, 1))
        before += len(one.matches)
    return counted


def ranking_scores(pool: Sequence[Comparison], config: RerankConfig) -> Float64[np.ndarray, " K"]:
    """Say by what of their local features the candidates of a pool are ordered.

    Mode `adaptive`: D'_l, which is S'_l made of `distinct_weights`. Alone in its pool, a candidate has D'_l = S'_l. The other
    modes: the local scores.

    Args:
        pool: the candidates compared with one query, in global order.
        config: of the comparison.
    """
    if config.mode != "adaptive" or not pool:
        return np.concatenate([np.empty(0), *(one.local_scores for one in pool)])
    sums = [
        np.bincount(one.pairs.place, weights=weights, minlength=len(one.matches)).astype(np.float64)
        for one, weights in zip(pool, distinct_weights(pool, config), strict=True)
    ]
    return bounded_similarity(np.concatenate(sums), np.concatenate([one.possible for one in pool]))


def matched_stages(cosines: Float64[np.ndarray, " all"], config: RerankConfig) -> list[int]:
    """List how many candidates are matched before it is asked whether they are enough; the last is the largest pool."""
    pool = config.pool
    stages = config.mode == "adaptive" and config.enough is not None and pool.fixed_size is None
    return stage_ends(pool_size(cosines, pool), stages=stages)


def is_enough(ranking: Float64[np.ndarray, " K"], cosines: Float64[np.ndarray, " all"], config: RerankConfig) -> bool:
    """Say whether the best of the candidates matched so far need not fear those further down.

    They have at most the cosine of the next one. What their local features may add is guessed from the candidates matched, of
    which all but the best show other places: the mean of their D'_l and `config.enough` deviations. Where the best so far leads
    even that, matching ends. The rule looks at a prefix of the candidates only, and so the pool stays one.

    Args:
        ranking: `ranking_scores` of the first K candidates, at least two, in mode `adaptive`.
        cosines: of all candidates, more than K.
        config: with `enough`.
    """
    scores = fused_scores(config, cosines, ranking)
    best = int(np.argmax(scores))
    others = np.delete(ranking, best)
    mu, _ = background(cosines, config.pool.max_size)
    assert config.enough is not None
    feared = others.mean() + config.enough * (others.std() + LEAST_SPREAD)
    return bool(scores[best] >= cosines[len(ranking)] - mu + config.local_weight * feared)


def matched_size(ranking: Float64[np.ndarray, " K"], cosines: Float64[np.ndarray, " all"], config: RerankConfig) -> int:
    """Say how many candidates a query matches, from the `ranking_scores` of its largest pool."""
    *stages, last = matched_stages(cosines, config)
    return next((end for end in stages if is_enough(ranking[:end], cosines, config)), last)


def _first_rows(blocks: Sequence[Float32[np.ndarray, "_ Q"]], count: int) -> Float64[np.ndarray, "n Q"]:
    """Take the first rows of blocks that lie one below the other, without those of candidates that have no features."""
    first, missing = [], count
    for block in blocks:
        if missing <= 0:
            break
        first.append(block[:missing])
        missing -= len(block)
    rows = np.concatenate(first).astype(np.float64)
    return rows[(rows > NOBODY).any(axis=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Elsewhere:
    """What the features of a query find in the candidates that others are compared with."""

    count: int
    """Of those candidates."""
    total: Float64[np.ndarray, " Q"]
    """Of the highest cosines of each feature."""
    squares: Float64[np.ndarray, " Q"]
    """Of them, added up."""


def _deviations_above(pairs: Matches, elsewhere: _Elsewhere, is_one_of_them: Bool[np.ndarray, " p"]) -> Float64[np.ndarray, " p"]:
    """Say how far each pair's cosine lies above the mean of what its feature of the query finds in other candidates.

    Args:
        pairs: of several candidates.
        elsewhere: what to compare with.
        is_one_of_them: whether a pair's own candidate is among those; then it is left out.

    Returns:
        In deviations of the others; infinite where there are none.
    """
    own = np.where(is_one_of_them, pairs.cosine, 0).astype(np.float64)
    others = elsewhere.count - is_one_of_them
    some = np.maximum(others, 1)
    mean = (elsewhere.total[pairs.query] - own) / some
    variance = np.maximum((elsewhere.squares[pairs.query] - own**2) / some - mean**2, 0)
    lead = (pairs.cosine - mean) / np.sqrt(variance + LEAST_DEVIATION**2)
    return np.where(others > 0, lead, np.inf)


def fused_scores(
    config: RerankConfig, cosines: Float64[np.ndarray, " all"], local: Float64[np.ndarray, " K"]
) -> Float32[np.ndarray, " K"]:
    """Score the pool.

    Args:
        config: mode and weights.
        cosines: S_g of all candidates, largest first; the pool is the first K.
        local: their `ranking_scores`.

    Returns:
        Mode `count`: the number of matches. `paper`: gamma S_g + S_l. `adaptive`: S_g - mu + w D'_l, which is near 0 for a photo
        that has nothing in common with the query.
    """
    pool = cosines[: len(local)]
    if config.mode == "count" or not len(local):
        fused = local
    elif config.mode == "paper":
        fused = config.gamma * pool + local
    else:
        mu, _ = background(cosines, config.pool.max_size)
        fused = pool - mu + config.local_weight * local
    return fused.astype(np.float32)


def best_first(scores: Float32[np.ndarray, " K"], config: RerankConfig) -> Int64[np.ndarray, " K"]:
    """Order a pool by falling score.

    Of equal ones the globally better comes first; in mode `count` the globally worse, as in the reference, which turns around a
    rising order (there equal ones fall as the sort happens to leave them).
    """
    if config.mode == "count":
        return np.argsort(scores, kind="stable")[::-1].copy()
    order: Int64[np.ndarray, " K"] = np.argsort(-scores, kind="stable")
    return order
