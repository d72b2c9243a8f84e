"""A photo becomes the tensor the network takes: scale to 0..1, normalise, then resize to a square.

The order and the filter are those of FoL's evaluation: normalise first, bilinear, the shape of the photo not kept. Used by
`inference` and by training.
"""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

MEAN: Final = (0.485, 0.456, 0.406)
"""Of ImageNet's red, green and blue, for values from 0 to 1."""

STD: Final = (0.229, 0.224, 0.225)
"""Likewise the standard deviations."""


def normalised(photo: UInt8[np.ndarray, "H W c"], *, first: int = 0) -> Float32[Tensor, "c H W"]:
    """Scale a photo to 0..1, subtract the mean, divide by the standard deviation of each colour.

    Args:
        photo: its colours, of red, green and blue, from one on.
        first: that one, from 0.

    Returns:
        The colours of a pixel beside each other in memory, as in the photo: PyTorch would make a copy to resize it otherwise.
    """
    height, width, count = photo.shape
    mean, std = (np.tile(np.array(each[first : first + count], np.float32), width) for each in (MEAN, STD))
    pixels = np.divide(photo.reshape(height, width * count), np.float32(255), dtype=np.float32)
    pixels -= mean  # whole rows: NumPy takes three times as long for three numbers at a time
    pixels /= std
    return torch.from_numpy(pixels).view(height, width, count).permute(2, 0, 1)


def prepare(photo: UInt8[np.ndarray, "H W 3"], size_px: int, *, antialias: bool) -> Float32[Tensor, "3 S S"]:
    """Make the network's input from a photo.

    Args:
        photo: RGB, any shape.
        size_px: side S of the result.
        antialias: smooth while shrinking.
    """
    if not antialias:  # one colour at a time this would be rounded otherwise in the last bit
        return _resized(normalised(photo), size_px, antialias=False).contiguous()
    # A photo of 64 megapixels would take 768 MB as floats. The bits are the same.
    colours = range(photo.shape[2])
    return torch.cat(
        [_resized(normalised(photo[:, :, colour : colour + 1], first=colour), size_px, antialias=True) for colour in colours]
    )


def _resized(pixels: Float32[Tensor, "C H W"], size_px: int, *, antialias: bool) -> Float32[Tensor, "C S S"]:
    size = (size_px, size_px)
    return functional.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False, antialias=antialias)[0]
