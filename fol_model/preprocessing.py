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


def normalised(photo: UInt8[np.ndarray, "H W 3"]) -> Float32[Tensor, "3 H W"]:
    """Scale an RGB photo to 0..1, subtract the mean, divide by the standard deviation of each colour."""
    pixels = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1))).float().div_(255)
    return pixels.sub_(_per_colour(MEAN)).div_(_per_colour(STD))


def prepare(photo: UInt8[np.ndarray, "H W 3"], size_px: int, *, antialias: bool) -> Float32[Tensor, "3 S S"]:
    """Make the network's input from a photo.

    Args:
        photo: RGB, any shape.
        size_px: side S of the result.
        antialias: smooth while shrinking.
    """
    if not antialias:  # one colour at a time this would be rounded otherwise in the last bit
        return _resized(normalised(photo), size_px, antialias=False)
    # A photo of 64 megapixels would take 768 MB as floats, and as much again on the way. The bits are the same.
    return torch.cat([_resized(_normalised_plane(photo, colour), size_px, antialias=True) for colour in range(3)])


def _normalised_plane(photo: UInt8[np.ndarray, "H W 3"], colour: int) -> Float32[Tensor, "1 H W"]:
    """Do `normalised` for one colour: to the bit, in three passes over memory in place of five."""
    pixels = np.divide(photo[None, :, :, colour], np.float32(255), dtype=np.float32)
    pixels -= np.float32(MEAN[colour])
    pixels /= np.float32(STD[colour])
    return torch.from_numpy(pixels)


def _resized(pixels: Float32[Tensor, "C H W"], size_px: int, *, antialias: bool) -> Float32[Tensor, "C S S"]:
    size = (size_px, size_px)
    return functional.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False, antialias=antialias)[0]


def _per_colour(values: tuple[float, float, float]) -> Float32[Tensor, "3 1 1"]:
    return torch.tensor(values).view(3, 1, 1)
