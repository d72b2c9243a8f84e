"""Pictures of trees, lamps and people: flat, upright and facing the camera. Used by `render`."""

from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from pipelines.catalog.sample_city.town import FigureKind

Rgba = tuple[int, int, int, int]

ASPECT: Final = {FigureKind.TREE: 0.62, FigureKind.LAMP: 0.16, FigureKind.PERSON: 0.4}
"""Width of a figure as a part of its height."""

_PICTURE_PX: Final = {FigureKind.TREE: 280, FigureKind.LAMP: 240, FigureKind.PERSON: 140}
_LOOKS: Final = {FigureKind.TREE: 10, FigureKind.LAMP: 1, FigureKind.PERSON: 24}


def picture(kind: FigureKind, look: int) -> Image.Image:
    """The picture of a figure, standing on its lower edge; colours are multiplied by their opacity (mode RGBa).

    Args:
        kind: what it shows.
        look: any number; looks repeat after a while, as trees and coats do.
    """
    return _picture(kind, look % _LOOKS[kind])


@lru_cache(maxsize=64)
def _picture(kind: FigureKind, look: int) -> Image.Image:
    height = _PICTURE_PX[kind]
    image = Image.new("RGBA", (round(height * ASPECT[kind]), height))
    rng = np.random.default_rng([look, len(kind)])
    draw = ImageDraw.Draw(image)
    if kind is FigureKind.TREE:
        _draw_tree(draw, image.width, height, rng)
    elif kind is FigureKind.LAMP:
        _draw_lamp(draw, image.width, height)
    else:
        _draw_person(draw, image.width, height, rng)
    return image.convert("RGBa")


def _draw_tree(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    """A trunk and a crown of leaf clumps, darker below and inside."""
    trunk = float(rng.uniform(0.02, 0.035)) * height
    middle = width / 2
    draw.polygon(
        [
            (middle - trunk, height),
            (middle + trunk, height),
            (middle + trunk / 2, height * 0.4),
            (middle - trunk / 2, height * 0.4),
        ],
        fill=(84, 66, 50, 255),
    )
    green = rng.uniform((58, 92, 34), (104, 128, 58))
    spread_x, spread_y, centre_y = float(rng.uniform(0.3, 0.4)) * width, float(rng.uniform(0.2, 0.27)) * height, 0.34 * height
    clumps = int(rng.integers(110, 160))
    for clump in range(clumps):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        x, y = middle + spread_x * reach * np.cos(angle), centre_y + spread_y * reach * np.sin(angle)
        radius = float(rng.uniform(0.03, 0.075)) * width
        light = 0.55 + 0.45 * clump / clumps - 0.35 * (y - centre_y) / spread_y * 0.6 + rng.uniform(-0.12, 0.12)
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=_rgba(green * light))


def _draw_lamp(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    middle = width / 2
    draw.rectangle([middle - 2.5, 14, middle + 2.5, height], fill=(58, 62, 62, 255))
    draw.rectangle([middle - 5, height - 40, middle + 5, height], fill=(48, 52, 52, 255))
    draw.polygon([(middle - 9, 14), (middle + 9, 14), (middle + 13, 2), (middle - 13, 2)], fill=(206, 202, 186, 255))
    draw.rectangle([middle - 14, 0, middle + 14, 3], fill=(48, 52, 52, 255))


def _draw_person(draw: ImageDraw.ImageDraw, width: int, height: int, rng: np.random.Generator) -> None:
    middle, stride = width / 2, float(rng.uniform(0.02, 0.11)) * width
    coat, trousers = _rgba(rng.uniform(30, 210, 3)), _rgba(rng.uniform(24, 100, 3))
    skin, hair = _rgba(np.array((224, 178, 148)) * rng.uniform(0.45, 1.05)), _rgba(rng.uniform(20, 120) * np.array((1, 0.8, 0.6)))
    hip, shoulder = 0.52 * height, 0.2 * height
    for side in (-1, 1):
        foot = middle + side * (stride + 0.07 * width)
        draw.line([(middle + side * 0.07 * width, hip), (foot, height - 3)], fill=trousers, width=round(0.16 * width))
        draw.rectangle([foot - 0.07 * width, height - 6, foot + 0.13 * width, height], fill=(34, 30, 30, 255))
        hand = middle + side * (0.27 * width + stride)
        draw.line([(middle + side * 0.2 * width, shoulder + 6), (hand, hip)], fill=coat, width=round(0.12 * width))
    draw.rounded_rectangle([middle - 0.24 * width, shoulder, middle + 0.24 * width, hip + 6], radius=9, fill=coat)
    draw.ellipse([middle - 0.12 * width, 0.05 * height, middle + 0.12 * width, 0.19 * height], fill=skin)
    draw.pieslice([middle - 0.13 * width, 0.035 * height, middle + 0.13 * width, 0.17 * height], 170, 370, fill=hair)


def _rgba(rgb: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Rgba:
    red, green, blue = np.clip(rgb, 0, 255).astype(int).tolist()
    return red, green, blue, 255
