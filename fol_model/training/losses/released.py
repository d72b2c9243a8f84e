"""The released code's forms of the terms that we define otherwise, to check our reading of it. Nothing is trained with them.

Used by tests. Source: chenshunpeng/FoL@e930a76, loss.py, described in section 7 of the specification with why we left it.

Letters: B photos, N patches, C channels, c correspondences.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


class Alignment(NamedTuple):
    """The two halves of the released alignment loss; each enters with a weight of 5e-3."""

    confidence: Float[Tensor, ""]
    """Trains the confidence; the attention stands still."""

    attention: Float[Tensor, ""]
    """Trains the attention; the confidence stands still."""


def clipped(values: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Overwrite the three largest values by the one at rank 0.05 N, so that they fall below those between."""
    order = values.argsort(dim=1, descending=True)
    rank = int(0.05 * values.shape[1])
    return values.scatter(1, order[:, :3], values.gather(1, order[:, rank, None]).expand(-1, 3))


def alignment(confidence: Float[Tensor, "B N"], attention: Float[Tensor, "B N"]) -> Alignment:
    """Compare the softmax over the patches of both clipped maps.

    On raw maps, whose values are small, the softmax is flat to a thousandth and nothing is learnt: hence our form.
    """
    C, A = (functional.log_softmax(clipped(values), dim=1) for values in (confidence, attention))
    return Alignment(
        confidence=functional.kl_div(C, A.detach(), log_target=True, reduction="batchmean"),
        attention=functional.kl_div(A, C.detach(), log_target=True, reduction="batchmean"),
    )


def contrast(features: Float[Tensor, "B C N"], M: Float[Tensor, "B N"], partner: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Draw both the foregrounds and the backgrounds of a place together: 0.7 (1 - cos(fg, fg')) + 0.3 (1 - cos(bg, bg')).

    Args:
        features: local features of one pixel a number of M.
        M: of any scale.
        partner: for each photo another one of its place (the released code draws it at random).
    """
    F = features.detach()
    fg, bg = torch.einsum("bn,bcn->bc", M, F), torch.einsum("bn,bcn->bc", 1 - M, F)
    same_fg, same_bg = (functional.cosine_similarity(one, one[partner], dim=1) for one in (fg, bg))
    return (0.7 * (1 - same_fg) + 0.3 * (1 - same_bg)).mean()


def correspondence_loss(
    anchor: Float[Tensor, "c D"], positive: Float[Tensor, "c D"], similarity: Float[Tensor, " c"], *, pairs: int
) -> Float[Tensor, ""]:
    """Weight 1 - cos with the similarity itself, and give 1e-2 of the sum over the number of pairs in the batch."""
    return 1e-2 * (similarity * (1 - functional.cosine_similarity(anchor, positive, dim=1))).sum() / pairs
