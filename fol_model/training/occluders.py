"""Things that stand in front of a place and are gone another day: parts of other photos, shapes, cars, people, trees.

They are pasted into a view, and where they are is kept: it is the only honest truth about occlusion there is. Soft edges, and the
same light, blur and noise as all the rest (which come later), leave no trace of the paste to learn from. Used by `augment`.

Letters: S the view's side.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageOps

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

Colour = tuple[int, int, int]

_FINER: Final = 2
"""Outlines are drawn this much larger and shrunk, which makes their edges soft."""


def paste_occluders(
    view: Image.Image, textures: Sequence[Image.Image], most: int, rng: np.random.Generator
) -> Bool[np.ndarray, "S S"]:
    """Paste 1 to `most` things into a view, in place.

    Args:
        view: RGB, square.
        textures: photos to cut parts from.
        most: things at most.
        rng: decides everything.

    Returns:
        Which pixels are covered, at least by half.
    """
    covered = np.zeros((view.height, view.width), dtype=bool)
    for _ in range(rng.integers(1, most, endpoint=True)):
        kind = _KINDS[rng.choice(len(_KINDS), p=_CHANCES)]
        thing, outline = kind(view.width, textures, rng)
        if rng.random() < 0.5:
            thing, outline = ImageOps.mirror(thing), ImageOps.mirror(outline)
        view.paste(thing, mask=outline)
        covered |= np.asarray(outline) >= 128
    return covered


def _cut_out(size: int, textures: Sequence[Image.Image], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A part of another photo: a rectangle, turned a little, or an ellipse."""
    box = _box(size, rng, width=(0.12, 0.5), height=(0.12, 0.5), ground=False)
    outline, draw, scaled = _outline(size, box)
    if rng.random() < 0.5:
        draw.ellipse(scaled, fill=255)
    else:
        draw.polygon(_turned(scaled, rng.uniform(-0.2, 0.2)), fill=255)
    return _textured(size, box, textures, rng), _soft(outline, size)


