"""The sum that training makes smaller, with each of its terms and how much it had to go by.

Used by `training.learner`. Source: FoL eq. 9; for FoL++ section 10.3 of the specification.

Letters: B photos, N = g x g patches, C channels of a patch, D channels of a local feature, n local features of a photo at most,
p pairs of photos.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fol_model.local_decoder import pack, patch_of_row
from fol_model.network import Sight
from fol_model.training.config import LossWeights
from fol_model.training.losses.correspondences import (
    CorrespondenceRules,
    Correspondences,
    correspondence_loss,
    patch_features,
    pseudo_correspondences,
)
from fol_model.training.losses.local import local_loss
from fol_model.training.losses.metric import batch_hard_triplets, mine_pairs, multi_similarity, photos_of_a_place
from fol_model.training.losses.regions import alignment, contrast, matchable, reliability_loss, scaled


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What a batch taught: the terms as they are, before their weights, and their weighted sum."""

    global_: Float[Tensor, ""]
    """L_MS, of the global descriptors."""

    local: Float[Tensor, ""]
    """L_MNN, of mutual nearest neighbours."""

    separation: Float[Tensor, ""]
    """L_CE (FoL) or L_SCE (FoL++)."""

    alignment: Float[Tensor, ""]
    """L_SA, to be weighted with alpha."""

    correspondence: Float[Tensor, ""]
    """L_PC, to be weighted with beta."""

    reliability: Float[Tensor, ""]
    """Cross-entropy of R with the patches whose reliability is known; zero in mode `fol`, which learns none."""

    total: Float[Tensor, ""]
    """The weighted sum."""

    pseudo_correspondences: int
    """Pairs of patches that L_PC learnt from. Always none: it teaches nothing."""

    mined_pairs: int
    """Pairs of photos that L_MS learnt from, positive and negative. None: the batch is too easy, or of one place."""

    triplets: int
    """Triplets of photos that L_MNN learnt from."""

    def terms(self) -> dict[str, Float[Tensor, ""]]:
        """The terms by the names their weights have."""
        names = ("global_", "local", "separation", "alignment", "correspondence", "reliability")
        return {name: getattr(self, name) for name in names}


def total_loss(
    sight: Sight,
    places: Int[Tensor, " B"],
    weights: LossWeights,
    known_reliability: Float[Tensor, "B g g"] | None = None,
    *,
    mode: Literal["fol", "folpp"],
    self_supervised: bool = False,
) -> Losses:
    """Add up all terms for a batch, in float32 whatever the network computed in.

    Args:
        sight: what the network saw, in a grid of any size and with a local map of any stride.
        places: whose photo each is.
        weights: of the terms. One whose weight is 0 is not computed and comes out as 0.
        known_reliability: 1 for patches that other views show, 0 for those they do not, NaN where unknown. None: all unknown.
        mode: which maps are compared. `fol`: M_a and attention; `folpp`: M_a and R.
        self_supervised: where reliability is unknown, teach it the network's own guess, `regions.matchable`.

    Raises:
        ValueError: reliability is to be learnt in mode `fol`, which has no branch for it.
    """
    if mode == "fol" and weights.reliability:
        raise ValueError(
            f"the loss's weight `reliability` must be 0 in mode fol, which has no branch to learn it, got {weights.reliability}. "
            "Set it to 0, or train a recipe of mode folpp"
        )
    with torch.autocast(sight.descriptors.device.type, enabled=False):
        sight = _in_float32(sight)
        other_map, M = _maps(sight, mode)
        nothing = M.new_zeros(())
        mined = mine_pairs(sight.descriptors, places)
        triplets = batch_hard_triplets(sight.descriptors, places)
        positives = photos_of_a_place(places)
        found = pseudo_correspondences(sight.patches.flatten(2), sight.plan[:, :-1], M, positives, CorrespondenceRules())
        known = _known(sight, known_reliability, triplets if self_supervised else None)
        formulas: dict[str, Callable[[], Tensor]] = {
            "global_": lambda: multi_similarity(sight.descriptors, places, mined),
            "local": lambda: local_loss(_features_under_mask(sight), triplets),
            "separation": lambda: contrast(sight.patches.flatten(2), M, positives),
            "alignment": lambda: alignment(sight.mass, other_map),
            "correspondence": lambda: _drawn_together(sight, found),
            "reliability": lambda: reliability_loss(sight.reliability, known) if mode == "folpp" else nothing,
        }
        terms = {name: formula() if getattr(weights, name) else nothing for name, formula in formulas.items()}
        return Losses(
            **terms,
            total=torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum(),
            pseudo_correspondences=len(found.photo),
            mined_pairs=mined.number,
            triplets=len(triplets),
        )


def _in_float32(sight: Sight) -> Sight:
    """Leave bfloat16 before sums over thousands and thresholds on cosines."""
    return replace(
        sight,
        patches=sight.patches.float(),
        attention=sight.attention.float(),
        descriptors=sight.descriptors.float(),
        plan=sight.plan.float(),
        reliability=sight.reliability.float(),
        salience=sight.salience.float(),
        mask_score=sight.mask_score.float(),
        local=sight.local.float(),
    )


def _maps(sight: Sight, mode: Literal["fol", "folpp"]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Give the map that M_a is aligned with, and M: the mean of both, scaled to 0..1."""
    if mode == "fol":  # M_e is the attention; `mask_score` is what inference goes by, which leaves it out
        return sight.attention, (sight.salience + scaled(sight.attention)) / 2
    return sight.reliability, sight.mask_score


def _features_under_mask(sight: Sight) -> Float[Tensor, "B n D"]:
    """Collect what matching would compare; zeros fill up the photos that have fewer."""
    g = sight.mask.shape[-1]
    rows = patch_of_row(g, _local_stride(sight)).to(sight.local.device)
    packed = [pack(dense, mask, rows).features for dense, mask in zip(sight.local, sight.mask, strict=True)]
    most = max(len(features) for features in packed)
    # Not `pad_sequence`: going back, it would fill a tensor of the whole batch for each photo.
    return torch.stack([functional.pad(features, (0, 0, 0, most - len(features))) for features in packed])


def _local_stride(sight: Sight) -> int:
    return 4 * (sight.mask.shape[-1] - 1) // (sight.local.shape[-1] - 1)


def _drawn_together(sight: Sight, found: Correspondences) -> Float[Tensor, ""]:
    local = patch_features(functional.normalize(sight.local, dim=1), sight.mask.shape[-1])
    anchor, positive = local[found.photo, :, found.anchor], local[found.other, :, found.positive]
    return correspondence_loss(anchor, positive, found.similarity)


def _known(
    sight: Sight, known_reliability: Float[Tensor, "B g g"] | None, guess_for: Int[Tensor, "t 3"] | None
) -> Float[Tensor, "B N"]:
    """Lay the guess, where asked for, under what is known."""
    unknown = torch.full_like(sight.reliability, torch.nan)
    known = unknown if known_reliability is None else known_reliability.flatten(1).to(unknown)
    if guess_for is None:
        return known
    return torch.where(known.isnan(), matchable(sight.patches.flatten(2), guess_for), known)
