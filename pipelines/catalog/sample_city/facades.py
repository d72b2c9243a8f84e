"""What the walls of the sample city look like.

`BuildingStyle` holds the choices that make a building recognisable; `draw_style` makes them; `paint_facade` turns them into
a picture of one wall, which `render.py` looks up. Buildings of a town share a palette and five types, as in a real town,
so that two houses may resemble each other while their bays, doors, signs and weathering differ.

A picture is an array of uint32, one a texel: red, green, blue and material from the lowest byte up. Row 0 is at the ground.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = tuple[int, int, int]

OPEN: Final = 0
"""Material of a texel that is not there: sky beside a gable."""
GLASS: Final = 128
"""Material of a window pane: reflects the sky."""
LIT_GLASS: Final = 129
"""Material of a pane with a lamp behind it after sunset."""
SOLID: Final = 255
"""Material of everything else."""

TEXELS_PER_M: Final[float] = 20.0
"""Of walls on a street. At 6 m, where one texel covers 2.4 pixels of the sample photos, it begins to show."""
YARD_TEXELS_PER_M: Final[float] = 10.0
"""Of side and rear walls, which are seen from afar and rarely."""
TEXEL_MULTIPLE: Final = 32
"""Pictures are a multiple of this wide and half of it high, so that they can be halved evenly."""

_CHIMNEY_M: Final = 1.2
_PAINTS: Final[tuple[Rgb, ...]] = (
    (214, 198, 160), (196, 150, 112), (178, 96, 74), (226, 216, 200), (150, 164, 150), (222, 184, 118),
    (160, 172, 190), (204, 164, 158), (120, 100, 88), (190, 188, 178), (142, 72, 58), (232, 226, 184),
)  # fmt: skip
_TRIMS: Final[tuple[Rgb, ...]] = ((238, 234, 224), (72, 58, 50), (210, 200, 180), (58, 78, 70), (96, 34, 34), (48, 60, 84))
_ROOFS: Final[tuple[Rgb, ...]] = ((142, 70, 48), (92, 88, 92), (112, 64, 52), (70, 72, 80))
_ACCENTS: Final[tuple[Rgb, ...]] = (
    (178, 40, 40), (30, 92, 60), (36, 66, 130), (214, 160, 30), (110, 40, 90), (20, 110, 120), (40, 40, 46), (200, 96, 36),
)  # fmt: skip


class Wall(StrEnum):
    """What a wall is made of."""

    PLASTER = "plaster"
    BRICK = "brick"
    BANDS = "bands"
    BOARDS = "boards"
    STONE = "stone"
    HEDGE = "hedge"


class Roof(StrEnum):
    """The outline of a building against the sky, seen from the street."""

    FLAT = "flat"
    TILES = "tiles"
    GABLE = "gable"
    STEPPED = "stepped"


class GroundFloor(StrEnum):
    """What a building shows at eye level."""

    DOOR = "door"
    SHOP = "shop"
    GARAGE = "garage"


class Face(StrEnum):
    """Which wall of a building it is."""

    STREET = "street"
    SIDE = "side"
    REAR = "rear"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildingStyle:
    """All that the walls of one building have in common. Colours are red, green, blue from 0 to 255."""

    wall: Wall
    wall_rgb: Rgb
    trim_rgb: Rgb
    base_rgb: Rgb
    shutter_rgb: Rgb | None
    awning_rgb: Rgb | None
    sign_rgb: Rgb | None
    door_rgb: Rgb
    roof: Roof
    roof_rgb: Rgb
    roof_height_m: float
    storeys: int
    ground_height_m: float
    storey_height_m: float
    bay_width_m: float
    window_width_m: float
    window_height_m: float
    panes: tuple[int, int]
    """Panes of a window across and up."""
    arched: bool
    balconies: bool
    ground_floor: GroundFloor

    @property
    def wall_height_m(self) -> float:
        """From the ground to the eaves."""
        return self.ground_height_m + max(self.storeys - 1, 0) * self.storey_height_m + (0.5 if self.storeys else 0.0)

    @property
    def height_m(self) -> float:
        """From the ground to the highest thing, a chimney included."""
        return self.wall_height_m + self.roof_height_m + (_CHIMNEY_M if self.roof is Roof.TILES else 0.0)


# ---------------------------------------------------------------------------------------------------------- choices


def draw_style(rng: np.random.Generator, *, floors: tuple[int, int] = (2, 5)) -> BuildingStyle:
    """Choose the look of one building.

    Args:
        rng: decides everything.
        floors: fewest and most storeys.
    """
    wall, roof, ground_floor = _TYPES[int(rng.integers(len(_TYPES)))]
    storeys = int(rng.integers(floors[0], floors[1] + 1))
    wall_rgb = _jitter(_PAINTS[int(rng.integers(len(_PAINTS)))], 12, rng)
    bay_width_m = float(rng.uniform(2.0, 3.4))
    shop = ground_floor is GroundFloor.SHOP
    return BuildingStyle(
        wall=wall,
        wall_rgb=wall_rgb,
        trim_rgb=_TRIMS[int(rng.integers(len(_TRIMS)))],
        base_rgb=_jitter((124, 118, 112), 26, rng),
        shutter_rgb=_maybe_accent(rng, 0.35),
        awning_rgb=_maybe_accent(rng, 0.7 if shop else 0.0),
        sign_rgb=_maybe_accent(rng, 0.95 if shop else 0.3),
        door_rgb=_accent(rng),
        roof=roof,
        roof_rgb=_jitter(_ROOFS[int(rng.integers(len(_ROOFS)))], 10, rng),
        roof_height_m={Roof.FLAT: 0.6, Roof.TILES: 2.8, Roof.GABLE: 3.6, Roof.STEPPED: 3.4}[roof],
        storeys=storeys,
        ground_height_m=float(rng.uniform(3.4, 4.2)),
        storey_height_m=float(rng.uniform(2.8, 3.4)),
        bay_width_m=bay_width_m,
        window_width_m=float(rng.uniform(0.38, 0.5)) * bay_width_m,
        window_height_m=float(rng.uniform(1.3, 2.0)),
        panes=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        arched=bool(rng.random() < 0.25),
        balconies=bool(rng.random() < 0.2),
        ground_floor=ground_floor,
    )


def draw_hedge(rng: np.random.Generator) -> BuildingStyle:
    """Choose the look of the hedge or garden wall in front of a plot without a building."""
    return BuildingStyle(
        wall=Wall.HEDGE if rng.random() < 0.6 else Wall.STONE,
        wall_rgb=_jitter((120, 116, 104), 20, rng),
        trim_rgb=(150, 146, 138),
        base_rgb=(104, 100, 96),
        shutter_rgb=None,
        awning_rgb=None,
        sign_rgb=None,
        door_rgb=_accent(rng),
        roof=Roof.FLAT,
        roof_rgb=(120, 120, 120),
        roof_height_m=0.0,
        storeys=0,
        ground_height_m=float(rng.uniform(1.0, 2.0)),
        storey_height_m=0.0,
        bay_width_m=2.0,
        window_width_m=1.0,
        window_height_m=1.0,
        panes=(1, 1),
        arched=False,
        balconies=False,
        ground_floor=GroundFloor.DOOR,
    )


_TYPES: Final = (
    (Wall.PLASTER, Roof.TILES, GroundFloor.DOOR),
    (Wall.PLASTER, Roof.FLAT, GroundFloor.SHOP),
    (Wall.BRICK, Roof.STEPPED, GroundFloor.DOOR),
    (Wall.BRICK, Roof.FLAT, GroundFloor.SHOP),
    (Wall.BANDS, Roof.FLAT, GroundFloor.GARAGE),
    (Wall.BOARDS, Roof.GABLE, GroundFloor.DOOR),
    (Wall.STONE, Roof.TILES, GroundFloor.SHOP),
)
"""The building types of every town. Repeated on purpose: a wall of brick with a shop is not yet a place."""


def _accent(rng: np.random.Generator) -> Rgb:
    return _jitter(_ACCENTS[int(rng.integers(len(_ACCENTS)))], 14, rng)


def _maybe_accent(rng: np.random.Generator, probability: float) -> Rgb | None:
    accent = _accent(rng)
    return accent if rng.random() < probability else None


def _jitter(rgb: Rgb, amount: int, rng: np.random.Generator) -> Rgb:
    red, green, blue = rng.integers(-amount, amount + 1, 3).tolist()
    return _byte(rgb[0] + red), _byte(rgb[1] + green), _byte(rgb[2] + blue)


def _byte(value: int) -> int:
    return min(max(value, 0), 255)


# ---------------------------------------------------------------------------------------------------------- painting


def texels_per_m(face: Face) -> float:
    """How finely a wall is painted, in both directions; widths are then rounded to `TEXEL_MULTIPLE`."""
    return TEXELS_PER_M if face is Face.STREET else YARD_TEXELS_PER_M


def paint_facade(style: BuildingStyle, *, width_m: float, face: Face, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Paint one wall.

    Args:
        style: the building it belongs to.
        width_m: its length along the ground.
        face: a street wall has doors and signs; a side wall is almost blank.
        rng: decides what differs between two walls of one style: the door's place, the sign, curtains, stains.

    Returns:
        Packed texels (rows, columns). Rows beyond `style.height_m` are `OPEN`.
    """
    canvas = _Canvas(width_m, style.height_m, texels_per_m(face))
    _paint_wall(canvas, style)
    if style.storeys:
        _paint_upper_floors(canvas, style, face, rng)
        if face is Face.STREET:
            _paint_ground_floor(canvas, style, rng)
        _paint_roof(canvas, style, face, rng)
    _weather(canvas, style, rng)
    return canvas.texels


