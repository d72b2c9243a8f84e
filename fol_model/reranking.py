"""Say how alike two photos are by their local features, and put a pool of candidates in order by it and their global cosine.

`inference.Reranker` calls this; the modes are those of `config.RerankConfig`. Sources: FoL (count), FoL++ (reliability-weighted
sum, paper), our design (bounded similarity, adaptive).

Letters: S_g global cosine, mu its background, S_l local similarity, S'_l the same in 0..1, R reliability, p mutual pairs, K pool
size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from fol_model.config import RerankConfig
from fol_model.geometry import consistent
from fol_model.matching import Features, Matches, is_lone_pair, match_block
from fol_model.scheduling import background


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

    def strongest_first(self, place: int) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """Give the matched features of one candidate, of the query and its own, by falling weight."""
        mine = np.flatnonzero(self.pairs.place == place)
        order = mine[np.argsort(-self.weights[mine], kind="stable")]
        return self.pairs.query[order], self.pairs.candidate[order]


def compare(query: LocalSide, candidates: Sequence[LocalSide], config: RerankConfig) -> Comparison:
    """Match a query with some candidates, in the memory of one block of cosines; see `matching.match_block`."""
    pairs = match_block(query.features, [candidate.features for candidate in candidates], min_cosine=config.min_cosine)
    if config.geometry == "affine":
        pairs = pairs.only(consistent(pairs, query.places, [candidate.places for candidate in candidates]))
    weights = pair_weights(pairs, query, candidates, cosine_weight=config.cosine_weight)
    matches = pairs.counts
    local = np.bincount(pairs.place, weights=weights.astype(np.float64), minlength=len(candidates)).astype(np.float64)
    if config.mode == "count":
        lone = [
            place for place in np.flatnonzero(matches == 1).tolist() if is_lone_pair(query.features, candidates[place].features)
        ]
        matches[lone] = 0
        local = matches.astype(np.float64)
    elif config.mode == "adaptive":
        local = bounded_similarity(local, query, candidates)
    return Comparison(matches=matches.astype(np.int32), local_scores=local, pairs=pairs, weights=weights)


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
    local_similarity: Float64[np.ndarray, " K"], query: LocalSide, candidates: Sequence[LocalSide]
) -> Float64[np.ndarray, " K"]:
    """Scale S_l to S'_l in 0..1, so that it depends neither on the number of features nor on what a photo shows.

    S'_l = S_l / sqrt(sum R_q * sum R_c): at most 1 by Cauchy-Schwarz, as pairs are one to one. 0 where nothing is reliable.
    """
    possible = np.sqrt(np.array([query.total * candidate.total for candidate in candidates]))
    return np.where(possible > 0, local_similarity / np.where(possible > 0, possible, 1), 0.0)


def fused_scores(
    config: RerankConfig, cosines: Float64[np.ndarray, " all"], local: Float64[np.ndarray, " K"]
) -> Float32[np.ndarray, " K"]:
    """Score the pool.

    Args:
        config: mode and weights.
        cosines: S_g of all candidates, largest first; the pool is the first K.
        local: each comparison's `local_score`.

    Returns:
        Mode `count`: the number of matches. `paper`: gamma S_g + S_l. `adaptive`: S_g - mu + w S'_l, which is near 0 for a photo
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
