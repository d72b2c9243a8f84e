"""Small pictures for the page: a photo as a JPEG that travels inside the HTML, and the patches that matched, to draw over it.

Patches are drawn as SVG above the photo, not into it: they stay sharp, and a reader can take them away to see the photo.
"""

import base64
import colorsys
import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

NUMBERED: Final = 5
"""The best pairs, which carry a number on both photos, so that colour is not needed to tell them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A JPEG to stand in the page."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """One matched patch on one photo, in pixels of its picture."""

    x: float
    y: float
    colour: str
    label: str
    """Number of the pair if it is one of the best, else empty."""


def make_picture(pixels: UInt8[np.ndarray, "H W 3"], *, long_side: int) -> Picture:
    """Shrink a photo to `long_side` pixels (never enlarge) and encode it."""
    image = Image.fromarray(pixels)
    image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80, optimize=True, progressive=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    return Picture(uri=uri, width=image.width, height=image.height)


def matched_regions(
    patches: UInt8[np.ndarray, "pairs 4"], grid_side: int, query: Picture, candidate: Picture
) -> tuple[list[Region], list[Region]]:
    """Place matched patches on both pictures. The patches of a pair have the same colour, made from where the query's lies.

    Args:
        patches: query row, query column, candidate row, candidate column; best pairs first.
        grid_side: patches along one side. The network saw the photo stretched to a square, so patches have its proportions.
        query: picture of the query photo.
        candidate: picture of the candidate.

    Returns:
        Regions on the query and on the candidate; the worst pair first, so that the best is drawn on top.
    """
    colours = [patch_colour(int(row), int(column), grid_side) for row, column, _, _ in patches]
    labels = [str(number) if number <= NUMBERED else "" for number in range(1, len(patches) + 1)]
    return (
        _place(patches[:, :2], grid_side, query, colours, labels),
        _place(patches[:, 2:], grid_side, candidate, colours, labels),
    )


def patch_colour(row: int, column: int, grid_side: int) -> str:
    """A colour for a patch of the query: hue from red on the left to violet on the right, darker further down."""
    steps = max(grid_side - 1, 1)
    rgb = colorsys.hls_to_rgb(0.8 * column / steps, 0.68 - 0.24 * row / steps, 0.85)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)


def _place(
    patches: UInt8[np.ndarray, "pairs 2"], grid_side: int, picture: Picture, colours: list[str], labels: list[str]
) -> list[Region]:
    width, height = picture.width / grid_side, picture.height / grid_side
    return [
        Region(x=round(column * width, 2), y=round(row * height, 2), colour=colour, label=label)
        for (row, column), colour, label in zip(patches.tolist(), colours, labels, strict=True)
    ][::-1]
