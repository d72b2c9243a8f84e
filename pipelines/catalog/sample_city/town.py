"""The plan of the sample city: streets, buildings and what stands beside them. Geometry only; nothing is drawn here.

Streets run north-south and east-west between blocks of different sizes. Each block is lined with buildings, its middle is grass;
a ring of outer blocks and a building across each street's end close the view. Metres, from the south-west corner.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

import numpy as np

from pipelines.catalog.sample_city.facades import BuildingStyle, Face, draw_hedge, draw_style

PAVEMENT_M: Final = 2.3
"""Width of the pavement on each side of each street."""

_OUTER_BLOCK_M: Final = 30.0
_BUILDING_DEPTH_M: Final = 11.0
_BLOCK_M: Final = ((58.0, 86.0), (44.0, 64.0))  # smallest and largest, east-west and north-south
_NORMALS: Final = ((0, -1), (1, 0), (0, 1), (-1, 0))

Point = tuple[float, float]


class FigureKind(StrEnum):
    """What a figure is a picture of."""

    TREE = "tree"
    LAMP = "lamp"
    PERSON = "person"


@dataclass(frozen=True, slots=True)
class Figure:
    """A thing drawn upright and facing the camera."""

    kind: FigureKind
    x_m: float
    y_m: float
    height_m: float
    look: int
    """Chooses its picture; the same number, the same look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Street:
    """A straight street through the whole town. Across it: pavement, road, pavement."""

    centre_m: float
    """x of a north-south street, y of an east-west one."""
    half_width_m: float
    """From the centre to the buildings."""
    grey: int
    """Brightness of its asphalt, 0 to 255."""
    lined: bool
    """Whether a broken line is painted along the middle."""

    @property
    def road_half_width_m(self) -> float:
        """From the centre to the kerb."""
        return self.half_width_m - PAVEMENT_M


@dataclass(frozen=True, kw_only=True, slots=True)
class Building:
    """A box with its sides along the axes; a hedge is a thin and low one."""

    west_m: float
    south_m: float
    east_m: float
    north_m: float
    style: BuildingStyle