class _Canvas:
    """A wall being painted, addressed in metres from its lower left corner."""

    def __init__(self, width_m: float, height_m: float, density: float) -> None:
        columns = max(1, round(width_m * density / TEXEL_MULTIPLE)) * TEXEL_MULTIPLE
        rows = -(-int(np.ceil(height_m * density)) // (TEXEL_MULTIPLE // 2)) * (TEXEL_MULTIPLE // 2)
        self.width_m = width_m
        self._columns_per_m, self.rows_per_m = columns / width_m, density
        self.texels = np.zeros((rows, columns), np.dtype("<u4"))
        self.channels = self.texels.view(np.uint8).reshape(rows, columns, 4)
        self.x_m = (np.arange(columns, dtype=np.float32) + 0.5) / np.float32(self._columns_per_m)
        self.y_m = (np.arange(rows, dtype=np.float32) + 0.5) / np.float32(self.rows_per_m)

    def rect(self, left: float, right: float, bottom: float, top: float, rgb: Rgb, material: int = SOLID) -> None:
        """Fill a rectangle in metres, at least one texel each way; parts beyond the wall are cut off."""
        red, green, blue = rgb
        self.texels[self._area(left, right, bottom, top)] = red | green << 8 | blue << 16 | material << 24

    def shade(self, left: float, right: float, bottom: float, top: float, factor: float) -> None:
        """Darken a rectangle in metres; `factor` is below 1."""
        area = self.channels[self._area(left, right, bottom, top)][..., :3]
        np.multiply(area, np.float32(factor), out=area, casting="unsafe")

    def _area(self, left: float, right: float, bottom: float, top: float) -> tuple[slice, slice]:
        first_row, first_column = int(bottom * self.rows_per_m + 0.5), int(left * self._columns_per_m + 0.5)
        last_row = max(int(top * self.rows_per_m + 0.5), first_row + 1)
        last_column = max(int(right * self._columns_per_m + 0.5), first_column + 1)
        return slice(max(first_row, 0), max(last_row, 0)), slice(max(first_column, 0), max(last_column, 0))


def _paint_wall(canvas: _Canvas, style: BuildingStyle) -> None:
    wall = canvas.channels[: int(np.ceil(style.wall_height_m * canvas.rows_per_m))]
    rgb = np.array(style.wall_rgb, np.float32)
    if style.wall is Wall.HEDGE:
        rgb = rgb.mean() * np.array([0.55, 0.85, 0.42], np.float32)
    shade = _wall_pattern(canvas, style.wall)[: len(wall)]
    for channel in range(3):
        wall[..., channel] = np.minimum(shade * rgb[channel], 255)
    wall[..., 3] = SOLID
    if style.storeys:
        canvas.rect(0, canvas.width_m, 0, 0.5, style.base_rgb)


def _wall_pattern(canvas: _Canvas, wall: Wall) -> NDArray[np.float32]:
    """Brightness factors (rows, columns), or what broadcasts to them."""
    x, y = canvas.x_m[None, :], canvas.y_m[:, None]
    if wall is Wall.BRICK:
        course = np.floor(y / 0.25)
        joint = ((y % 0.25) < 0.05) | (((x + 0.3 * (course % 2)) % 0.6) < 0.05)
        tint = 1 + 0.1 * np.sin(course * 12.9 + np.floor((x + 0.3 * (course % 2)) / 0.6) * 78.2)
        return np.where(joint, 1.28, tint).astype(np.float32)
    if wall is Wall.BANDS:
        return np.where((y % 1.2) < 0.35, 0.78, 1.04).astype(np.float32)
    if wall is Wall.BOARDS:
        return np.where((x % 0.3) < 0.06, 0.74, 1.02).astype(np.float32)
    if wall is Wall.STONE:
        course = np.floor(y / 0.5)
        joint = ((y % 0.5) < 0.06) | (((x + 0.45 * (course % 2)) % 0.9) < 0.06)
        tint = 1 + 0.12 * np.sin(course * 5.3 + np.floor((x + 0.45 * (course % 2)) / 0.9) * 17.7)
        return np.where(joint, 0.7, tint).astype(np.float32)
    return np.ones((1, 1), np.float32)


def _paint_upper_floors(canvas: _Canvas, style: BuildingStyle, face: Face, rng: np.random.Generator) -> None:
    if face is Face.SIDE and rng.random() < 0.6:
        return
    for floor in range(1, style.storeys):
        bottom = style.ground_height_m + (floor - 1) * style.storey_height_m
        if face is Face.STREET:
            canvas.rect(0, canvas.width_m, bottom - 0.1, bottom + 0.08, style.trim_rgb)
        sill = bottom + 0.8
        for centre in _bay_centres(canvas, style):
            _paint_window(canvas, style, centre, sill, rng)
            if style.balconies and face is Face.STREET:
                _paint_balcony(canvas, style, centre, sill)


def _bay_centres(canvas: _Canvas, style: BuildingStyle) -> list[float]:
    bays = max(1, int((canvas.width_m - 0.6) / style.bay_width_m))
    return [canvas.width_m * (bay + 0.5) / bays for bay in range(bays)]


def _paint_window(canvas: _Canvas, style: BuildingStyle, centre: float, sill: float, rng: np.random.Generator) -> None:
    half, top = style.window_width_m / 2, sill + style.window_height_m
    if style.shutter_rgb is not None:
        for side in (-1, 1):
            edge = centre + side * (half + 0.3)
            canvas.rect(edge - 0.25, edge + 0.25, sill, top, style.shutter_rgb)
            canvas.shade(edge - 0.17, edge + 0.17, sill + 0.15, (sill + top) / 2 - 0.1, 0.8)
            canvas.shade(edge - 0.17, edge + 0.17, (sill + top) / 2 + 0.1, top - 0.15, 0.8)
    canvas.rect(centre - half - 0.12, centre + half + 0.12, sill - 0.12, top + 0.12, style.trim_rgb)
    if style.arched:
        for step in range(1, 5):
            inset = half * (1 - np.sqrt(1 - (step / 5) ** 2))
            canvas.rect(centre - half + inset, centre + half - inset, top, top + 0.12 + 0.1 * step, style.trim_rgb)
    _paint_panes(canvas, centre - half, centre + half, sill, top, style, rng)
    canvas.shade(centre - half - 0.15, centre + half + 0.15, sill - 0.2, sill - 0.12, 0.65)


def _paint_panes(
    canvas: _Canvas, left: float, right: float, bottom: float, top: float, style: BuildingStyle, rng: np.random.Generator
) -> None:
    """Glass with its bars, a curtain in two of five windows, and a lamp in two of five."""
    glass = LIT_GLASS if rng.random() < 0.4 else GLASS
    tone = int(rng.integers(34, 74))
    canvas.rect(left, right, bottom, top, (tone, tone + 6, tone + 14), glass)
    canvas.shade(left, right, top - 0.2, top, 0.6)
    if rng.random() < 0.4:
        curtain = _jitter((196, 186, 172), 30, rng)
        share = float(rng.uniform(0.15, 0.6))
        canvas.rect(left, right, top - share * (top - bottom), top, curtain, glass)
    across, up = style.panes
    for bar in range(1, across):
        x = left + (right - left) * bar / across
        canvas.rect(x - 0.03, x + 0.03, bottom, top, style.trim_rgb)
    for bar in range(1, up):
        y = bottom + (top - bottom) * bar / up
        canvas.rect(left, right, y - 0.03, y + 0.03, style.trim_rgb)


def _paint_balcony(canvas: _Canvas, style: BuildingStyle, centre: float, sill: float) -> None:
    half = style.window_width_m / 2 + 0.35
    canvas.rect(centre - half, centre + half, sill - 0.5, sill - 0.32, (96, 92, 90))
    canvas.rect(centre - half, centre + half, sill + 0.4, sill + 0.48, (40, 40, 44))
    for x in np.arange(centre - half, centre + half, 0.2):
        canvas.rect(x, x + 0.05, sill - 0.32, sill + 0.4, (40, 40, 44))


def _paint_ground_floor(canvas: _Canvas, style: BuildingStyle, rng: np.random.Generator) -> None:
    centres = _bay_centres(canvas, style)
    door_bay = int(rng.integers(len(centres)))
    half_bay = canvas.width_m / len(centres) / 2
    for bay, centre in enumerate(centres):
        if bay == door_bay:
            _paint_door(canvas, style, centre, rng)
        elif style.ground_floor is GroundFloor.SHOP:
            _paint_panes_of_shop(canvas, style, centre, half_bay, rng)
        elif style.ground_floor is GroundFloor.GARAGE and half_bay > 1.2:
            _paint_garage(canvas, style, centre, half_bay)
        else:
            _paint_window(canvas, style, centre, 1.2, rng)
    if style.awning_rgb is not None:
        _paint_awning(canvas, style.awning_rgb)
    if style.sign_rgb is not None:
        _paint_sign(canvas, style, style.sign_rgb, rng)


def _paint_door(canvas: _Canvas, style: BuildingStyle, centre: float, rng: np.random.Generator) -> None:
    half, top = float(rng.uniform(0.5, 0.75)), float(rng.uniform(2.1, 2.5))
    canvas.rect(centre - half - 0.18, centre + half + 0.18, 0, top + 0.2, style.trim_rgb)
    canvas.rect(centre - half, centre + half, 0.12, top, style.door_rgb)
    for panel in range(2):
        bottom = 0.3 + panel * (top - 0.3) / 2
        canvas.shade(centre - half + 0.15, centre + half - 0.15, bottom, bottom + (top - 0.9) / 2, 0.72)
    canvas.rect(centre - half, centre + half, top - 0.35, top - 0.05, (60, 66, 76), LIT_GLASS)
    canvas.rect(centre + half - 0.2, centre + half - 0.1, 1.0, 1.1, (220, 200, 120))
    canvas.rect(centre - half - 0.3, centre + half + 0.3, 0, 0.12, (150, 148, 144))


def _paint_panes_of_shop(canvas: _Canvas, style: BuildingStyle, centre: float, half_bay: float, rng: np.random.Generator) -> None:
    left, right, top = centre - half_bay + 0.15, centre + half_bay - 0.15, 2.5
    canvas.rect(left, right, 0.5, top + 0.1, style.trim_rgb)
    canvas.rect(left + 0.1, right - 0.1, 0.6, top, (58, 62, 66), LIT_GLASS)
    x = left + 0.3
    while x < right - 0.5:  # the goods on display
        width, height = float(rng.uniform(0.15, 0.5)), float(rng.uniform(0.3, 1.1))
        canvas.rect(x, min(x + width, right - 0.2), 0.65, 0.65 + height, _accent(rng), LIT_GLASS)
        x += width + float(rng.uniform(0.1, 0.5))


def _paint_garage(canvas: _Canvas, style: BuildingStyle, centre: float, half_bay: float) -> None:
    half = half_bay - 0.25
    canvas.rect(centre - half - 0.1, centre + half + 0.1, 0, 2.5, style.trim_rgb)
    canvas.rect(centre - half, centre + half, 0, 2.4, (150, 152, 150))
    for y in np.arange(0.3, 2.4, 0.3):
        canvas.shade(centre - half, centre + half, y, y + 0.06, 0.7)


def _paint_awning(canvas: _Canvas, awning_rgb: Rgb) -> None:
    for stripe, x in enumerate(np.arange(0.2, canvas.width_m - 0.3, 0.4)):
        canvas.rect(x, min(x + 0.4, canvas.width_m - 0.2), 2.35, 2.8, awning_rgb if stripe % 2 else (232, 228, 218))
    canvas.shade(0.2, canvas.width_m - 0.2, 2.35, 2.42, 0.6)
    canvas.shade(0.2, canvas.width_m - 0.2, 1.9, 2.35, 0.75)


def _paint_sign(canvas: _Canvas, style: BuildingStyle, sign_rgb: Rgb, rng: np.random.Generator) -> None:
    bottom, top = 2.85, min(3.4, style.ground_height_m - 0.15)
    length = min(canvas.width_m - 0.8, float(rng.uniform(2.5, 7.0)))
    left = float(rng.uniform(0.4, max(0.4, canvas.width_m - 0.4 - length)))  # rounding may take it below
    canvas.rect(left, left + length, bottom, top, sign_rgb)
    ink = (242, 238, 224) if sum(sign_rgb) < 420 else (30, 30, 34)
    cell = (top - bottom - 0.16) / 5
    for x in np.arange(left + 0.15, left + length - 4 * cell, 4.5 * cell):
        _paint_glyph(canvas, float(x), bottom + 0.08, cell, ink, rng)


def _paint_glyph(canvas: _Canvas, x: float, y: float, cell: float, ink: Rgb, rng: np.random.Generator) -> None:
    """One made-up letter of strokes on a grid of three by five cells."""
    strokes = ((0, 1, 0, 5), (2, 3, 0, 5), (0, 3, 0, 1), (0, 3, 2, 3), (0, 3, 4, 5), (1, 2, 0, 5))
    for index in rng.choice(len(strokes), size=int(rng.integers(2, 5)), replace=False):
        left, right, bottom, top = strokes[int(index)]
        canvas.rect(x + left * cell, x + right * cell, y + bottom * cell, y + top * cell, ink)


def _paint_roof(canvas: _Canvas, style: BuildingStyle, face: Face, rng: np.random.Generator) -> None:
    eaves, width = style.wall_height_m, canvas.width_m
    ridge = eaves + style.roof_height_m
    if style.roof is Roof.FLAT:
        canvas.rect(0, width, eaves, ridge, style.trim_rgb)
        canvas.shade(0, width, eaves, eaves + 0.15, 0.7)
    elif (style.roof is Roof.TILES) == (face is Face.SIDE):
        _paint_gable(canvas, style)
    else:
        _paint_tiles(canvas, style, rng)
    if style.roof is Roof.TILES:
        x = float(rng.uniform(0.2, 0.7)) * width
        canvas.rect(x, x + 0.8, ridge - 0.6, style.height_m, (128, 72, 58))


def _paint_gable(canvas: _Canvas, style: BuildingStyle) -> None:
    """A triangle or steps in the colour of the wall with an edge in the colour of the trim."""
    eaves, half = style.wall_height_m, canvas.width_m / 2
    above = canvas.y_m[:, None] - eaves
    if style.roof is Roof.STEPPED:
        above = np.ceil(above / 0.68) * 0.68
    edge = half * (1 - above / style.roof_height_m) - np.abs(canvas.x_m[None, :] - half)
    inside = (edge >= 0) & (canvas.y_m[:, None] >= eaves) & (canvas.y_m[:, None] < eaves + style.roof_height_m)
    shade = np.broadcast_to(_wall_pattern(canvas, style.wall), inside.shape)[inside]
    canvas.channels[inside, :3] = np.minimum(shade[:, None] * np.array(style.wall_rgb, np.float32), 255)
    canvas.channels[inside & (edge < 0.3), :3] = style.trim_rgb
    canvas.channels[inside, 3] = SOLID
    canvas.rect(half - 0.4, half + 0.4, eaves + 0.5, eaves + 1.5, style.trim_rgb)
    canvas.rect(half - 0.3, half + 0.3, eaves + 0.6, eaves + 1.4, (48, 52, 60), GLASS)


def _paint_tiles(canvas: _Canvas, style: BuildingStyle, rng: np.random.Generator) -> None:
    eaves, width = style.wall_height_m, canvas.width_m
    ridge = eaves + style.roof_height_m
    canvas.rect(0, width, eaves, ridge, style.roof_rgb)
    for y in np.arange(eaves, ridge, 0.3):
        canvas.shade(0, width, y, y + 0.08, 0.78)
    canvas.rect(0, width, eaves, eaves + 0.15, (90, 90, 92))  # the gutter
    dormers = int(rng.integers(0, max(1, int(width / 4)) + 1))
    for dormer in range(dormers):
        x = width * (dormer + 0.5) / dormers
        canvas.rect(x - 0.7, x + 0.7, eaves + 0.5, eaves + 1.9, style.trim_rgb)
        canvas.rect(x - 0.5, x + 0.5, eaves + 0.65, eaves + 1.7, (50, 56, 64), GLASS)


def _weather(canvas: _Canvas, style: BuildingStyle, rng: np.random.Generator) -> None:
    """Stains the size of a metre or two, splashed dirt at the foot, and a fine grain."""
    rows, columns = canvas.texels.shape
    coarse = rng.uniform(0.78, 0.9, (max(2, int(style.height_m / 1.5)), max(2, int(canvas.width_m / 1.5)))).astype(np.float32)
    stains = np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BILINEAR))
    dirt = 1 - 0.3 * np.exp(-canvas.y_m / 0.4)
    brightness = (stains * (256 * dirt[:, None])).astype(np.uint16)
    brightness += rng.integers(0, 24, (rows, columns), np.uint8)  # at most 254 of 256: no channel overflows
    for channel in range(3):
        plane = canvas.channels[..., channel]
        plane[:] = (plane * brightness) >> 8
