"""Share out the patches of an image among clusters and a dustbin: optimal transport by Sinkhorn's iteration.

Each patch gives away a mass of one; each cluster takes one, the dustbin takes the rest. `aggregation` sums patches with these
shares, and what a patch does not give to the dustbin is how much it says about the place. Source: chenshunpeng/FoL@e930a76,
after SALAD (arXiv:2311.15937); here the dustbin has a score for every patch instead of one learned scalar.

Letters: B images, K clusters, N patches; u, v the dual variables of rows and columns.
"""

from math import log
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

ITERATIONS: Final = 3
"""As FoL. The last step is over the columns, so each patch's shares add up to exactly one."""


def transport_plan(scores: Float[Tensor, "B K N"], dustbin: Float[Tensor, "B N"]) -> Float[Tensor, "B K+1 N"]:
    """Share out patches among clusters.

    Args:
        scores: how well each patch suits each cluster, in log units.
        dustbin: how well each patch suits the dustbin.

    Returns:
        Shares from 0 to 1, the dustbin's in the last row; over each column they add up to one.

    Raises:
        ValueError: there are not more patches than clusters, so nothing would be left for the dustbin.
    """
    _, K, N = scores.shape
    if N <= K:
        raise ValueError(f"needs more patches than clusters, got {N} patches for {K} clusters")
    costs = torch.cat([scores, dustbin.unsqueeze(1)], dim=1)  # (B, K + 1, N)
    log_total = log(K + N)
    row_mass = costs.new_zeros(K + 1)
    row_mass[-1] = log(N - K)
    v = costs.new_zeros(len(costs), N)
    for _ in range(ITERATIONS):
        u = row_mass - log_total - torch.logsumexp(costs + v.unsqueeze(1), dim=2)
        v = -log_total - torch.logsumexp(costs + u.unsqueeze(2), dim=1)
    return (costs + u.unsqueeze(2) + v.unsqueeze(1) + log_total).exp()
