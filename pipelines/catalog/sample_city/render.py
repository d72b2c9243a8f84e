"""Photograph the sample city: a camera pose in; a picture, depth and facade numbers out.

`Renderer.render` is the door of this package for training and tests, `photos` writes whole visits with it. In order: walls,
ground and sky behind everything; light, shadow and haze; then cars, trees, lamps and people from far to near; then the sensor.

Letters: H rows and W columns of the photo.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.catalog.sample_city.camera import CameraConfig, Pose
from pipelines.catalog.sample_city.cars import draw_car
from pipelines.catalog.sample_city.conditions import Conditions
from pipelines.catalog.sample_city.facades import GLASS, LIT_GLASS
from pipelines.catalog.sample_city.figures import ASPECT, picture
from pipelines.catalog.sample_city.ground import Ground
from pipelines.catalog.sample_city.occluders import Car, StreetLife
from pipelines.catalog.sample_city.shadows import Shadows
from pipelines.catalog.sample_city.sky import Sky
from pipelines.catalog.sample_city.texels import TexelStore
from pipelines.catalog.sample_city.town import Figure, FigureKind, Town
from pipelines.catalog.sample_city.walls import Layer, Walls

NO_FACADE: Final = -1
"""Facade number of sky, ground, trees, lamps, cars and people."""

_FIGURE_REACH_M: Final = 90.0
_FIGURE_CLOSEST_M: Final = 1.2
_SHADOW_SOFTNESS_M: Final = 0.25
_LAMP_LIGHT: Final = (1.0, 0.80, 0.45)


@dataclass(frozen=True, slots=True)
class View:
    """One photo and what is known of it."""

    image: NDArray[np.uint8]
    """(H, W, 3), red, green, blue."""
    depth_m: NDArray[np.float32]
    """(H, W), distance along the optical axis; infinite in the sky."""
    facade_id: NDArray[np.int32]
    """(H, W), place in `Town.facades`, or `NO_FACADE`."""


class Renderer:
    """A camera in one town. Keeps painted facades and the last shadows, so one renderer for many photos is fast.

    Args:
        town: what to photograph.
        facade_texels: how much of the painted facades to keep, at 4 bytes a texel. The default, 320 MB at most, holds about a
            thousand, more than the default sample city shows.
    """

    def __init__(self, town: Town, *, facade_texels: int = 80_000_000) -> None:
        self._town = town
        self._walls = Walls(town)
        self._texels = TexelStore(town, capacity=facade_texels)
        self._shadows = Shadows(town)
        self._ground = Ground(town)
        self._sky = Sky(town.seed)

    def render(
        self,
        pose: Pose,
        conditions: Conditions,
        camera: CameraConfig,
        *,
        rng: np.random.Generator,
        street_life: StreetLife | None = None,
    ) -> View:
        """Take one photo.

        Args:
            pose: where from.
            conditions: light and weather.
            camera: the lens and the size.
            rng: sensor noise and rain; nothing else is left to chance.
            street_life: cars and people; none by default.

        Returns:
            The photo. Equal arguments and an equally seeded `rng` give equal photos, whatever was rendered before.
        """
        frame = _Frame(camera)
        for layer in self._walls.layers(pose, camera):
            self._add_walls(frame, layer, pose, camera, conditions)
            _note_buildings(frame, layer, self._walls)
        self._add_ground(frame, pose, camera, conditions)
        _light(frame, conditions)
        self._add_sky(frame, pose, camera, conditions)
        self._add_occluders(frame, pose, camera, conditions, street_life or StreetLife())
        return View(_develop(frame, conditions, rng), frame.depth_m, frame.facade_id)

    def _add_walls(self, frame: "_Frame", layer: Layer, pose: Pose, camera: CameraConfig, conditions: Conditions) -> None:
        """Fill those pixels of the layer's columns that nothing nearer has filled."""
        depth, heights_m = layer.depth_m, self._walls.heights_m[layer.facade_id]
        slopes = camera.row_slopes()
        top = ((heights_m - pose.height_m) / depth).max()
        bottom = np.maximum(-pose.height_m / depth, layer.hidden_slope).min()
        rows = slice(int((slopes > top).sum()), int((slopes >= bottom).sum()))
        height_m = np.float32(pose.height_m) + slopes[rows, None] * depth
        texel = self._texels.look_up(layer.facade_id, layer.along, height_m, layer.column_m, depth / np.float32(camera.focal_px))
        fill = (height_m >= 0) & (height_m < heights_m) & (texel >= 1 << 24)
        spot = np.arange(rows.start, rows.stop)[:, None] * camera.width_px + layer.columns
        fill &= frame.is_open(spot)
        frame.fill(
            spot[fill],
            texel=texel[fill],
            depth_m=np.broadcast_to(depth, fill.shape)[fill],
            sunlit=self._sunlit(layer, height_m, conditions)[fill],
            facade_id=np.broadcast_to(layer.facade_id, fill.shape)[fill],
        )

    def _sunlit(self, layer: Layer, height_m: NDArray[np.float32], conditions: Conditions) -> NDArray[np.float32]:
        """How squarely the sun hits each pixel of some walls, from 0 to 1; 0 in the shadow."""
        east, north, _ = conditions.to_sun
        normals = self._walls.normals[layer.facade_id]
        squarely = np.maximum(normals @ (east, north), 0).astype(np.float32)
        starts, ends = self._walls.starts_m[layer.facade_id], self._walls.ends_m[layer.facade_id]
        before_wall = (starts + layer.along[:, None] * (ends - starts) + 0.4 * normals).astype(np.float32)
        shadow_m = self._shadows.height_m(before_wall[:, 0], before_wall[:, 1], conditions)
        in_light: NDArray[np.float32] = np.clip((height_m - shadow_m) / np.float32(_SHADOW_SOFTNESS_M) + np.float32(0.5), 0, 1)
        in_light *= squarely
        return in_light

    def _add_ground(self, frame: "_Frame", pose: Pose, camera: CameraConfig, conditions: Conditions) -> None:
        slopes = camera.row_slopes()
        first = int((slopes >= 0).sum()) * camera.width_px
        spot = first + np.flatnonzero(frame.is_open(slice(first, None)))
        row, column = frame.rows_and_columns(spot)
        depth = np.float32(pose.height_m) / -slopes[row]
        heading = np.float32(np.deg2rad(pose.heading_deg))
        right = depth * camera.column_slopes()[column]
        x_m = np.float32(pose.x_m) + depth * np.sin(heading) + right * np.cos(heading)
        y_m = np.float32(pose.y_m) + depth * np.cos(heading) - right * np.sin(heading)
        shadow_m = self._shadows.height_m(x_m, y_m, conditions)
        up = np.float32(max(conditions.to_sun[2], 0.0))
        frame.fill(
            spot,
            texel=self._ground.texels(x_m, y_m, depth / np.float32(camera.focal_px)),
            depth_m=depth,
            sunlit=up * np.clip(1 - shadow_m / np.float32(2 * _SHADOW_SOFTNESS_M), 0, 1),
            facade_id=NO_FACADE,
        )

    def _add_sky(self, frame: "_Frame", pose: Pose, camera: CameraConfig, conditions: Conditions) -> None:
        spot = np.flatnonzero(frame.is_open(slice(None)))
        row, column = frame.rows_and_columns(spot)
        for plane, sky in zip(frame.planes, self._sky.colours(row, column, pose, camera, conditions), strict=True):
            plane.reshape(-1)[spot] = sky

    def _add_occluders(
        self, frame: "_Frame", pose: Pose, camera: CameraConfig, conditions: Conditions, street_life: StreetLife
    ) -> None:
        things: list[Car | Figure] = [*street_life.cars, *self._town.figures, *street_life.people]
        places = np.array([(thing.x_m, thing.y_m) for thing in things]).reshape(-1, 2)
        right, forward = pose.seen_from(places)
        reach = camera.width_px / 2 / camera.focal_px
        near = (forward > _FIGURE_CLOSEST_M) & (forward < _FIGURE_REACH_M) & (np.abs(right) < reach * forward + 4)
        seen = np.flatnonzero(near)
        seen = seen[~frame.hides(right[seen], forward[seen], camera)]
        shadow_m = self._shadows.height_m(places[:, 0].astype(np.float32), places[:, 1].astype(np.float32), conditions)
        for index in seen[np.argsort(-forward[seen], kind="stable")].tolist():
            thing, depth_m = things[index], float(forward[index])
            if isinstance(thing, Car):
                drawn = draw_car(thing, pose, camera)
            else:
                drawn = _draw_figure(thing, float(right[index]), depth_m, pose.height_m, camera)
            if drawn is not None:
                _paste(frame, *drawn, depth_m, _light_on(thing, float(shadow_m[index]), conditions), conditions)


