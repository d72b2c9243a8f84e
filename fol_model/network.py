"""The whole FoL or FoL++ network: images in; global descriptors, masks and local features out.

`inference` wraps it for pipelines, `training` learns its weights, `weights.from_reference` makes one from a checkpoint. Sources:
chenshunpeng/FoL@e930a76, evaluation branch; for FoL++ section 10 of the specification.
"""

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from fol_model.aggregation import Aggregator, guide_of
from fol_model.backbone import Backbone, BackboneFeatures
from fol_model.config import GradientConfig, Recipe
from fol_model.gradient_backbone import GradientBackbone
from fol_model.local_decoder import LocalDecoder, most_confident, pack, patch_of_row
from fol_model.reliability import ReliabilityBranch
from fol_model.vlad import VladAggregator


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """What the network says of a batch of images. In each list, one tensor an image."""

    descriptors: Float[Tensor, "N D"]
    """Global descriptors of unit length."""

    patch_mask: Bool[Tensor, "N g g"]
    """The patches whose local features are kept."""

    local_features: list[Float[Tensor, "_ d"]]
    """L2-normalised, in raster order of the decoder's map, without padding."""

    patches: list[Int[Tensor, "_ 2"]]
    """Row and column of the patch each local feature lies in."""

    reliability: list[Float[Tensor, " _"]]
    """Of that patch, 0 to 1: R of the branch in mode `folpp`, the salience A in mode `fol` (section 10.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """Everything the network computes of a batch, with gradients where parameters ask for them. Training learns from it."""

    patches: Float[Tensor, "B C g g"]
    """F: patch tokens after the last LayerNorm."""

    attention: Float[Tensor, "B N"]
    """Of the class token in the last block, summed over heads."""

    descriptors: Float[Tensor, "B D"]
    """Global descriptors of unit length."""

    plan: Float[Tensor, "B rows N"]
    """Each patch's shares in the clusters and, in the last row, in the dustbin."""

    reliability: Float[Tensor, "B N"]
    """Mode `folpp`: R, what the branch learnt. Mode `fol`: A, the salience."""

    salience: Float[Tensor, "B N"]
    """A = min(1, M_a / perc90(M_a)), M_a the mass outside the dustbin."""

    mask_score: Float[Tensor, "B N"]
    """What patches are chosen by. `fol`: their mean share in the clusters. `folpp`: M = (A + R) / 2 (section 10.2)."""

    mask: Bool[Tensor, "B g g"]
    """The chosen patches."""

    local: Float[Tensor, "B D_local h h"]
    """The decoder's map, not normalised, of every `local_stride`-th row and column."""

    @property
    def confidence(self) -> Float[Tensor, "B N"]:
        """Mean share of a patch in the clusters."""
        return self.plan[:, :-1].mean(dim=1)

    @property
    def mass(self) -> Float[Tensor, "B N"]:
        """M_a: what each patch does not give to the dustbin."""
        return 1 - self.plan[:, -1]


class FoL(nn.Module):
    """Backbone, aggregator and local decoder; in mode `folpp` also the reliability branch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        config = recipe.backbone
        self.backbone = GradientBackbone(config) if isinstance(config, GradientConfig) else Backbone(config)
        self.aggregator = VladAggregator(recipe) if recipe.aggregation == "vlad" else Aggregator(recipe)
        self.decoder = LocalDecoder(recipe)
        self.reb = ReliabilityBranch(config.tap_dim) if recipe.mode == "folpp" else None
        self.backbone_dtype = torch.float32
        """What `extract` computes the backbone in; everything after it is in float32."""

    def forward(self, images: Float32[Tensor, "B 3 S S"]) -> Sight:
        """Look at images.

        Args:
            images: normalised as `preprocessing.prepare` does; square, of any size that is a multiple of the patch and gives
                enough patches, not only the recipe's own.

        Raises:
            ValueError: the size does not suit the recipe.
        """
        return self._seen(self.backbone(images), self.recipe.grid_side_at(images.shape[-1]))

    def _seen(self, features: BackboneFeatures, g: int) -> Sight:
        learnt = None if self.reb is None else self.reb(features.taps).flatten(1)
        by_attention = learnt is None or self.recipe.dustbin == "attention"
        guide = guide_of(features.attention, self.recipe.attention_floor) if by_attention else learnt
        aggregation = self.aggregator(features, guide)
        score = aggregation.confidence if learnt is None else (aggregation.salience + learnt) / 2
        return Sight(
            patches=features.patches,
            attention=features.attention,
            descriptors=aggregation.descriptors,
            plan=aggregation.plan,
            reliability=aggregation.salience if learnt is None else learnt,
            salience=aggregation.salience,
            mask_score=score,
            mask=self._chosen(score, g),
            local=self.decoder(features.patches),
        )

    def _chosen(self, score: Float[Tensor, "B N"], g: int) -> Bool[Tensor, "B g g"]:
        """Mark the patches whose local features are kept."""
        step = self.recipe.local_patch_step
        eligible = torch.zeros(g, g, dtype=torch.bool, device=score.device)
        eligible[::step, ::step] = True
        return most_confident(score.masked_fill(~eligible.flatten(), -inf), self.recipe.kept_patches(g * g)).view(-1, g, g)

    @torch.no_grad()
    def extract(self, images: Float32[Tensor, "N 3 S S"]) -> Extraction:
        """Describe images for a map, without gradients; otherwise as `forward`."""
        g = self.recipe.grid_side_at(images.shape[-1])
        with torch.autocast(images.device.type, self.backbone_dtype, enabled=self.backbone_dtype != torch.float32):
            features = self.backbone(images)
        sight = self._seen(features.as_float32(), g)
        reliability = sight.reliability.view(-1, g, g)
        rows = patch_of_row(g, self.recipe.local_stride).to(images.device)
        packed = [pack(dense, kept, rows) for dense, kept in zip(sight.local, sight.mask, strict=True)]
        return Extraction(
            descriptors=sight.descriptors,
            patch_mask=sight.mask,
            local_features=[one.features for one in packed],
            patches=[one.patch for one in packed],
            reliability=[r[one.patch[:, 0], one.patch[:, 1]] for r, one in zip(reliability, packed, strict=True)],
        )
