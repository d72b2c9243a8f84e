"""Say how alike two photos are by their local features, and put a pool of candidates in order by it and their global cosine.

`inference.Reranker` calls this; the modes are those of `config.RerankConfig`. Sources: FoL (count), FoL++ (reliability-weighted
sum, paper), our design (bounded similarity, adaptive).

Letters: S_g global cosine, mu its background, S_l local similarity, S'_l the same in 0..1, R reliability, p mutual pairs, K pool
size.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from fol_model.config import RerankConfig
from fol_model.matching import Pairs, mutual_pairs
from fol_model.scheduling import background


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSide:
    """The local features of one photo, ready for matching."""

    features: Float32[Tensor, "n D"]
    """L2-normalised."""

    reliability: Float32[Tensor, " n"]
    """R, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the local features of two photos say of each other."""

    matches: int
    """FoL's count: mutual pairs above the least cosine, but 0 where only one pair chose each other."""

    local_score: float
    """By mode. `count`: the matches. `paper`: S_l. `adaptive`: S'_l."""

    pairs: Pairs
    """The pairs above the least cosine, in query order."""

    weights: Float32[Tensor, " p"]
    """What each of them adds to S_l."""


def compare(query: LocalSide, candidate: LocalSide, config: RerankConfig) -> Comparison:
    """Match two photos. Needs memory for all their cosines: 52 MB for 3600 features each."""
    mutual = mutual_pairs(query.features, candidate.features)
    matches = mutual.reference_count(config.min_cosine)
    pairs = mutual.above(config.min_cosine)
    weights = pair_weights(pairs, query.reliability, candidate.reliability, cosine_weight=config.cosine_weight)
    local_score = weights.double().sum().item()
    if config.mode == "count":
        local_score = float(matches)
    elif config.mode == "adaptive":
        local_score = bounded_similarity(local_score, query.reliability, candidate.reliability)
    return Comparison(matches=matches, local_score=local_score, pairs=pairs, weights=weights)


def pair_weights(
    pairs: Pairs,
    query_reliability: Float[Tensor, " Q"],
    candidate_reliability: Float[Tensor, " C"],
    *,
    cosine_weight: bool,
) -> Float[Tensor, " p"]:
    """Weigh each pair by sqrt(R_q R_c), times its cosine if asked. Their sum is S_l."""
    weights = (query_reliability[pairs.query] * candidate_reliability[pairs.candidate]).sqrt()
    return weights * pairs.cosine if cosine_weight else weights


def bounded_similarity(
    local_similarity: float, query_reliability: Float[Tensor, " Q"], candidate_reliability: Float[Tensor, " C"]
) -> float:
    """Scale S_l to S'_l in 0..1, so that it depends neither on the number of features nor on what a photo shows.

    S'_l = S_l / sqrt(sum R_q * sum R_c): at most 1 by Cauchy-Schwarz, as pairs are one to one. 0 where nothing is reliable.
    """
    possible = (query_reliability.double().sum() * candidate_reliability.double().sum()).sqrt().item()
    return local_similarity / possible if possible > 0 else 0.0


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


def best_first(scores: Float32[np.ndarray, " K"]) -> Int64[np.ndarray, " K"]:
    """Order a pool by falling score; of equal ones the globally better comes first."""
    order: Int64[np.ndarray, " K"] = np.argsort(-scores, kind="stable")
    return order
