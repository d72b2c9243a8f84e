"""Where a photo of the sample city is taken from, and through which lens.

Used by everyone who draws: `walls`, `ground`, `sky`, `figures`, `cars`. The camera is a level pinhole. Letters: R metres to the
right of the camera, F metres in front of it; a pixel's *column slope* is R/F and its *row slope* is height above the camera / F.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """Where the camera is, in metres of the town, and where it looks."""

    x_m: float
    """East of the town's south-west corner."""
    y_m: float
    """North of the town's south-west corner."""
    height_m: float
    """Above the ground."""
    heading_deg: float
    """Clockwise from north."""

    def seen_from(self, points_m: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Metres to the right of and in front of the camera, for points (..., 2) of the town."""
        heading = np.deg2rad(self.heading_deg)
        east, north = points_m[..., 0] - self.x_m, points_m[..., 1] - self.y_m
        right = east * np.cos(heading) - north * np.sin(heading)
        forward = east * np.sin(heading) + north * np.cos(heading)
        return right, forward


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig:
    """A level pinhole camera."""

    width_px: int = 480
    height_px: int = 360
    fov_deg: float = 80.0
    """Horizontal field of view."""
    horizon: float = 0.56
    """Where the horizon lies, from 0 at the top edge to 1 at the bottom edge."""

    def __post_init__(self) -> None:
        if self.width_px < 1 or self.height_px < 1:
            raise ValueError(f"a photo needs at least one pixel, got {self.width_px} x {self.height_px}")
        if not 0 < self.fov_deg < 170:
            raise ValueError(f"fov_deg must be between 0 and 170, got {self.fov_deg}")
        if not 0 < self.horizon < 1:
            raise ValueError(f"horizon must be between 0 and 1, got {self.horizon}")

    @property
    def focal_px(self) -> float:
        """Pixels that one metre covers at one metre."""
        return self.width_px / 2 / float(np.tan(np.deg2rad(self.fov_deg) / 2))

    @property
    def horizon_px(self) -> float:
        """Rows above the horizon."""
        return self.horizon * self.height_px

    def column_slopes(self) -> NDArray[np.float32]:
        """R/F at the middle of each column, (W,)."""
        columns = np.arange(self.width_px) + 0.5 - self.width_px / 2
        return (columns / self.focal_px).astype(np.float32)

    def row_slopes(self) -> NDArray[np.float32]:
        """Height above the camera / F at the middle of each row, (H,); falls from top to bottom."""
        return ((self.horizon_px - np.arange(self.height_px) - 0.5) / self.focal_px).astype(np.float32)