def _light_on(thing: Car | Figure, shadow_m: float, conditions: Conditions) -> NDArray[np.float32]:
    """Light on a thing, (3,): the sun reaches it when its middle is above the shadow. A tree stands in its own shadow."""
    is_tree = isinstance(thing, Figure) and thing.kind is FigureKind.TREE
    sunlit = 0.7 if is_tree or shadow_m < 0.5 * thing.height_m else 0.0
    return np.array(conditions.ambient, np.float32) + np.float32(sunlit) * np.array(conditions.sun, np.float32)


class _Frame:
    """A photo in the making."""

    def __init__(self, camera: CameraConfig) -> None:
        shape = (camera.height_px, camera.width_px)
        self.texel = np.zeros(shape, np.uint32)
        self.sunlit = np.zeros(shape, np.float32)
        self.depth_m = np.full(shape, np.inf, np.float32)
        self.facade_id = np.full(shape, NO_FACADE, np.int32)
        self.planes = np.zeros((3, *shape), np.float32)  # red, green, blue; 1 is white
        self.building_m = np.full(camera.width_px, np.inf, np.float32)  # depth of each column's nearest building

    def is_open(self, spot: NDArray[np.intp] | slice) -> NDArray[np.bool_]:
        """Whether nothing is there yet. A spot is a pixel's place in the photo, counted row by row."""
        return np.isinf(self.depth_m.reshape(-1)[spot])

    def fill(
        self,
        spot: NDArray[np.intp],
        *,
        texel: NDArray[np.uint32],
        depth_m: NDArray[np.float32],
        sunlit: NDArray[np.float32],
        facade_id: NDArray[np.intp] | int,
    ) -> None:
        """Put a surface at some spots, (N,)."""
        self.texel.reshape(-1)[spot] = texel
        self.depth_m.reshape(-1)[spot] = depth_m
        self.sunlit.reshape(-1)[spot] = sunlit
        self.facade_id.reshape(-1)[spot] = facade_id

    def rows_and_columns(self, spot: NDArray[np.intp]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Where in the photo some spots are, (N,) each."""
        row, column = np.divmod(spot.astype(np.int32), np.int32(self.depth_m.shape[1]))
        return row, column

    def hides(self, right_m: NDArray[np.float64], depth_m: NDArray[np.float64], camera: CameraConfig) -> NDArray[np.bool_]:
        """For each of some things up to 6 m across: whether buildings stand before all columns that it could cover."""
        middle, reach = camera.width_px / 2 + camera.focal_px * right_m / depth_m, 3 * camera.focal_px / depth_m
        first = np.clip(middle - reach, 0, camera.width_px - 1).astype(np.intp)
        last = np.clip(middle + reach + 1, first + 1, camera.width_px).astype(np.intp)
        behind = np.append(self.building_m, np.inf)  # so that a range may end at the last column
        farthest = np.maximum.reduceat(behind, np.stack([first, last], axis=1).ravel())[::2]
        return np.asarray(farthest < depth_m - 3)


def _note_buildings(frame: _Frame, layer: Layer, walls: Walls) -> None:
    tall = walls.heights_m[layer.facade_id] > 2.5  # over a hedge one sees trees
    columns = layer.columns[tall]
    frame.building_m[columns] = np.minimum(frame.building_m[columns], layer.depth_m[tall])


def _light(frame: _Frame, conditions: Conditions) -> None:
    """Turn paint into light: sun, sky, panes and wet ground that mirror the sky, lamps behind panes, haze."""
    paint = frame.texel.view(np.uint8).reshape(*frame.texel.shape, 4)  # red, green, blue, material
    material = paint[..., 3]
    panes = np.flatnonzero((material == GLASS) | (material == LIT_GLASS))
    lit = np.flatnonzero(material == LIT_GLASS)
    ground = np.flatnonzero(material == 0) if conditions.wetness else np.zeros(0, np.intp)
    clear = np.exp(frame.depth_m * np.float32(-1 / conditions.haze_m))
    for channel, lamp in enumerate(_LAMP_LIGHT):
        plane, horizon = frame.planes[channel], np.float32(conditions.sky_horizon[channel])
        np.multiply(frame.sunlit, np.float32(conditions.sun[channel] / 255), out=plane)
        plane += np.float32(conditions.ambient[channel] / 255)
        plane *= paint[..., channel]
        spots = plane.reshape(-1)
        spots[panes] = 0.78 * spots[panes] + 0.22 * horizon
        spots[ground] = (1 - 0.5 * conditions.wetness) * spots[ground] + 0.25 * conditions.wetness * horizon
        glow = (np.float32(0.35) + paint[..., channel].reshape(-1)[lit] / np.float32(400)) * np.float32(lamp)
        spots[lit] += np.float32(conditions.window_glow) * (glow - spots[lit])
        plane -= horizon
        plane *= clear
        plane += horizon


def _draw_figure(
    figure: Figure, right_m: float, depth_m: float, camera_height_m: float, camera: CameraConfig
) -> tuple[Image.Image, int, int] | None:
    """The visible part of a figure at its size in the photo, and the column and row of its upper left corner."""
    scale = camera.focal_px / depth_m
    height = figure.height_m * scale
    width = height * ASPECT[figure.kind]
    left = camera.width_px / 2 + scale * right_m - width / 2
    top = camera.horizon_px + scale * camera_height_m - height
    first_column, first_row = max(int(np.floor(left)), 0), max(int(np.floor(top)), 0)
    last_column = min(int(np.ceil(left + width)), camera.width_px)
    last_row = min(int(np.ceil(top + height)), camera.height_px)
    if last_column <= first_column or last_row <= first_row:
        return None
    source = picture(figure.kind, figure.look)
    zoom = source.height / height
    box = (
        max((first_column - left) * zoom, 0.0),
        max((first_row - top) * zoom, 0.0),
        min((last_column - left) * zoom, float(source.width)),
        min((last_row - top) * zoom, float(source.height)),
    )
    size = (last_column - first_column, last_row - first_row)
    return source.resize(size, Image.Resampling.BILINEAR, box=box), first_column, first_row


def _paste(
    frame: _Frame, drawn: Image.Image, column: int, row: int, depth_m: float, light: NDArray[np.float32], conditions: Conditions
) -> None:
    """Lay a picture over the photo where nothing nearer is. Its colours are already multiplied by its opacity."""
    pixels = np.asarray(drawn)
    block = (slice(row, row + pixels.shape[0]), slice(column, column + pixels.shape[1]))
    free = (frame.depth_m[block] > depth_m) * np.float32(1 / 255)
    alpha = pixels[..., 3] * free
    clear = float(np.exp(-depth_m / conditions.haze_m))
    for channel in range(3):
        haze = np.float32(conditions.sky_horizon[channel] * (1 - clear))
        plane = frame.planes[channel][block]
        plane += pixels[..., channel] * free * np.float32(light[channel] * clear) + alpha * (haze - plane)
    covered = alpha > 0.5
    frame.depth_m[block][covered] = depth_m
    frame.facade_id[block][covered] = NO_FACADE


def _develop(frame: _Frame, conditions: Conditions, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rain, sensor noise and rounding."""
    height, width = frame.depth_m.shape
    noise = rng.integers(0, 256, (height, width), np.uint8).astype(np.float32)
    noise -= np.float32(127.5)
    noise *= np.float32(conditions.noise / 73.9)  # evenly spread; its standard deviation is 73.9
    if conditions.wetness > 0.5:
        noise += _rain(height, width, rng)
    image = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        image[..., channel] = np.clip(frame.planes[channel] * np.float32(255) + noise, 0, 255)
    return image


def _rain(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Slanting streaks, a little brighter than what is behind them."""
    streaks = np.zeros((height, width), np.float32)
    count = height * width // 600
    row, column = rng.integers(0, height, count), rng.integers(0, width, count)
    for step in range(9):
        streaks[(row + step) % height, (column + step // 4) % width] = 14
    return streaks
