"""The sky above the sample city: a gradient, clouds and, low down, hills. Used by `render`.

Letters: N pixels, W columns.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.catalog.sample_city.camera import CameraConfig, Pose
from pipelines.catalog.sample_city.conditions import Conditions
from pipelines.catalog.sample_city.noise import smooth_noise

Array = NDArray[np.float32]

_TILE: Final = 256
_CLOUDS_PER_TILE: Final = (5, 11, 23, 47)


class Sky:
    """Clouds and hills, the same at every place and, the clouds moved by the wind, on every visit."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self._clouds = smooth_noise(_TILE, _CLOUDS_PER_TILE, rng)
        self._hill_phases = rng.uniform(0, 2 * np.pi, 4)

    def colours(
        self, row: NDArray[np.int32], column: NDArray[np.int32], pose: Pose, camera: CameraConfig, conditions: Conditions
    ) -> Array:
        """Paint some pixels of a photo, none below the horizon.

        Args:
            row: (N,).
            column: (N,).
            pose: where the camera looks.
            camera: the lens.
            conditions: the weather.

        Returns:
            Red, green, blue, where 1 is white, (3, N).
        """
        slope_x = camera.column_slopes()
        azimuth = np.arctan(slope_x) + np.float32(np.deg2rad(pose.heading_deg))  # (W,)
        level = 1 / np.sqrt(1 + slope_x * slope_x)
        up = camera.row_slopes()[row] * level[column]  # tangent of the elevation
        cover = self._cover(np.sin(azimuth)[column], np.cos(azimuth)[column], up, conditions)
        hill = self._hills(azimuth)[column] > up
        height = np.sqrt(np.clip(up * np.float32(1.3), 0, 1))
        sky = np.empty((3, len(row)), np.float32)
        for channel in range(3):
            horizon, top = conditions.sky_horizon[channel], conditions.sky_top[channel]
            plane = np.float32(horizon) + height * np.float32(top - horizon)
            plane += cover * (np.float32(min(1.0, 0.35 * horizon + 0.85 * conditions.ambient[channel])) - plane)
            plane[hill] = 0.75 * horizon
            sky[channel] = plane
        return sky

    def _cover(self, east: Array, north: Array, up: Array, conditions: Conditions) -> Array:
        """How much of each pixel is cloud; clouds hang on a plane, so they shrink towards the horizon."""
        distance = np.float32(14) / (np.maximum(up, 0) + np.float32(0.12))
        wind = np.float32(conditions.sun_azimuth_deg)
        column = (distance * east + wind).astype(np.int32) & (_TILE - 1)
        row = (distance * north + wind).astype(np.int32) & (_TILE - 1)
        thickness = self._clouds.take(row * _TILE + column) + np.float32(4 * conditions.cloud_cover - 2)
        cover: Array = np.clip(thickness * np.float32(0.5), 0, np.float32(0.9))
        return cover

    def _hills(self, azimuth: Array) -> Array:
        """Tangent of the skyline's elevation."""
        phases = self._hill_phases
        waves = sum(np.sin(azimuth * (2 * index + 1) + phase) / (index + 1) for index, phase in enumerate(phases))
        return np.asarray(0.035 + 0.012 * waves, np.float32)
