"""Losses on where the network looks: agreement of its two maps, contrast of what they keep, and what teaches reliability.

Used by `total`. A map has one number a patch.

Letters: B photos, N patches, C channels, M_a what a patch does not give to the dustbin, M_e class attention (FoL), R reliability
(FoL++), M the map that patches are chosen by, t triplets, p pairs.
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fol_model.training.losses.local import nearest, portions

PERCENTILE: Final = 0.9
"""The paper cuts off the top tenth of a map."""

LEAST: Final = 1e-6
"""Added to each patch's number before logarithms, so that zeros do not end in infinity. Maps of attention average 0.01."""


def winsorised(values: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """w(x) = min(x, perc90(x)) of each photo: the top tenth are cut down to the smallest of them, and get no gradient.

    Source: FoL eq. 2, whose text cuts the top 10 % though its symbol reads perc_10.
    """
    return torch.minimum(values, _percentile(values))


def scaled(values: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Bring a map to 0..1: min(1, x / perc90(x)) of each photo. A map of zeros stays one."""
    return (values / _percentile(values).clamp(min=torch.finfo(values.dtype).tiny)).clamp(max=1)


def _percentile(values: Float[Tensor, "B N"]) -> Float[Tensor, "B 1"]:
    return torch.quantile(values.detach(), PERCENTILE, dim=1, keepdim=True)


def alignment(aggregated: Float[Tensor, "B N"], extracted: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
    """L_SA = KL(sg(a) || r) + KL(sg(r) || a), mean over the photos: each map learns from the other, which stands still.

    Args:
        aggregated: M_a, from which a = w(M_a) / sum.
        extracted: R (FoL++) or M_e (FoL), from which r = w(R) / sum. Neither may be negative.

    Source: FoL eq. 1, misprinted there (section 10.3 of the specification). The released code has softmax instead of the sum: see
        `released.alignment`.
    """
    a, r = _distribution(winsorised(aggregated)), _distribution(winsorised(extracted))
    return (_divergence(a.detach(), r) + _divergence(r.detach(), a)).mean()


def _distribution(values: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    return (values + LEAST) / (values + LEAST).sum(dim=1, keepdim=True)


def _divergence(p: Float[Tensor, "B N"], q: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
    return (p * (p.log() - q.log())).sum(dim=1)


def contrast(patches: Float[Tensor, "B C N"], M: Float[Tensor, "B N"], pairs: Int[Tensor, "p 2"]) -> Float[Tensor, ""]:
    """L_CE and L_SCE: what M keeps should look like what it keeps of the same place, and unlike what it drops here.

    max(0, 1 - (f_fg . f_fg' - f_fg . f_bg)), where f_fg and f_bg are the sums of F weighted by M and by 1 - M, at unit length.
    The mean over all pairs: the papers take one positive, we every other photo of the place, which needs no dice.

    Args:
        patches: F. Nothing is learnt through it: the loss moves M only.
        M: from 0 to 1. (M_e + M_a) / 2 makes it FoL's CEL, (A + R) / 2 FoL++'s SCEL.
        pairs: rows of (photo, another photo of the place). Without any the loss is zero.

    Source: FoL eq. 3-5. Not the released code, whose background term draws backgrounds together: see `released.contrast`.
    """
    F = patches.detach()
    kept = functional.normalize(torch.einsum("bn,bcn->bc", M, F), dim=1)
    dropped = functional.normalize(torch.einsum("bn,bcn->bc", 1 - M, F), dim=1)
    photo, positive = pairs.T
    margin = (kept[photo] * kept[positive]).sum(dim=1) - (kept[photo] * dropped[photo]).sum(dim=1)
    return functional.relu(1 - margin).sum() / max(1, len(pairs))


def reliability_loss(R: Float[Tensor, "B N"], known: Float[Tensor, "B N"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of the reliability with what is known of it; the mean over the patches that are known.

    Args:
        R: from 0 to 1.
        known: 1 for a patch that other views of the place show, 0 for one they do not (it is occluded, or out of their sight),
            NaN where nobody knows. Nothing known: the loss is zero.
    """
    told = ~known.isnan()
    loss = functional.binary_cross_entropy(R[told], known[told], reduction="sum")
    return loss / told.sum().clamp(min=1)


@torch.no_grad()
def matchable(patches: Float[Tensor, "B C N"], triplets: Int[Tensor, "t 3"]) -> Float[Tensor, "B N"]:
    """Guess from the features themselves which patches can be found again: a target for `reliability_loss`.

    1 for a patch that has a mutual nearest neighbour in the positive, more similar than any patch of the negative; else 0. NaN
    for photos that are no triplet's anchor.

    Args:
        patches: F, not normalised.
        triplets: rows of (anchor, positive, negative), each photo an anchor once at most.

    Source: section 10.3 of the specification (ours); off by default.
    """
    F = functional.normalize(patches, dim=1).transpose(1, 2)  # (B, N, C)
    target = F.new_full(F.shape[:2], torch.nan)
    for anchor, positive, negative in (part.T for part in portions(triplets, F.shape[1] ** 2)):
        there, elsewhere = nearest(F[anchor], F[positive]), nearest(F[anchor], F[negative])
        target[anchor] = (there.mutual & (there.cosine > elsewhere.cosine)).to(F.dtype)
    return target
