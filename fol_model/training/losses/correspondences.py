"""Pseudo-correspondences: patches of two photos of a place that are very likely the same thing, to teach local features by.

Used by `total`. Nobody marked which patches correspond, so they are guessed from clusters and features (FoL, Algorithm 1) and
the local features of each guessed pair are drawn together (eq. 6).

Letters: B photos, p pairs of them, m clusters, N = g x g patches, C channels of a patch, D channels of a local feature, h the
side of the local map, c correspondences.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fol_model.local_decoder import patch_of_row
from fol_model.training.losses.local import portions


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrespondenceRules:
    """When two patches are believed to show the same thing. The defaults are Algorithm 1's."""

    min_similarity: float = 0.8
    """thr1: their cosine must be above this. Higher: fewer, surer pairs."""

    max_ratio: float = 0.5
    """thr2: the second-best candidate's cosine over theirs must be below this. Lower: fewer, less ambiguous pairs."""

    most: int = 8
    """N: stop at this many in a pair of photos."""

    min_share: float = 0.1
    """A patch is a candidate if it gives the anchor's cluster more than this share. The released code's; the paper only says
    that it belongs there."""

    second_needed: bool = False
    """Drop an anchor without a second candidate, or whose second is not even positive. The released code does; to us nothing
    speaks against such a pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Correspondences:
    """Patches believed to show the same thing: pair by pair of photos, and there in the order they were tried."""

    photo: Int[Tensor, " c"]
    """The one photo."""

    anchor: Int[Tensor, " c"]
    """Patch of it."""

    other: Int[Tensor, " c"]
    """The other photo."""

    positive: Int[Tensor, " c"]
    """Patch of that."""

    similarity: Float[Tensor, " c"]
    """Cosine of the two patches' features F: how sure we are. Without gradient."""


@torch.no_grad()
def pseudo_correspondences(
    patches: Float[Tensor, "B C N"],
    plan: Float[Tensor, "B m N"],
    M: Float[Tensor, "B N"],
    pairs: Int[Tensor, "p 2"],
    rules: CorrespondenceRules,
) -> Correspondences:
    """Find the patches that correspond in pairs of photos.

    The candidates for a patch of the first photo are the patches of the second in its own main cluster. The best one is taken if
    it is similar enough and clearly better than the second.

    Args:
        patches: F, not necessarily normalised.
        plan: shares of the patches in the clusters, without the dustbin.
        M: the order in which a first photo's patches are tried, largest first and of equal ones the first; -inf: not at all.
        pairs: rows of (first, second) photo of the same place.
        rules: what is believed.

    Returns:
        Maybe none at all: count them, and tell.

    Source: FoL, Algorithm 1. The released code tries the patches with an attention above 0.1 in raster order, without the first
        of them, and takes five.
    """
    F, order = functional.normalize(patches, dim=1), M.sort(dim=1, descending=True, stable=True).indices
    found = [torch.empty(0, 4, dtype=torch.long, device=pairs.device)]
    similarities = [F.new_empty(0)]
    for part in portions(pairs, M.shape[1] ** 2):
        photo, other = part.T
        cosine = F[photo].transpose(1, 2) @ F[other]  # (pairs, N, N)
        shares = plan[other[:, None], plan[photo].argmax(dim=1)]  # of the second's patches in the cluster of each of the first's
        best, choice = cosine.masked_fill_(shares <= rules.min_share, -torch.inf).topk(2, dim=2)
        first, second = best.unbind(dim=2)
        sure = (first > rules.min_similarity) & (second < rules.max_ratio * first) & (M[photo] > -torch.inf)
        if rules.second_needed:
            sure &= second > 0
        tried = sure.gather(1, order[photo])  # in order
        pair, turn = (tried & (tried.cumsum(dim=1) <= rules.most)).nonzero(as_tuple=True)
        anchor = order[photo[pair], turn]
        found.append(torch.stack([photo[pair], anchor, other[pair], choice[pair, anchor, 0]], dim=1))
        similarities.append(first[pair, anchor])
    photo, anchor, other, positive = torch.cat(found).T
    return Correspondences(photo=photo, anchor=anchor, other=other, positive=positive, similarity=torch.cat(similarities))


def patch_centres(grid_side: int) -> Int[Tensor, " g"]:
    """Say on which row of the decoder's map, of side 4g - 3, each row of patches is centred (columns are alike).

    Both are taken to span the photo, as where masks are laid over the map (`patch_of_row`).
    """
    return ((torch.arange(grid_side) + 0.5) * (4 * grid_side - 3) / grid_side).round().long()


def patch_features(local: Float[Tensor, "B D h h"], grid_side: int) -> Float[Tensor, "B D N"]:
    """Average the decoder's map around each patch.

    Args:
        local: the map, L2-normalised; every pixel of it (h = 4g - 3) or every 2nd or 4th.
        grid_side: g.

    Returns:
        Not normalised. Of a whole map the mean of the 3 x 3 pixels around each patch's centre, as the released code. Of a map
        with stride 2 the mean of the one, two or four pixels in the patch; with stride 4 the patch's only one.
    """
    h = local.shape[-1]
    if h == 4 * grid_side - 3:
        weight = (torch.arange(h) - patch_centres(grid_side)[:, None]).abs() <= 1
    else:
        rows = patch_of_row(grid_side, stride=4 * (grid_side - 1) // (h - 1))
        weight = rows == torch.arange(grid_side)[:, None]
    mean = (weight / weight.sum(dim=1, keepdim=True)).to(local)  # (g, h)
    return (mean @ local @ mean.T).flatten(2)


def correspondence_loss(
    anchor: Float[Tensor, "c D"], positive: Float[Tensor, "c D"], similarity: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    """L_PC = sum exp(s) (1 - cos(D, D')) / sum exp(s): corresponding local features should be alike; sure pairs count more.

    Args:
        anchor: D, local features of the first photos, any length.
        positive: D' of the second.
        similarity: s, without gradient: it says how sure a pair is, and is nothing to learn.

    Returns:
        From 0 to 2; zero without correspondences.

    Source: FoL eq. 6. The released code weights with s and divides by the number of pairs of photos: see
        `released.correspondence_loss`.
    """
    weight = similarity.detach().exp()
    loss = (weight * (1 - functional.cosine_similarity(anchor, positive, dim=1))).sum()
    return loss / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
