"""Match the local features of two photos.

Two features match when each is the other's nearest neighbour and they are similar enough. The number of matches is the local
score that `reranking` sorts by (FoL, arXiv:2504.09881).

Letters: Q features of the query, C features of the candidate, D channels, p mutual pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Features that choose each other, in query order."""

    query: Int[Tensor, " p"]
    """Index of the query feature."""

    candidate: Int[Tensor, " p"]
    """Index of the candidate feature."""

    cosine: Float[Tensor, " p"]
    """Their cosine similarity."""

    def above(self, min_cosine: float) -> "Pairs":
        """Keep the pairs with a cosine strictly above `min_cosine`."""
        kept = self.cosine > min_cosine
        return Pairs(query=self.query[kept], candidate=self.candidate[kept], cosine=self.cosine[kept])

    def reference_count(self, min_cosine: float) -> int:
        """Count the pairs above `min_cosine` as FoL does: when only one pair chose each other, it is not counted.

        Call it on all mutual pairs, not on those that `above` kept.
        """
        return 0 if len(self.cosine) == 1 else int((self.cosine > min_cosine).sum())


def mutual_pairs(query: Float[Tensor, "Q D"], candidate: Float[Tensor, "C D"]) -> Pairs:
    """Pair the features that choose each other, however similar they are.

    Args:
        query: L2-normalised features of one photo; may be empty. Of equally near ones the first is chosen.
        candidate: the same for the other photo.
    """
    if not len(query) or not len(candidate):
        none = torch.empty(0, dtype=torch.long, device=query.device)
        return Pairs(query=none, candidate=none, cosine=query.new_empty(0))
    cosine = query @ candidate.T  # (Q, C)
    best, choice = cosine.max(dim=1)  # (Q,): each query feature's favourite
    chosen_back = cosine.argmax(dim=0)[choice] == torch.arange(len(query), device=query.device)
    kept = torch.nonzero(chosen_back).squeeze(1)
    return Pairs(query=kept, candidate=choice[kept], cosine=best[kept])


def mutual_nearest(
    query: Float[Tensor, "Q D"], candidate: Float[Tensor, "C D"], *, min_cosine: float = 0.7
) -> Int[Tensor, "matches 2"]:
    """Pair the features that choose each other and are similar enough.

    Args:
        query: L2-normalised features of one photo; may be empty.
        candidate: the same for the other photo.
        min_cosine: drop pairs at or below this cosine similarity, from -1 to 1.

    Returns:
        Rows of (query index, candidate index) in query order. No match is an answer: zero rows.

    Raises:
        ValueError: `min_cosine` is not between -1 and 1.

    Source: chenshunpeng/FoL@e930a76, test_FoL.py, `match_batch_tensor`; but a lone mutual pair counts as one here, where a
        `squeeze` there turns it into zero.
    """
    _require_cosine(min_cosine)
    pairs = mutual_pairs(query, candidate).above(min_cosine)
    return torch.stack([pairs.query, pairs.candidate], dim=1)


def count_mutual_matches(
    query: Float[Tensor, "Q D"] | Float[np.ndarray, "Q D"],
    candidate: Float[Tensor, "C D"] | Float[np.ndarray, "C D"],
    *,
    min_cosine: float = 0.7,
) -> int:
    """Count the mutual nearest neighbours of two photos: FoL's local score, including its quirk.

    Args:
        query: L2-normalised features of one photo, tensor or array; zero rows for padding do no harm.
        candidate: the same for the other photo.
        min_cosine: count pairs above this cosine similarity, from -1 to 1.

    Raises:
        ValueError: `min_cosine` is not between -1 and 1.

    Source: chenshunpeng/FoL@e930a76, test_FoL.py, `match_batch_tensor`. Where exactly one pair chose each other, whatever its
        cosine, the count is 0 there and here.
    """
    _require_cosine(min_cosine)
    return mutual_pairs(torch.as_tensor(query), torch.as_tensor(candidate)).reference_count(min_cosine)


def _require_cosine(min_cosine: float) -> None:
    if not -1 <= min_cosine <= 1:
        raise ValueError(f"min_cosine must be between -1 and 1, got {min_cosine}")
