"""The global descriptors' loss, and which photos of a batch are compared.

Used by `total`. Miners and loss are those of pytorch-metric-learning, with the released code's settings.

Letters: B photos, D numbers in a descriptor, t triplets, p pairs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import BatchHardMiner, MultiSimilarityMiner
from torch import Tensor


class MinedPairs(NamedTuple):
    """Pairs of photos worth learning from: (anchor, positive) and (other_anchor, negative). In the miner's own order."""

    anchor: Int[Tensor, " positives"]
    positive: Int[Tensor, " positives"]
    other_anchor: Int[Tensor, " negatives"]
    negative: Int[Tensor, " negatives"]

    @property
    def number(self) -> int:
        """Of pairs of both kinds."""
        return len(self.anchor) + len(self.negative)


def mine_pairs(descriptors: Float[Tensor, "B D"], places: Int[Tensor, " B"]) -> MinedPairs:
    """Take the positives less similar than the nearest negative, and the negatives nearer than the farthest positive.

    Both with 0.1 to spare. A batch of one place, or with one photo of each, has none.
    """
    return MinedPairs(*MultiSimilarityMiner(epsilon=0.1)(descriptors, places))


def multi_similarity(descriptors: Float[Tensor, "B D"], places: Int[Tensor, " B"], pairs: MinedPairs) -> Float[Tensor, ""]:
    """L_MS: pull mined positives together and push mined negatives apart, the harder the more; mean over the photos.

    Args:
        descriptors: of unit length.
        places: whose photo each is.
        pairs: from `mine_pairs`. Without any the loss is zero.

    Source: Wang et al. 2019 (multi-similarity loss), with alpha 1, beta 50, base 0 on dot products, as the released code.
    """
    loss: Tensor = MultiSimilarityLoss(alpha=1, beta=50, base=0, distance=DotProductSimilarity())(descriptors, places, pairs)
    return loss


def batch_hard_triplets(descriptors: Float[Tensor, "B D"], places: Int[Tensor, " B"]) -> Int[Tensor, "t 3"]:
    """Name each photo's farthest positive and nearest negative.

    Returns:
        Rows of (anchor, positive, negative). A photo that is alone of its place, or whose batch is of one place, has no row.

    Source: Hermans et al. 2017; L2 distance, as the released code.
    """
    return torch.stack(BatchHardMiner()(descriptors, places), dim=1)


def photos_of_a_place(places: Int[Tensor, " B"]) -> Int[Tensor, "p 2"]:
    """List every ordered pair of different photos of the same place."""
    same = places[:, None] == places
    return torch.nonzero(same.fill_diagonal_(False))
