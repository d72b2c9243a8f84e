"""What stands in a street on one visit and is gone on the next: parked cars and passers-by."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.catalog.sample_city.facades import Rgb
from pipelines.catalog.sample_city.town import PAVEMENT_M, Figure, FigureKind, Street, Town

_CAR_PAINTS: Final[tuple[Rgb, ...]] = (
    (32, 34, 40), (204, 206, 208), (236, 236, 232), (150, 28, 32), (30, 58, 120), (92, 98, 104), (58, 84, 62), (190, 150, 60),
)  # fmt: skip
_CAR_MODELS: Final = ((3.7, 1.5), (4.2, 1.45), (4.5, 1.42), (4.4, 1.62), (4.9, 2.05))  # length and height; the last is a van
_PARKING_BAY_M: Final = 6.0
_CROSSING_CLEAR_M: Final = 7.0


@dataclass(frozen=True, slots=True)
class Car:
    """A parked car."""

    x_m: float
    y_m: float
    heading_deg: float
    """Where its bonnet points, clockwise from north."""
    length_m: float
    height_m: float
    rgb: Rgb


@dataclass(frozen=True, kw_only=True, slots=True)
class StreetLife:
    """Everything that may stand in the way on one visit."""

    cars: tuple[Car, ...] = ()
    people: tuple[Figure, ...] = ()


def draw_street_life(town: Town, rng: np.random.Generator, *, parked: float = 0.3, people_per_100_m: float = 6.0) -> StreetLife:
    """Choose who and what is in the streets on one visit.

    Args:
        town: where.
        rng: decides everything; another generator, another visit.
        parked: share of the parking bays that are taken.
        people_per_100_m: passers-by on each pavement.
    """
    cars: list[Car] = []
    people: list[Figure] = []
    for streets, crossing, length_m, north_south in (
        (town.streets_ns, town.streets_ew, town.depth_m, True),
        (town.streets_ew, town.streets_ns, town.width_m, False),
    ):
        for street in streets:
            for side in (-1, 1):
                cars += _park(street, crossing, length_m, side, parked, rng, north_south=north_south)
                people += _walk(street, length_m, side, people_per_100_m, rng, north_south=north_south)
    return StreetLife(cars=tuple(cars), people=tuple(people))


def _park(
    street: Street,
    crossing: tuple[Street, ...],
    length_m: float,
    side: int,
    parked: float,
    rng: np.random.Generator,
    *,
    north_south: bool,
) -> list[Car]:
    """Cars at one kerb, none near a crossing."""
    cars = []
    across = street.centre_m + side * (street.road_half_width_m - 1.1)
    for bay in np.arange(4.0, length_m - 4, _PARKING_BAY_M):
        along = float(bay + rng.uniform(-0.4, 0.4))
        clear = all(abs(along - other.centre_m) > other.half_width_m + _CROSSING_CLEAR_M for other in crossing)
        if rng.random() < parked and clear:
            x, y = (across, along) if north_south else (along, across)
            heading = (0.0 if north_south else 90.0) + (180.0 if (side < 0) == north_south else 0.0)
            cars.append(_car(x, y, heading, rng))
    return cars


def _car(x_m: float, y_m: float, heading_deg: float, rng: np.random.Generator) -> Car:
    length, height = _CAR_MODELS[int(rng.integers(len(_CAR_MODELS)))]
    rgb = _CAR_PAINTS[int(rng.integers(len(_CAR_PAINTS)))]
    return Car(x_m, y_m, heading_deg + float(rng.uniform(-2, 2)), length, height, rgb)


def _walk(
    street: Street, length_m: float, side: int, per_100_m: float, rng: np.random.Generator, *, north_south: bool
) -> list[Figure]:
    people = []
    for along in rng.uniform(0, length_m, int(rng.poisson(per_100_m * length_m / 100))):
        across = street.centre_m + side * (street.half_width_m - float(rng.uniform(0.4, PAVEMENT_M - 0.3)))
        x, y = (across, float(along)) if north_south else (float(along), across)
        people.append(Figure(FigureKind.PERSON, x, y, float(rng.uniform(1.5, 1.9)), int(rng.integers(1 << 16))))
    return people
