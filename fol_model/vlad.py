"""Aggregation for networks that learn from little: patches become residuals to cluster centres, summed (VLAD, Jegou et al. 2010).

Optimal transport gives every cluster the same mass, which takes training to be of use. Here each patch shares itself out by how
near the centres are, and gives the more away the more there is to see in it and the more reliable it is; the rest goes to the
dustbin, as in `aggregation`. Started from k-means and principal components (`training.start`) it is a good descriptor before
the first step. Used by `network`.

Letters: B images, C channels, N patches, m clusters, K channels of a cluster.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fol_model.aggregation import Aggregation, patch_mlp
from fol_model.backbone import BackboneFeatures
from fol_model.config import Recipe


class VladAggregator(nn.Module):
    """Sum residuals of the patches in clusters; next to them the layout of the image."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        C, hidden = recipe.backbone.embed_dim, recipe.hidden
        self.token_features = nn.Sequential(
            nn.Linear(recipe.backbone.token_dim, 2 * recipe.token_dim),
            nn.ReLU(),
            nn.Linear(2 * recipe.token_dim, recipe.token_dim),
        )
        # No dropout: the hidden units start as opposite pairs, and half a pair is no weaker signal but another one.
        self.cluster_features = patch_mlp(C, hidden, recipe.cluster_dim, dropout=0.0)
        self.score = patch_mlp(C, hidden, recipe.clusters, dropout=0.0)
        self.centres = nn.Parameter(torch.zeros(recipe.clusters, recipe.cluster_dim))
        self.token_weight = nn.Parameter(torch.ones(1))

    def forward(self, features: BackboneFeatures, guide: Float[Tensor, "B N"]) -> Aggregation:
        """Make the descriptors; otherwise as `aggregation.Aggregator.forward`."""
        plan = self.shares(features, guide)
        return Aggregation(descriptors=self.pooled(features, plan), plan=plan)

    def shares(self, features: BackboneFeatures, guide: Float[Tensor, "B N"]) -> Float[Tensor, "B rows N"]:
        """Share each patch out among the clusters and, last row, the dustbin; what it gives adds up to one.

        A patch of strength w and reliability R gives w e^R / (w e^R + e) to the clusters: the dustbin's score is 1 - R, as in
        `aggregation`.
        """
        nearness = functional.log_softmax(self.score(features.patches).flatten(2).float(), dim=1)
        if features.strength is not None:
            nearness = nearness + features.strength.clamp(min=1e-6).log().unsqueeze(1)
        return torch.cat([nearness, (1 - guide).unsqueeze(1)], dim=1).softmax(dim=1)

    def pooled(self, features: BackboneFeatures, plan: Float[Tensor, "B rows N"]) -> Float[Tensor, "B D"]:
        """Sum the residuals by cluster; each cluster and then the whole is of unit length. The layout comes first."""
        shares = plan[:, :-1]
        sums = shares @ self.cluster_features(features.patches).flatten(2).transpose(1, 2).float()  # (B, m, K)
        residuals = functional.normalize(sums - shares.sum(dim=2, keepdim=True) * self.centres, dim=2)
        clusters = functional.normalize(residuals.flatten(1), dim=1)
        token = functional.normalize(self.token_features(features.token), dim=1)
        return functional.normalize(torch.cat([self.token_weight * token, clusters], dim=1), dim=1)
