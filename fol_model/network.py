"""The whole FoL network for inference: images in, global descriptors and packed local features out.

`inference` wraps it for pipelines; `weights.from_reference` makes one from a checkpoint. Source: chenshunpeng/FoL@e930a76,
evaluation branch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from fol_model.aggregation import Aggregator
from fol_model.backbone import Backbone
from fol_model.config import Recipe
from fol_model.local_decoder import LocalDecoder, most_confident, pack, patch_of_row


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """What the network says of a batch of images. In each list, one tensor an image."""

    descriptors: Float[Tensor, "N D"]
    """Global descriptors of unit length."""

    patch_mask: Bool[Tensor, "N g g"]
    """The patches whose local features are kept."""

    local_features: list[Float[Tensor, "_ 128"]]
    """L2-normalised, in raster order of the decoder's map, without padding."""

    patches: list[Int[Tensor, "_ 2"]]
    """Row and column of the patch each local feature lies in."""

    reliability: list[Float[Tensor, " _"]]
    """Of that patch, 0 to 1. In mode `fol`, which has no branch that learns it: the patch's mass outside the dustbin over
    the 90th percentile of its image, at most 1 (section 10.2)."""


class FoL(nn.Module):
    """Backbone, aggregator and local decoder."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.backbone = Backbone(recipe.backbone)
        self.aggregator = Aggregator(recipe)
        self.decoder = LocalDecoder(recipe)

    @torch.no_grad()
    def extract(self, images: Float32[Tensor, "N 3 S S"]) -> Extraction:
        """Describe images, without gradients.

        Args:
            images: normalised as `preprocessing.prepare` does; square, of any size that is a multiple of the patch and gives
                enough patches, not only the recipe's own.

        Raises:
            ValueError: the size does not suit the recipe.
        """
        g = self.recipe.grid_side_at(images.shape[-1])
        features = self.backbone(images)
        aggregation = self.aggregator(features)
        mask = most_confident(aggregation.confidence, self.recipe.kept_patches(g * g)).view(-1, g, g)
        reliability = aggregation.reliability.view(-1, g, g)
        rows = patch_of_row(g, self.recipe.local_stride).to(images.device)
        packed = [pack(dense, kept, rows) for dense, kept in zip(self.decoder(features.patches), mask, strict=True)]
        return Extraction(
            descriptors=aggregation.descriptors,
            patch_mask=mask,
            local_features=[one.features for one in packed],
            patches=[one.patch for one in packed],
            reliability=[r[one.patch[:, 0], one.patch[:, 1]] for r, one in zip(reliability, packed, strict=True)],
        )
