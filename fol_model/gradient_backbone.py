"""A backbone without a transformer: histograms of gradients at several scales as patch features, their layout as class token.

It has no weights. The heads of the network learn what to make of it; started from k-means and principal components
(`training.start`) they compute a dense VLAD before the first step. Used by `network` for recipes with a `GradientConfig`.

Letters as in `backbone`.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fol_model.backbone import BackboneFeatures
from fol_model.config import GradientConfig
from fol_model.gradients import directions, grey, layout, patch_histograms

HALF_SEEN: Final = 0.05
"""Length of a histogram at which a patch has half its strength."""


class GradientBackbone(nn.Module):
    """Images to patch features, layout and strength."""

    def __init__(self, config: GradientConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList()  # nothing here learns
        self.norm = nn.Identity()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 S S"]) -> BackboneFeatures:
        """Describe every patch, in float32 whatever the precision of the rest."""
        with torch.autocast(images.device.type, enabled=False):
            return self._described(images.float())

    def _described(self, images: Float[Tensor, "B 3 S S"]) -> BackboneFeatures:
        image = grey(images)
        g = image.shape[-1] // self.config.patch
        levels = sorted({shrink for _, shrink in self.config.scales})
        seen_at = {shrink: directions(functional.avg_pool2d(image, shrink)) for shrink in levels}
        scales = [patch_histograms(seen_at[shrink], grid_side=g, cell=cell) for cell, shrink in self.config.scales]
        length = torch.stack([one.length for one in scales]).mean(dim=0).flatten(1)
        histograms = [one.features for one in scales]
        return BackboneFeatures(
            patches=torch.cat(histograms, dim=1),
            token=layout(seen_at[levels[-1]]),
            attention=torch.zeros_like(length),
            taps=(histograms[0], histograms[len(histograms) // 2], histograms[-1]),
            strength=length / (length + HALF_SEEN),
        )