def _plain(size: int, textures: Sequence[Image.Image], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A sign, a pillar, a lorry's side: one colour, a little darker downwards."""
    box = _box(size, rng, width=(0.05, 0.4), height=(0.1, 0.7), ground=rng.random() < 0.5)
    outline, draw, scaled = _outline(size, box)
    draw.polygon(_turned(scaled, rng.uniform(-0.1, 0.1)), fill=255)
    return _shaded(size, box, _colour(rng), rng), _soft(outline, size)


def _tree(size: int, textures: Sequence[Image.Image], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A crown of many round tufts, cut from a photo and made greenish."""
    box = _box(size, rng, width=(0.2, 0.5), height=(0.2, 0.6), ground=False)
    outline, draw, (left, top, right, bottom) = _outline(size, box)
    centres = rng.uniform(0, 1, (14, 2)) * (right - left, bottom - top) + (left, top)
    for (x, y), radius in zip(centres, rng.uniform(0.1, 0.25, 14) * (right - left), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    green = Image.new("RGB", (size, size), (int(rng.integers(30, 80)), int(rng.integers(60, 110)), int(rng.integers(20, 60))))
    return Image.blend(_textured(size, (0.0, 0.0, float(size), float(size)), textures, rng), green, rng.uniform(0.4, 0.7)), _soft(
        outline, size
    )


def _car(size: int, textures: Sequence[Image.Image], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A car or van from its side or its back: body, cabin, windows, wheels, lamps."""
    box = _box(size, rng, width=(0.2, 0.65), height=(0.12, 0.35), ground=True)
    front, back = sorted(rng.uniform(0.05, 0.4, 2))  # where the windscreen and the rear window end
    cabin = [(back, 0.45), (back + 0.06, 0.0), (1 - front - 0.06, 0.0), (1 - front, 0.45)]
    body = [(0.02, 0.45), (0.98, 0.42), (1.0, 0.85), (0.0, 0.85)]
    wheels = [(x, 0.68, x + 0.17, 1.0) for x in (0.1, 0.73)]
    outline, draw, scaled = _outline(size, box)
    thing = _shaded(size, box, _colour(rng), rng)
    paint = ImageDraw.Draw(thing)
    for shape in (cabin, body):
        draw.polygon(_placed(shape, scaled), fill=255)
    dark = int(rng.integers(10, 60))
    window = [(x + (0.5 - x) * 0.15, 0.08 + y * 0.8) for x, y in cabin]
    paint.polygon(_placed(window, box), fill=(dark, dark + 8, dark + 14))
    middle = (back + 1 - front) / 2
    paint.line(_placed([(middle, 0.0), (middle, 0.45)], box), fill=_colour(rng), width=max(1, size // 100))
    for left, top, right, bottom in wheels:
        draw.ellipse(_flat(_placed([(left, top), (right, bottom)], scaled)), fill=255)
        paint.ellipse(_flat(_placed([(left, top), (right, bottom)], box)), fill=(dark // 2, dark // 2, dark // 2))
    for x, lamp in ((0.02, (200, 30, 20)), (0.93, (240, 235, 210))):
        paint.rectangle(_flat(_placed([(x, 0.5), (x + 0.05, 0.6)], box)), fill=lamp)
    return thing, _soft(outline, size)


def _person(size: int, textures: Sequence[Image.Image], rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Somebody who walks by: head, trunk and legs, in clothes of two colours or cut from a photo."""
    box = _box(size, rng, width=(0.06, 0.16), height=(0.25, 0.6), ground=True)
    outline, draw, scaled = _outline(size, box)
    stride = rng.uniform(0.05, 0.4)
    trunk = [(0.1, 0.18), (0.9, 0.18), (0.8, 0.6), (0.2, 0.6)]
    legs = [(0.2, 0.55), (0.8, 0.55), (0.6 + stride, 1.0), (0.5, 0.7), (0.4 - stride, 1.0)]
    for shape in (trunk, legs):
        draw.polygon(_placed(shape, scaled), fill=255)
    draw.ellipse(_flat(_placed([(0.3, 0.0), (0.7, 0.17)], scaled)), fill=255)
    thing = _textured(size, box, textures, rng) if rng.random() < 0.3 else _shaded(size, box, _colour(rng), rng)
    paint = ImageDraw.Draw(thing)
    paint.polygon(_placed(legs, box), fill=_colour(rng))
    paint.ellipse(
        _flat(_placed([(0.3, 0.0), (0.7, 0.17)], box)), fill=(int(rng.integers(60, 230)), int(rng.integers(50, 180)), 90)
    )
    return thing, _soft(outline, size)


_Kind = Callable[[int, Sequence[Image.Image], np.random.Generator], tuple[Image.Image, Image.Image]]
_KINDS: Final[tuple[_Kind, ...]] = (_cut_out, _car, _person, _tree, _plain)
_CHANCES: Final = (0.4, 0.25, 0.15, 0.1, 0.1)


def _box(size: int, rng: np.random.Generator, *, width: tuple[float, float], height: tuple[float, float], ground: bool) -> Box:
    """Draw where a thing is: anywhere, partly outside too; or standing in the lower half."""
    wide, high = rng.uniform(*width) * size, rng.uniform(*height) * size
    middle = rng.uniform(0, size)
    bottom = rng.uniform(0.65, 1.1) * size if ground else rng.uniform(0, size) + high / 2
    return middle - wide / 2, bottom - high, middle + wide / 2, bottom


def _outline(size: int, box: Box) -> tuple[Image.Image, ImageDraw.ImageDraw, Box]:
    """Start an empty outline, with a pen and the box at its scale."""
    outline = Image.new("L", (size * _FINER, size * _FINER))
    left, top, right, bottom = box
    return outline, ImageDraw.Draw(outline), (left * _FINER, top * _FINER, right * _FINER, bottom * _FINER)


def _soft(outline: Image.Image, size: int) -> Image.Image:
    return outline.reduce(_FINER)


def _placed(shape: Sequence[tuple[float, float]], box: Box) -> list[tuple[float, float]]:
    """Take points given in shares of a box to where it is."""
    left, top, right, bottom = box
    return [(left + x * (right - left), top + y * (bottom - top)) for x, y in shape]


def _flat(corners: Sequence[tuple[float, float]]) -> Box:
    (left, top), (right, bottom) = corners
    return left, top, right, bottom


def _turned(box: Box, angle_rad: float) -> list[tuple[float, float]]:
    """The corners of a box turned about its middle."""
    left, top, right, bottom = box
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    middle = corners.mean(axis=0)
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    turned = (corners - middle) @ np.array([(cos, sin), (-sin, cos)]) + middle
    return [(float(x), float(y)) for x, y in turned]


def _colour(rng: np.random.Generator) -> Colour:
    """Mostly greys, as cars, clothes and signs are; sometimes a strong colour."""
    grey, spread = rng.uniform(15, 235), rng.choice([6.0, 90.0], p=[0.6, 0.4])
    red, green, blue = np.clip(grey + rng.uniform(-spread, spread, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _shaded(size: int, box: Box, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """One colour that gets darker from the top of the box to its bottom."""
    _, top, _, bottom = box
    shade = np.clip((np.arange(size) + 0.5 - top) / (bottom - top), 0, 1)[:, None]
    column = np.array(colour) * (1.15 - rng.uniform(0.1, 0.6) * shade)  # (S, 3)
    strip = np.clip(column, 0, 255).astype(np.uint8)[:, None]
    return Image.fromarray(strip).resize((size, size), Image.Resampling.NEAREST)


def _textured(size: int, box: Box, textures: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Fill the box with a part of another photo."""
    source = textures[int(rng.integers(len(textures)))]
    left, top, right, bottom = (round(edge) for edge in box)
    share = rng.uniform(0.25, 0.8)
    x, y = rng.uniform(0, 1 - share, 2)
    part = (x * source.width, y * source.height, (x + share) * source.width, (y + share) * source.height)
    filling = source.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR, box=part)
    thing = Image.new("RGB", (size, size))
    thing.paste(filling, (left, top))
    return thing
