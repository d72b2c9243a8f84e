"""Local features: patch tokens are up-sampled four times, and those under the mask of confident patches are kept.

Used by `network`. Source: chenshunpeng/FoL@e930a76. Two transposed convolutions take a g x g grid to 2g - 1 and then to
4g - 3, so that the centre of patch i lies on row 4i of the map.

Letters: B images, g patches along a side, N = g * g, C channels, H = 4g - 3, h the rows of the map that a stride keeps,
n features kept of one image.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fol_model.config import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFeatures:
    """The local features of one image, in raster order of the decoder's map."""

    features: Float[Tensor, "n D"]
    """L2-normalised."""

    patch: Int[Tensor, "n 2"]
    """Row and column of the patch each lies in."""


class LocalDecoder(nn.Module):
    """Patch tokens to a dense map of local features, not yet normalised."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        C, hidden = recipe.backbone.embed_dim, recipe.decoder_hidden
        self.stride = recipe.local_stride
        self.upconv = nn.ConvTranspose2d(C, hidden, kernel_size=3, stride=2, padding=1)
        self.upconv2 = nn.ConvTranspose2d(hidden, recipe.local_dim, kernel_size=3, stride=2, padding=1)

    def forward(self, patches: Float[Tensor, "B C g g"]) -> Float[Tensor, "B D h h"]:
        """Compute every `stride`-th row and column of the map."""
        middle = functional.relu(_upsampled(self.upconv, patches, even_only=self.stride == 4))
        return _upsampled(self.upconv2, middle, even_only=self.stride > 1)


def _upsampled(conv: nn.ConvTranspose2d, x: Float[Tensor, "B C g g"], *, even_only: bool) -> Float[Tensor, "B D h h"]:
    """Apply the convolution; `even_only` leaves out odd rows and columns of its result.

    An even pixel sees one input pixel only, through the middle of the 3 x 3 kernel, so this is a quarter of the outputs for a
    ninth of the work.
    """
    if not even_only:
        return cast(Tensor, conv(x))
    middle = conv.weight[:, :, 1, 1].T
    return functional.conv2d(x, middle[:, :, None, None], conv.bias)


def most_confident(confidence: Float[Tensor, "B N"], kept: int) -> Bool[Tensor, "B N"]:
    """Mark the `kept` most confident patches of each image; of equal ones those that come first.

    FoL first replaces the three largest values by a smaller one and takes a softmax; neither changes which patches these are.
    """
    order = torch.sort(confidence, dim=1, descending=True, stable=True).indices
    return torch.zeros_like(confidence, dtype=torch.bool).scatter_(1, order[:, :kept], True)


def patch_of_row(grid_side: int, stride: int) -> Int[Tensor, " h"]:
    """Say in which row of patches each kept row of the decoder's map lies (columns are alike)."""
    side = 4 * grid_side - 3
    rows = torch.arange(grid_side, dtype=torch.float32).view(1, 1, -1)
    # PyTorch's own nearest rule, as the reference: row * g // H in integers differs where float32 rounds below a whole number.
    return functional.interpolate(rows, size=side, mode="nearest").flatten().long()[::stride]


def pack(dense: Float[Tensor, "D h h"], mask: Bool[Tensor, "g g"], rows: Int[Tensor, " h"]) -> PackedFeatures:
    """Collect the local features of one image that lie under its patch mask.

    Args:
        dense: the decoder's map.
        mask: the patches to keep.
        rows: the patch of each row of the map, from `patch_of_row`.
    """
    under_mask = mask[rows][:, rows]
    row, column = torch.nonzero(under_mask, as_tuple=True)
    features = functional.normalize(dense[:, row, column].T, dim=1)
    return PackedFeatures(features=features, patch=torch.stack([rows[row], rows[column]], dim=1))
