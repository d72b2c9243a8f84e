"""Which wall does each column of a photo see?

A column of a photo looks along one line over the plan of the town, so the walls that it meets, nearest first, and how high each
reaches, decide all that the column shows above the ground. `render` asks for them here, layer by layer: the nearest wall of every
column, then what looks over it, and so on.

Letters: S walls that may be in view, W columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.catalog.sample_city.camera import CameraConfig, Pose
from pipelines.catalog.sample_city.town import Town

NEAREST_M: Final = 0.05
FARTHEST_M: Final = 320.0
_SEAM: Final = 1e-5  # walls that share a corner overlap by this part of their length, so that no column slips between them


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """For some columns of a photo, one wall each. All arrays have one entry a column."""

    columns: NDArray[np.intp]
    facade_id: NDArray[np.intp]
    depth_m: NDArray[np.float32]
    along: NDArray[np.float32]
    """Where the wall is met, from 0 at its start to 1 at its end."""
    column_m: NDArray[np.float32]
    """Metres of wall that the column covers from left to right."""
    hidden_slope: NDArray[np.float32]
    """Row slope up to which nearer walls hide this one; minus infinity where there is none."""


class Walls:
    """All walls of a town, ready to be looked at."""

    def __init__(self, town: Town) -> None:
        self.starts_m = np.array([facade.start_m for facade in town.facades], np.float64)
        self.ends_m = np.array([facade.end_m for facade in town.facades], np.float64)
        along = self.ends_m - self.starts_m
        self.widths_m = np.hypot(along[:, 0], along[:, 1])
        self.normals = np.stack([along[:, 1], -along[:, 0]], axis=1) / self.widths_m[:, None]
        self.heights_m = np.array([facade.style.height_m for facade in town.facades], np.float32)
        self._solid_m = np.array([facade.style.wall_height_m for facade in town.facades], np.float32)

    def layers(self, pose: Pose, camera: CameraConfig) -> Iterator[Layer]:
        """What the photo shows of walls, the nearest first. Walls hidden behind nearer ones do not appear.

        Args:
            pose: where the photo is taken.
            camera: the lens.
        """
        walls = self._in_view(pose, camera)
        if not len(walls):
            return
        depth, along, column_m = self._meet(walls, pose, camera)
        top = (self.heights_m[walls, None] - pose.height_m) / depth
        solid = (self._solid_m[walls, None] - pose.height_m) / depth
        skyline = np.full(camera.width_px, -np.inf, np.float32)  # slope up to which nearer walls hide everything
        everywhere = np.arange(camera.width_px)
        while True:
            nearest = depth.argmin(axis=0)
            columns = np.flatnonzero(np.isfinite(depth[nearest, everywhere]))
            if not len(columns):
                return
            chosen = nearest[columns]
            yield Layer(
                columns=columns,
                facade_id=walls[chosen],
                depth_m=depth[chosen, columns],
                along=along[chosen, columns],
                column_m=column_m[chosen, columns],
                hidden_slope=skyline[columns],
            )
            skyline[columns] = np.maximum(skyline[columns], solid[chosen, columns])
            depth[chosen, columns] = np.inf
            depth[top <= skyline] = np.inf

    def _in_view(self, pose: Pose, camera: CameraConfig) -> NDArray[np.intp]:
        """Walls that face the camera and are not wholly beside, behind or far from it, (S,)."""
        reach = camera.width_px / 2 / camera.focal_px
        right_a, forward_a = pose.seen_from(self.starts_m)
        right_b, forward_b = pose.seen_from(self.ends_m)
        to_camera = np.array([pose.x_m, pose.y_m]) - self.starts_m
        facing = (to_camera * self.normals).sum(axis=1) > 0
        ahead = np.maximum(forward_a, forward_b) > NEAREST_M
        left_of_view = (right_a < -reach * forward_a) & (right_b < -reach * forward_b)
        right_of_view = (right_a > reach * forward_a) & (right_b > reach * forward_b)
        near = np.minimum(forward_a, forward_b) < FARTHEST_M
        return np.flatnonzero(facing & ahead & near & ~left_of_view & ~right_of_view)

    def _meet(
        self, walls: NDArray[np.intp], pose: Pose, camera: CameraConfig
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Depth (infinite where the column misses the wall), place along the wall and metres a column, each (S, W)."""
        slope = camera.column_slopes()[None, :]
        right_a, forward_a = (part[:, None] for part in pose.seen_from(self.starts_m[walls]))
        right_b, forward_b = (part[:, None] for part in pose.seen_from(self.ends_m[walls]))
        right, forward = right_b - right_a, forward_b - forward_a
        across = right - slope * forward
        with np.errstate(divide="ignore", invalid="ignore"):  # a column may run along a wall; it then misses it
            along = (slope * forward_a - right_a) / across
            depth = forward_a + along * forward
            column_m = np.abs(forward_a * right - right_a * forward) / across**2 * self.widths_m[walls, None] / camera.focal_px
            missed = ~((along >= -_SEAM) & (along <= 1 + _SEAM) & (depth > NEAREST_M))
        depth[missed] = np.inf
        return depth.astype(np.float32), along.clip(0, 1).astype(np.float32), column_m.astype(np.float32)
