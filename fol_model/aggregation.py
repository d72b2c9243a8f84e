"""Patch tokens and class token become one global descriptor, and each patch its share of it.

Used by `network`; its module names are those of FoL's checkpoints. Source: chenshunpeng/FoL@e930a76, after SALAD.

Letters: B images, C channels, N patches, m clusters.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fol_model.backbone import BackboneFeatures
from fol_model.config import Recipe
from fol_model.sinkhorn import transport_plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregation:
    """The global side of an image."""

    descriptors: Float[Tensor, "B D"]
    """Unit length: the class token's part first, then channel by channel the clusters."""

    plan: Float[Tensor, "B rows N"]
    """Each patch's shares in the m clusters and, in the last row, in the dustbin."""

    @property
    def confidence(self) -> Float[Tensor, "B N"]:
        """Mean share of a patch in the clusters; the patches with the most of it keep their local features."""
        return self.plan[:, :-1].mean(dim=1)

    @property
    def mass(self) -> Float[Tensor, "B N"]:
        """M_a: what each patch does not give to the dustbin, from 0 to 1."""
        return 1 - self.plan[:, -1]

    @property
    def salience(self) -> Float[Tensor, "B N"]:
        """A = min(1, M_a / perc90(M_a)): the winsorised mask, from 0 to 1 (section 10.2)."""
        return (self.mass / torch.quantile(self.mass, 0.9, dim=1, keepdim=True)).clamp(0, 1)


class Aggregator(nn.Module):
    """Sum features of the patches into clusters, by shares that optimal transport gives them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        C, hidden = recipe.backbone.embed_dim, recipe.hidden
        self.token_features = nn.Sequential(nn.Linear(C, hidden), nn.ReLU(), nn.Linear(hidden, recipe.token_dim))
        self.cluster_features = patch_mlp(C, hidden, recipe.cluster_dim)
        self.score = patch_mlp(C, hidden, recipe.clusters)

    def forward(self, features: BackboneFeatures, guide: Float[Tensor, "B N"]) -> Aggregation:
        """Make the descriptors.

        Args:
            features: of the backbone.
            guide: what keeps a patch out of the dustbin, from 0 to 1: G, the class attention, or R, the reliability.
        """
        plan = transport_plan(self.score(features.patches).flatten(2), 1 - guide)
        clusters = self.cluster_features(features.patches).flatten(2) @ plan[:, :-1].transpose(1, 2)  # (B, dim, m)
        clusters = functional.normalize(clusters, dim=1).flatten(1)
        token = functional.normalize(self.token_features(features.token), dim=1)
        descriptors = functional.normalize(torch.cat([token, clusters], dim=1), dim=1)
        return Aggregation(descriptors=descriptors, plan=plan)


def guide_of(attention: Float[Tensor, "B N"], floor: float) -> Float[Tensor, "B N"]:
    """G in the paper: the class attention, with what is below the floor set to zero."""
    return torch.where(attention < floor, 0.0, attention)


def patch_mlp(channels: int, hidden: int, out: int, *, dropout: float = 0.3) -> nn.Sequential:
    """Two 1 x 1 convolutions with a ReLU between them: the same small network for every patch."""
    layers = nn.Conv2d(channels, hidden, 1), nn.Dropout(dropout), nn.ReLU(), nn.Conv2d(hidden, out, 1)
    return nn.Sequential(*layers)
