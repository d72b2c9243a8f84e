"""How many of a query's best global candidates are worth matching locally: one where the answer is clear, many where it is not.

Pure functions of the merged, sorted cosines, so the pool cannot depend on how a map was cut into shards. FoL++ adapts the pool
to the global scores (arXiv:2604.22390); these formulas are ours. Within a pool, `reranking.is_enough` may end matching sooner.

Letters: s_1 >= s_2 >= ... cosines of one query's candidates; mu, sigma mean and deviation of the lower half of the best K_max.
"""

from typing import Final

import numpy as np
from jaxtyping import Float64

from fol_model.config import PoolConfig

TIE = 1e-6
"""Cosines this close count as equal; also keeps divisions away from zero."""

STAGES: Final = (20, 40)
"""After so many candidates matching may be enough. A candidate that fewer are compared with leads too easily, and every stage is
another wait for the store."""


def background(cosines: Float64[np.ndarray, " K"], max_size: int) -> tuple[float, float]:
    """Estimate mu and sigma, the scores of candidates that show other places.

    Args:
        cosines: of the candidates, largest first; at least one.
        max_size: K_max; the lower half of this many is used, or of all if there are fewer.
    """
    considered = cosines[:max_size]
    tail = considered[len(considered) // 2 :]
    return float(tail.mean()), float(tail.std())


def pool_size(cosines: Float64[np.ndarray, " K"], config: PoolConfig) -> int:
    """Decide how many candidates to match locally.

    Args:
        cosines: of the candidates, largest first.
        config: the limits.

    Returns:
        0 for no candidates, else 1 to the number of candidates; the pool is the first that many of them.

    Raises:
        ValueError: the cosines are not sorted or not finite.
    """
    if not np.isfinite(cosines).all() or (np.diff(cosines) > 0).any():
        raise ValueError("cosines must be finite and sorted, the largest first")
    if config.fixed_size is not None:
        return min(config.fixed_size, len(cosines))
    considered = cosines[: config.max_size]
    if len(considered) < 2 or _is_sure(considered, config):
        return min(1, len(considered))
    within = int((considered >= _threshold(considered, config) - TIE).sum())
    return min(max(within, config.min_size), len(considered))


def stage_ends(size: int, *, stages: bool) -> list[int]:
    """List how many candidates of a pool are matched before it is asked whether they are enough; the last is all of it."""
    return [end for end in STAGES if stages and end < size] + [size]


def _is_sure(cosines: Float64[np.ndarray, " K"], config: PoolConfig) -> bool:
    """Say whether the first leads the second and stands out from the background."""
    mu, sigma = background(cosines, config.max_size)
    leads = cosines[0] - cosines[1] >= config.sure_gap
    return bool(leads and (cosines[0] - mu) / (sigma + TIE) >= config.sure_sigmas)


def _threshold(cosines: Float64[np.ndarray, " K"], config: PoolConfig) -> float:
    """Compute tau, the cosine a candidate needs."""
    mu, sigma = background(cosines, config.max_size)
    best = float(cosines[0])
    return min(best, max(best - config.delta, mu + config.sigmas * sigma))
