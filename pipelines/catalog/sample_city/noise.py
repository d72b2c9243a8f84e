"""Smooth random patterns that repeat without a seam. Used by `ground` and `sky`."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def smooth_noise(size: int, octaves: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Make a square of noise with mean 0 and standard deviation 1.

    Args:
        size: pixels along one side.
        octaves: how many bumps fit along one side, coarse to fine; finer ones are weaker.
        rng: decides everything.

    Returns:
        (size, size); its edges fit each other.
    """
    total = np.zeros((size, size), np.float32)
    for cells in octaves:
        bumps = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
        picture = Image.fromarray(bumps).resize((size, size), Image.Resampling.BICUBIC, box=(2, 2, 2 + cells, 2 + cells))
        total += np.asarray(picture) / np.float32(cells**0.8)
    total -= total.mean()
    total /= total.std()
    return total
