"""Parked cars, drawn in perspective from a dozen polygons. Used by `render`.

Car coordinates in metres: x forwards, y to the left, z up, from the middle of the car on the ground.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.catalog.sample_city.camera import CameraConfig, Pose
from pipelines.catalog.sample_city.facades import Rgb
from pipelines.catalog.sample_city.occluders import Car

Corners = NDArray[np.float64]
"""One row a corner, counter-clockwise as seen from outside."""

_WIDTH_M: Final = 1.78
_CLOSEST_M: Final = 0.6
_OVERSAMPLING: Final = 2
_SHADOW: Final[Rgb] = (14, 14, 16)
_GLASS: Final[Rgb] = (44, 52, 60)
_TYRE: Final[Rgb] = (30, 30, 32)
_HEADLAMP: Final[Rgb] = (240, 238, 220)
_TAIL_LAMP: Final[Rgb] = (190, 30, 28)
_PLATE: Final[Rgb] = (226, 224, 210)


def draw_car(car: Car, pose: Pose, camera: CameraConfig) -> tuple[Image.Image, int, int] | None:
    """Draw a car as the camera sees it, with a transparent background and the shadow under it.

    Args:
        car: which.
        pose: where the photo is taken.
        camera: the lens.

    Returns:
        The picture, its colours multiplied by its opacity, and the column and row of its upper left corner in the photo; None
        if the photo does not show the car or a part of it is beside or behind the camera.
    """
    mesh = _mesh(car.length_m, car.height_m)
    pixels = _project(mesh, car, pose, camera)
    if pixels is None:
        return None
    left, top = np.maximum(np.floor(pixels.min(axis=0)).astype(int), 0).tolist()
    right, bottom = np.minimum(np.ceil(pixels.max(axis=0)).astype(int), (camera.width_px, camera.height_px)).tolist()
    if right <= left or bottom <= top:
        return None
    image = Image.new("RGBA", ((right - left) * _OVERSAMPLING, (bottom - top) * _OVERSAMPLING))
    draw = ImageDraw.Draw(image)
    spots = (pixels - (left, top)) * _OVERSAMPLING
    for polygon, corners in zip(mesh.polygons, np.split(spots, mesh.starts[1:]), strict=True):
        if _faces_camera(corners):
            draw.polygon(corners.ravel().tolist(), fill=_paint(polygon, car.rgb))
    return image.convert("RGBa").reduce(_OVERSAMPLING), left, top


def _project(mesh: "_Mesh", car: Car, pose: Pose, camera: CameraConfig) -> Corners | None:
    """Column and row of each corner in the photo, (corners, 2); None if one is not well in front of the camera."""
    heading = np.deg2rad(car.heading_deg)
    sin, cos = np.sin(heading), np.cos(heading)
    x, y, z = mesh.corners.T
    places = np.stack([car.x_m + sin * x - cos * y, car.y_m + cos * x + sin * y], axis=1)
    right, forward = pose.seen_from(places)
    if forward.min() < _CLOSEST_M:
        return None
    column = camera.width_px / 2 + camera.focal_px * right / forward
    row = camera.horizon_px - camera.focal_px * (z - pose.height_m) / forward
    return np.stack([column, row], axis=1)


def _faces_camera(corners: Corners) -> bool:
    """Whether corners, (n, 2), run counter-clockwise in the photo, whose rows count downwards."""
    (x0, y0), (x1, y1), (x2, y2) = corners[:3].tolist()
    return bool((x1 - x0) * (y2 - y1) - (y1 - y0) * (x2 - x1) < 0)


def _paint(polygon: "_Polygon", car_rgb: Rgb) -> tuple[int, int, int, int]:
    light = 1.0 if np.ptp(polygon.corners[:, 2]) < 0.02 else 0.8  # what lies flat mirrors the sky
    red, green, blue = (int(value * light) for value in polygon.rgb or car_rgb)
    return red, green, blue, polygon.alpha


# ------------------------------------------------------------------------------------------------------------ shape


@dataclass(frozen=True, slots=True)
class _Polygon:
    """One flat part of a car."""

    corners: Corners
    rgb: Rgb | None
    """None: the paint of the car."""
    alpha: int = 255


@dataclass(frozen=True, slots=True)
class _Mesh:
    """A car, from what lies lowest to what lies on top; a later polygon hides an earlier one."""

    corners: Corners
    """(corners, 3) of all polygons."""
    starts: tuple[int, ...]
    """Where each polygon's corners start."""
    polygons: tuple[_Polygon, ...]