@dataclass(frozen=True, kw_only=True, slots=True)
class Facade:
    """One wall of a building. Who stands before it sees `start_m` on the left and `end_m` on the right."""

    facade_id: int
    """Its place in `Town.facades`."""
    building_id: int
    start_m: Point
    end_m: Point
    face: Face
    style: BuildingStyle

    @property
    def width_m(self) -> float:
        """Its length along the ground."""
        return abs(self.end_m[0] - self.start_m[0]) + abs(self.end_m[1] - self.start_m[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Town:
    """A whole sample city. Made by `make_town`; two with the same arguments are equal."""

    seed: int
    width_m: float
    depth_m: float
    streets_ns: tuple[Street, ...]
    """North-south streets, from west to east."""
    streets_ew: tuple[Street, ...]
    """East-west streets, from south to north."""
    buildings: tuple[Building, ...]
    facades: tuple[Facade, ...]
    figures: tuple[Figure, ...]
    """Trees and lamps, which are there on every visit."""


def make_town(seed: int, *, blocks: tuple[int, int] = (3, 2)) -> Town:
    """Lay out a town.

    Args:
        seed: another seed, another town.
        blocks: city blocks from west to east and from south to north. There is one more street each way.

    Raises:
        ValueError: fewer than one block either way.
    """
    if min(blocks) < 1:
        raise ValueError(f"a town needs at least one block each way, got blocks={blocks}")
    rng = np.random.default_rng(seed)
    spans_x, streets_ns = _lay_out(blocks[0], _BLOCK_M[0], rng)
    spans_y, streets_ew = _lay_out(blocks[1], _BLOCK_M[1], rng)
    width_m, depth_m = spans_x[-1][1], spans_y[-1][1]
    plots = [*_block_plots(spans_x, spans_y, rng), *_street_end_plots(streets_ns, streets_ew, width_m, depth_m, rng)]
    figures = [figure for plot in plots for figure in plot.trees]
    figures += _beside_streets(streets_ns, spans_y, rng, north_south=True)
    figures += _beside_streets(streets_ew, spans_x, rng, north_south=False)
    return Town(
        seed=seed,
        width_m=width_m,
        depth_m=depth_m,
        streets_ns=streets_ns,
        streets_ew=streets_ew,
        buildings=tuple(plot.building for plot in plots),
        facades=tuple(_facades(plots)),
        figures=tuple(figures),
    )


Span = tuple[float, float]


def _lay_out(blocks: int, sizes_m: Span, rng: np.random.Generator) -> tuple[list[Span], tuple[Street, ...]]:
    """Blocks and the streets between them along one axis, the outer ring included."""
    spans: list[Span] = [(0.0, _OUTER_BLOCK_M)]
    streets: list[Street] = []
    for index in range(blocks + 1):
        half_width = float(rng.uniform(6.3, 9.0))
        kerb = spans[-1][1]
        streets.append(
            Street(
                centre_m=kerb + half_width,
                half_width_m=half_width,
                grey=int(rng.integers(82, 122)),
                lined=bool(rng.random() < 0.7),
            )
        )
        start = kerb + 2 * half_width
        length = float(rng.uniform(*sizes_m)) if index < blocks else _OUTER_BLOCK_M
        spans.append((start, start + length))
    return spans, tuple(streets)


# ------------------------------------------------------------------------------------------------------------ plots


@dataclass(frozen=True, slots=True)
class _Plot:
    """A building, which of its sides are on a street and which is its rear, and the trees of its garden."""

    building: Building
    street_normals: tuple[tuple[int, int], ...]
    rear_normal: tuple[int, int]
    trees: tuple[Figure, ...] = ()


def _block_plots(spans_x: list[Span], spans_y: list[Span], rng: np.random.Generator) -> Iterator[_Plot]:
    for row, span_y in enumerate(spans_y):
        for column, span_x in enumerate(spans_x):
            on_street = {
                (0, -1): row > 0,
                (1, 0): column < len(spans_x) - 1,
                (0, 1): row < len(spans_y) - 1,
                (-1, 0): column > 0,
            }
            yield from _plots_around(span_x, span_y, on_street, rng)


def _plots_around(
    span_x: Span, span_y: Span, on_street: dict[tuple[int, int], bool], rng: np.random.Generator
) -> Iterator[_Plot]:
    """The rows of buildings along those sides of a block that are on a street; north and south rows take the corners."""
    (west, east), (south, north) = span_x, span_y
    ends = (on_street[-1, 0], on_street[1, 0])
    if on_street[0, -1]:
        yield from _row((west, south), (1, 0), (0, 1), east - west, ends, rng)
    if on_street[0, 1]:
        yield from _row((west, north), (1, 0), (0, -1), east - west, ends, rng)
    low = south + _BUILDING_DEPTH_M * on_street[0, -1]
    high = north - _BUILDING_DEPTH_M * on_street[0, 1]
    if on_street[-1, 0]:
        yield from _row((west, low), (0, 1), (1, 0), high - low, (False, False), rng)
    if on_street[1, 0]:
        yield from _row((east, low), (0, 1), (-1, 0), high - low, (False, False), rng)


def _row(
    start: Point,
    along: tuple[int, int],
    inward: tuple[int, int],
    length_m: float,
    corners: tuple[bool, bool],
    rng: np.random.Generator,
) -> Iterator[_Plot]:
    """Plots side by side. `corners`: whether the first and the last one also face a crossing street."""
    edges = _plot_edges(length_m, rng)
    front: tuple[int, int] = (-inward[0], -inward[1])
    for index, (low, high) in enumerate(pairwise(edges)):
        normals = [front]
        if index == 0 and corners[0]:
            normals.append((-along[0], -along[1]))
        if index == len(edges) - 2 and corners[1]:
            normals.append(along)
        corner = len(normals) > 1
        origin = (start[0] + along[0] * low, start[1] + along[1] * low)
        if not corner and rng.random() < 0.12:
            yield _garden(origin, along, inward, high - low, rng)
        else:
            setback = 0.0 if corner else float(rng.choice((0.0, 0.0, 0.3, 0.8)))
            style = draw_style(rng)
            building = _box(origin, along, inward, high - low, setback, _BUILDING_DEPTH_M, style)
            yield _Plot(building, tuple(normals), inward)


def _plot_edges(length_m: float, rng: np.random.Generator) -> list[float]:
    """Cut a row into plots of 8 to 15 m, stretched to fill it."""
    widths: list[float] = []
    while sum(widths) < length_m - 5:
        widths.append(float(rng.uniform(8, 15)))
    edges = np.concatenate([[0.0], np.cumsum(widths)])
    return [float(edge) for edge in edges * (length_m / edges[-1])]


def _garden(origin: Point, along: tuple[int, int], inward: tuple[int, int], width_m: float, rng: np.random.Generator) -> _Plot:
    building = _box(origin, along, inward, width_m, 0.0, 0.5, draw_hedge(rng))
    trees = []
    for _ in range(int(rng.integers(1, 4))):
        side, back = float(rng.uniform(1.5, width_m - 1.5)), float(rng.uniform(2.5, 9.0))
        x = origin[0] + along[0] * side + inward[0] * back
        y = origin[1] + along[1] * side + inward[1] * back
        trees.append(_tree(x, y, rng))
    front = (-inward[0], -inward[1])
    return _Plot(building, (front,), inward, tuple(trees))


def _box(
    origin: Point,
    along: tuple[int, int],
    inward: tuple[int, int],
    width_m: float,
    front_m: float,
    back_m: float,
    style: BuildingStyle,
) -> Building:
    xs = (origin[0] + inward[0] * front_m, origin[0] + inward[0] * back_m + along[0] * width_m)
    ys = (origin[1] + inward[1] * front_m, origin[1] + inward[1] * back_m + along[1] * width_m)
    return Building(west_m=min(xs), east_m=max(xs), south_m=min(ys), north_m=max(ys), style=style)


def _street_end_plots(
    streets_ns: tuple[Street, ...], streets_ew: tuple[Street, ...], width_m: float, depth_m: float, rng: np.random.Generator
) -> Iterator[_Plot]:
    """A building across each end of each street."""
    for street in streets_ns:
        west = street.centre_m - street.half_width_m
        for start, inward in (((west, 0.0), (0, -1)), ((west, depth_m), (0, 1))):
            yield _street_end(start, (1, 0), inward, street, rng)
    for street in streets_ew:
        south = street.centre_m - street.half_width_m
        for start, inward in (((0.0, south), (-1, 0)), ((width_m, south), (1, 0))):
            yield _street_end(start, (0, 1), inward, street, rng)


def _street_end(start: Point, along: tuple[int, int], inward: tuple[int, int], street: Street, rng: np.random.Generator) -> _Plot:
    style = draw_style(rng, floors=(3, 5))
    building = _box(start, along, inward, 2 * street.half_width_m, 0.0, _BUILDING_DEPTH_M, style)
    return _Plot(building, ((-inward[0], -inward[1]),), inward)


def _facades(plots: list[_Plot]) -> Iterator[Facade]:
    for building_id, plot in enumerate(plots):
        box = plot.building
        corners = {
            (0, -1): ((box.west_m, box.south_m), (box.east_m, box.south_m)),
            (1, 0): ((box.east_m, box.south_m), (box.east_m, box.north_m)),
            (0, 1): ((box.east_m, box.north_m), (box.west_m, box.north_m)),
            (-1, 0): ((box.west_m, box.north_m), (box.west_m, box.south_m)),
        }
        for index, normal in enumerate(_NORMALS):
            inner = Face.REAR if normal == plot.rear_normal else Face.SIDE
            yield Facade(
                facade_id=building_id * len(_NORMALS) + index,
                building_id=building_id,
                start_m=corners[normal][0],
                end_m=corners[normal][1],
                face=Face.STREET if normal in plot.street_normals else inner,
                style=box.style,
            )


# ---------------------------------------------------------------------------------------------------------- figures


def _tree(x_m: float, y_m: float, rng: np.random.Generator) -> Figure:
    return Figure(FigureKind.TREE, x_m, y_m, float(rng.uniform(4.5, 8.5)), int(rng.integers(1 << 16)))


def _beside_streets(
    streets: tuple[Street, ...], spans: list[Span], rng: np.random.Generator, *, north_south: bool
) -> list[Figure]:
    """Lamps along one pavement of each street and, in two of five streets, trees along the other."""
    figures: list[Figure] = []
    for street in streets:
        side = 1 if rng.random() < 0.5 else -1
        beside_kerb = side * (street.road_half_width_m + 0.45)
        planted = rng.random() < 0.4
        for low, high in spans:
            for along in np.arange(low + 6, high - 4, 26.0):
                x, y = _across(street.centre_m + beside_kerb, float(along), north_south)
                figures.append(Figure(FigureKind.LAMP, x, y, 5.5, 0))
            if planted:
                for along in np.arange(low + 5, high - 4, 13.0):
                    x, y = _across(street.centre_m - beside_kerb, float(along + rng.uniform(-2, 2)), north_south)
                    figures.append(_tree(x, y, rng))
    return figures


def _across(across_m: float, along_m: float, north_south: bool) -> Point:
    return (across_m, along_m) if north_south else (along_m, across_m)
