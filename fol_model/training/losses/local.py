"""The local features' loss: photos of a place should have nearer mutual neighbours than photos of two places.

Used by `total`; `regions` shares `nearest`. Written for batches, unlike `fol_model.matching`, whose pairs of photos are matched
one by one: a training step compares hundreds.

Letters: p pairs of photos, Q and C features of the one and the other, n features of a photo at most, D channels, B photos,
t triplets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

COSINES_AT_ONCE: Final = 2**25
"""Cosines held in memory at a time: 128 MiB, and about as much again to find where they are largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest:
    """What the features of p photos find in p other photos."""

    choice: Int[Tensor, "p Q"]
    """The most similar feature of the other photo; of equal ones the first. Meaningless where `cosine` is -2."""

    cosine: Float[Tensor, "p Q"]
    """How similar it is. -2: this feature, or the whole other photo, is padding."""

    mutual: Bool[Tensor, "p Q"]
    """That feature's most similar one is this."""


@torch.no_grad()
def nearest(query: Float[Tensor, "p Q D"], candidate: Float[Tensor, "p C D"]) -> Nearest:
    """Find each feature's nearest neighbour in the other photo, and whether they choose each other.

    Args:
        query: L2-normalised features, at least one a photo; rows of zeros are padding and are chosen by none.
        candidate: the same for the other photos.
    """
    cosine = query @ candidate.transpose(1, 2)  # (p, Q, C)
    padding = ~query.any(dim=2)[:, :, None] | ~candidate.any(dim=2)[:, None]
    best, choice = cosine.masked_fill_(padding, -2).max(dim=2)
    chosen_back = cosine.argmax(dim=1).gather(1, choice) == torch.arange(query.shape[1], device=query.device)
    return Nearest(choice=choice, cosine=best, mutual=chosen_back & (best > -2))


def portions(pairs: Int[Tensor, "p k"], cosines_each: int) -> Iterator[Int[Tensor, "_ k"]]:
    """Split pairs (or triplets) of photos so that a portion's cosines fit in memory."""
    if len(pairs):
        yield from torch.split(pairs, max(1, COSINES_AT_ONCE // max(1, cosines_each)))


def mutual_similarity(
    query: Float[Tensor, "p Q D"], candidate: Float[Tensor, "p C D"], *, min_cosine: float = 0.7
) -> Float[Tensor, " p"]:
    """Average the cosine of the features that choose each other and are similar enough.

    Args:
        query: L2-normalised features, rows of zeros for padding; may be empty.
        candidate: the same for the other photos.
        min_cosine: leave out pairs at or below this cosine similarity.

    Returns:
        From -1 to 1. Where no pair is above `min_cosine`, the mean over all mutual pairs; where there is none at all, 0. So it is
        never NaN and there is always something to learn from.

    Source: SelaVPR (Lu et al. 2024); `min_cosine` is the released code's, which divides by zero where we fall back.
    """
    if not query.shape[1] or not candidate.shape[1]:
        return query.new_zeros(len(query))
    found = nearest(query, candidate)
    similar = found.mutual & (found.cosine > min_cosine)
    counted = torch.where(similar.any(dim=1, keepdim=True), similar, found.mutual)
    photo = torch.arange(len(query), device=query.device)[:, None]
    # Cosines of the chosen pairs only, once more: the whole matrix would have to be kept for the backward pass.
    cosine = (query * candidate[photo, found.choice]).sum(dim=2)
    return (cosine * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def local_loss(features: Float[Tensor, "B n D"], triplets: Int[Tensor, "t 3"]) -> Float[Tensor, ""]:
    """L_MNN: the sum over triplets of what the negative is more similar than the positive, if it is. No margin.

    Args:
        features: L2-normalised local features under each photo's mask, rows of zeros for padding.
        triplets: rows of (anchor, positive, negative), from `metric.batch_hard_triplets`.

    Source: SelaVPR (Lu et al. 2024) as the released code has it. It is a sum, so it grows with the batch.
    """
    photos = features.unbind()  # as indexing the batch would, going back, fill a tensor of all of it for each portion
    hinges = [features.new_zeros(())]
    for part in portions(triplets, features.shape[1] ** 2):
        anchor, positive, negative = (torch.stack([photos[i] for i in role]) for role in part.T.tolist())
        hinges.append(functional.relu(mutual_similarity(anchor, negative) - mutual_similarity(anchor, positive)).sum())
    return torch.stack(hinges).sum()