@lru_cache(maxsize=16)
def _mesh(length_m: float, height_m: float) -> _Mesh:
    polygons = tuple(_polygons(length_m / 2, height_m))
    counts = [len(polygon.corners) for polygon in polygons]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return _Mesh(np.concatenate([polygon.corners for polygon in polygons]), tuple(starts.tolist()), polygons)


def _polygons(half_l: float, height_m: float) -> Iterator[_Polygon]:
    half_w, belt, van = _WIDTH_M / 2, 0.58 * height_m, height_m > 1.8
    yield _Polygon(_flat(-half_l - 0.15, half_l + 0.15, half_w + 0.15, 0.01), _SHADOW, 150)
    for side in _sides(half_l, half_l, half_w, half_w, 0.22, belt, lean_m=0.0):
        yield _Polygon(side, None)
    yield from _details(half_l, half_w, belt)
    yield _Polygon(_flat(-half_l, half_l, half_w, belt), None)
    rear, front, lean = (0.98, 0.7, 0.15) if van else (0.86, 0.4, 0.5)
    for side in _sides(rear * half_l, front * half_l, half_w - 0.04, half_w - 0.18, belt, height_m, lean_m=lean):
        yield _Polygon(side, None)
        yield _Polygon(side.mean(axis=0) + (side - side.mean(axis=0)) * 0.82, _GLASS)
    yield _Polygon(_flat(-rear * half_l + lean * 0.6, front * half_l - lean, half_w - 0.18, height_m), None)


def _flat(back: float, front: float, half_w: float, z: float) -> Corners:
    return np.array([(back, -half_w, z), (front, -half_w, z), (front, half_w, z), (back, half_w, z)])


def _sides(
    back: float, front: float, half_low: float, half_high: float, low: float, high: float, *, lean_m: float
) -> Iterator[Corners]:
    """Right, front, left and rear of a box that narrows upwards."""
    b0, f0, b1, f1 = -back, front, -back + lean_m * 0.6, front - lean_m
    yield np.array([(b0, -half_low, low), (f0, -half_low, low), (f1, -half_high, high), (b1, -half_high, high)])
    yield np.array([(f0, -half_low, low), (f0, half_low, low), (f1, half_high, high), (f1, -half_high, high)])
    yield np.array([(f0, half_low, low), (b0, half_low, low), (b1, half_high, high), (f1, half_high, high)])
    yield np.array([(b0, half_low, low), (b0, -half_low, low), (b1, -half_high, high), (b1, half_high, high)])


def _details(half_l: float, half_w: float, belt: float) -> Iterator[_Polygon]:
    """Wheels, lamps and number plates, a little outside the body."""
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    for wheel_x in (-0.62 * half_l, 0.62 * half_l):
        for side in (-1, 1):
            y = np.full_like(turn, side * (half_w + 0.01))
            ring = np.stack([wheel_x + 0.32 * np.cos(turn), y, 0.32 + 0.32 * np.sin(turn)], axis=1)
            yield _Polygon(ring if side < 0 else ring[::-1], _TYRE)
    for end, lamp in ((1, _HEADLAMP), (-1, _TAIL_LAMP)):
        x = end * (half_l + 0.01)
        for left in (-half_w + 0.1, half_w - 0.5):
            yield _Polygon(_upright(x, left, left + 0.4, belt - 0.28, belt - 0.1, end), lamp)
        yield _Polygon(_upright(x, -0.26, 0.26, 0.38, 0.5, end), _PLATE)


def _upright(x: float, y0: float, y1: float, z0: float, z1: float, end: int) -> Corners:
    corners = np.array([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)])
    return corners if end > 0 else corners[::-1]
