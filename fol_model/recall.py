"""Recall@k: the share of queries with a true answer among their first k. Used by training validation and by `folio evaluate`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64


def recall_at(hits: Bool[np.ndarray, "queries ranks"], ks: Sequence[int]) -> Float64[np.ndarray, " ks"]:
    """Compute recall at each k.

    Args:
        hits: whether the answer at each rank is a true one, best rank first. A query that has no true answer in the map is a
            row of False: it stays in the denominator, as in FoL. Fewer ranks than k: the missing ones are no hits.
        ks: how many answers count, each at least 1.

    Returns:
        Shares from 0 to 1, in the order of `ks`.

    Raises:
        ValueError: there are no queries, or a k is below 1.
    """
    if not len(hits):
        raise ValueError("recall over no queries is undefined")
    if min(ks, default=1) < 1:
        raise ValueError(f"k must be at least 1, got {min(ks)}")
    return np.array([hits[:, :k].any(axis=1).mean() for k in ks], dtype=np.float64)
