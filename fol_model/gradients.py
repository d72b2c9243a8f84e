"""Dense histograms of gradients: what hand-made descriptors see, as the stem of a small network that was trained on little.

Around each patch, at several scales, 4 x 4 cells hold a histogram over eight directions of the gradient, as in SIFT (Lowe 2004),
normalised as in RootSIFT (Arandjelovic and Zisserman 2012); one more grid of cells covers the whole image and keeps its layout,
as HOG does (Dalal and Triggs 2005). Nothing here is learnt. Used by `gradient_backbone`.

Letters: B images, S their side, g patches along a side, p pixels of a level of the image pyramid.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fol_model.preprocessing import MEAN, STD

BINS: Final = 8
"""Directions of a histogram."""

CELLS: Final = 4
"""Cells of a patch's surroundings along each side."""

SIFT_DIM: Final = BINS * CELLS * CELLS
"""Numbers of one patch at one scale."""

LAYOUT_CELLS: Final = 8
"""Cells of the whole image along each side."""

LAYOUT_DIM: Final = BINS * LAYOUT_CELLS * LAYOUT_CELLS
"""Numbers of the layout of an image."""

_LUMA: Final = (0.299, 0.587, 0.114)
_CLIP: Final = 0.2
"""Largest part of a histogram's length that one direction of one cell may have, so that one strong edge does not decide."""

_FAINT: Final = 0.02
"""Added to the length of a histogram before dividing by it, so that noise is not blown up. Grey goes from 0 to 1."""


def grey(images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 1 S S"]:
    """Undo `preprocessing.normalised` and take the luma, 0 to 1."""
    weights = images.new_tensor([luma * std for luma, std in zip(_LUMA, STD, strict=True)])
    offset = sum(luma * mean for luma, mean in zip(_LUMA, MEAN, strict=True))
    return (images * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True) + offset


def directions(image: Float[Tensor, "B 1 p p"]) -> Float[Tensor, "B 8 p p"]:
    """Share each pixel's gradient out among the nearest of eight directions, after a light blur.

    A direction's part falls from the gradient's strength to nothing at 45 degrees: strength (cos(angle) - cos 45) / (1 - cos 45).
    """
    padded = functional.pad(image, (2, 2, 2, 2), mode="replicate")
    rows = padded[..., :-2] / 4 + padded[..., 1:-1] / 2 + padded[..., 2:] / 4
    smooth = rows[:, :, :-2] / 4 + rows[:, :, 1:-1] / 2 + rows[:, :, 2:] / 4  # one pixel wider than the image on each side
    along_x = (smooth[:, :, 1:-1, 2:] - smooth[:, :, 1:-1, :-2]) / 2
    along_y = (smooth[:, :, 2:, 1:-1] - smooth[:, :, :-2, 1:-1]) / 2
    strength = (along_x.square() + along_y.square()).sqrt()
    angles = torch.arange(BINS, device=image.device) * (2 * pi / BINS)
    x, y = angles.cos().view(1, BINS, 1, 1), angles.sin().view(1, BINS, 1, 1)
    edge = cos(pi / 4)
    return (along_x * x + along_y * y - edge * strength).clamp(min=0) / (1 - edge)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchHistograms:
    """What one scale sees around each patch."""

    features: Float[Tensor, "B 128 g g"]
    """Square roots of histograms that were normalised, clipped and divided by their sum: of unit length."""

    length: Float[Tensor, "B g g"]
    """Of the histograms before that: how much there is to see."""


def patch_histograms(of_direction: Float[Tensor, "B 8 p p"], *, grid_side: int, cell: int) -> PatchHistograms:
    """Describe the surroundings of every patch at one scale.

    Args:
        of_direction: from `directions`.
        grid_side: g.
        cell: side of a histogram cell in pixels.
    """
    B, _, p, _ = of_direction.shape
    pooling = _cell_weights(p, grid_side, cell, of_direction.device)  # (4 g, p)
    cells = (pooling @ of_direction @ pooling.T).view(B, BINS, CELLS, grid_side, CELLS, grid_side)
    raw = cells.permute(0, 2, 4, 1, 3, 5).reshape(B, SIFT_DIM, grid_side, grid_side)
    length = raw.norm(dim=1, keepdim=True)
    clipped = (raw / (length + _FAINT)).clamp(max=_CLIP)
    features = (clipped / (clipped.sum(dim=1, keepdim=True) + 1e-6)).sqrt()
    return PatchHistograms(features=features, length=length.squeeze(1))


def layout(of_direction: Float[Tensor, "B 8 p p"]) -> Float[Tensor, "B 512"]:
    """Describe the whole image on a coarse grid, each cell relative to the strength of its neighbourhood; unit length."""
    cells = functional.adaptive_avg_pool2d(of_direction, LAYOUT_CELLS)
    energy = functional.avg_pool2d(cells.square().sum(dim=1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
    relative = (cells / (energy.sqrt() + _FAINT / 4)).clamp(max=2 * _CLIP)
    return functional.normalize(relative.flatten(1), dim=1)


@lru_cache(maxsize=32)
def _cell_weights(pixels: int, grid_side: int, cell: int, device: torch.device) -> Float[Tensor, "rows p"]:
    """Weights of pixels in the cells along one side: triangles two cells wide, cell by cell, in each for all patches."""
    patch = pixels / grid_side
    centres = (torch.arange(grid_side) + 0.5) * patch - 0.5
    offsets = (torch.arange(CELLS) - (CELLS - 1) / 2) * cell
    middle = (centres + offsets[:, None]).flatten()
    weights = (1 - (torch.arange(pixels) - middle[:, None]).abs() / cell).clamp(min=0) / cell
    return weights.to(device)
