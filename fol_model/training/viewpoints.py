"""Another standpoint, as far as one photo can show it: a part of the photo, a little rolled and tilted, made square.

Coordinates are in pixels, x to the right and y down, and pixel 0 reaches from 0 to 1. Used by `augment`.

Letters: W, H the photo's sides, S the view's, n views.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image
from torch.nn import functional

from fol_model.training.config import AugmentConfig

Homography = Float64[np.ndarray, "3 3"]

_UNIT_CORNERS = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])


def random_homography(width: int, height: int, size_px: int, rng: np.random.Generator, config: AugmentConfig) -> Homography:
    """Draw a view that looks nowhere past the photo's edges.

    Returns:
        Where each point of a photo of `width` x `height` lies in a square view of `size_px`.
    """
    corners = _within_photo(_random_corners(width / height, rng, config), rng)
    return homography_between(corners * (width, height), _UNIT_CORNERS * size_px)


def homography_between(source: Float64[np.ndarray, "4 2"], target: Float64[np.ndarray, "4 2"]) -> Homography:
    """Solve for the homography that takes four points to four others; no three of them may be on one line."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def moved(homography: Homography, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
    """Apply a homography to points."""
    x, y, w = homography @ np.column_stack([points, np.ones(len(points))]).T
    return np.column_stack([x / w, y / w])


def warped(
    photo: UInt8[np.ndarray, "H W 3"], homographies: Sequence[Homography], size_px: int
) -> list[UInt8[np.ndarray, "S S 3"]]:
    """Look at a photo through homographies. It is first shrunk by whole factors, as far as the closest look allows."""
    spans = np.array([np.ptp(moved(np.linalg.inv(one), _UNIT_CORNERS * size_px), axis=0) for one in homographies])  # (n, 2)
    across, down = np.maximum(1, spans.min(axis=0) // size_px).astype(int).tolist()
    small = np.array(Image.fromarray(photo).reduce((across, down)))
    pixels = torch.from_numpy(small).permute(2, 0, 1).unsqueeze(0).float()
    reduced = np.array([small.shape[1], small.shape[0]]) * (across, down)  # the last row and column may reach past the photo
    to_unit = np.diag([2 / reduced[0], 2 / reduced[1], 1.0])
    to_unit[:2, 2] = -1  # grid_sample's coordinates: -1 to 1 from edge to edge
    middle = np.arange(size_px, dtype=np.float32) + np.float32(0.5)
    views = []
    for homography in homographies:
        back = (to_unit @ np.linalg.inv(homography)).astype(np.float32)
        x, y, w = (row[0] * middle[None, :] + (row[1] * middle[:, None] + row[2]) for row in back)  # each (S, S)
        grid = torch.from_numpy(np.stack([x / w, y / w], axis=-1)).unsqueeze(0)
        seen = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
        views.append(seen.add_(0.5).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    return views


def _random_corners(aspect: float, rng: np.random.Generator, config: AugmentConfig) -> Float64[np.ndarray, "4 2"]:
    """Draw the corners of the part that is seen, around 0, in shares of the photo's width and height."""
    size = np.clip(rng.uniform(config.crop_min, 1) * np.exp(rng.uniform(-0.1, 0.1, 2)), config.crop_min, 1)
    tilt = rng.uniform(-1, 1, (4, 2)) * config.perspective * rng.uniform()
    corners = (_UNIT_CORNERS - 0.5 + tilt) * size
    roll = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    x, y = (corners * (aspect, 1)).T  # a roll keeps angles only where both axes have one unit
    rolled = np.column_stack([np.cos(roll) * x - np.sin(roll) * y, np.sin(roll) * x + np.cos(roll) * y])
    return np.asarray(rolled / (aspect, 1))


def _within_photo(corners: Float64[np.ndarray, "4 2"], rng: np.random.Generator) -> Float64[np.ndarray, "4 2"]:
    """Move the corners somewhere inside 0..1, and closer together if they do not fit."""
    corners = corners / max(1.0, np.ptp(corners, axis=0).max())
    low, high = corners.min(axis=0), corners.max(axis=0)
    return np.asarray(corners - low + rng.uniform(0, 1, 2) * (1 - (high - low)))
