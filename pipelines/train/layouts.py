"""Photos ▶ places to train on: which photos show the same place, and which are far enough apart to be different ones.

Photos with a position or a frame number lie along streets without borders between places. Cells of about ten metres (or two
frames) are places, and what lies in the gap between two cells is left out, so that no two places are nearly the same. With each
epoch the cells move on by half their pitch, so that every photo is trained on in one epoch or another.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from pipelines.train.photos import TrainingPhoto

LAYOUTS: Final = 4
"""Positions of the cells: moved by half a pitch to the east, to the north, both or not at all; frames by one each time."""

PITCH_FRAMES: Final = 4
"""Two frames are a place, the next two a gap."""

EARTH_M_PER_DEG: Final = 111_320.0
"""Metres in a degree of latitude."""

Place = tuple[int, ...]
"""Row numbers of the photos of a place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellConfig:
    """How positions become places."""

    side_m: float = 10.0
    """Side of a cell. Larger: more photos a place, seen from further apart."""

    gap_m: float = 5.0
    """Between two cells. Larger: places differ more, and fewer of the photos are used in an epoch."""

    heading_deg: float = 60.0
    """Photos of a cell that look into different sectors of this width are different places, where headings are known."""

    def __post_init__(self) -> None:
        if self.side_m <= 0 or self.gap_m < 0:
            raise ValueError(f"side_m must be above 0 and gap_m not below, got {self.side_m} and {self.gap_m}")
        if not 0 < self.heading_deg <= 360:
            raise ValueError(f"heading_deg must be above 0 and at most 360, got {self.heading_deg}")


def places_of(photos: Sequence[TrainingPhoto], rows: Sequence[int], config: CellConfig) -> tuple[tuple[Place, ...], ...]:
    """Arrange photos into places.

    Args:
        photos: all of a training set.
        rows: those to arrange.
        config: for photos with positions.

    Returns:
        `LAYOUTS` arrangements, for one epoch after the other. Labelled and single photos are the same in each. Places are in an
        order that depends on the photos alone.
    """
    return tuple(_layout(photos, rows, config, number) for number in range(LAYOUTS))


def _layout(photos: Sequence[TrainingPhoto], rows: Sequence[int], config: CellConfig, number: int) -> tuple[Place, ...]:
    places: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        key = _place_key(photos[row], config, number)
        if key is not None:
            places[key].append(row)
    return tuple(tuple(members) for members in places.values())


def _place_key(photo: TrainingPhoto, config: CellConfig, number: int) -> Hashable | None:
    """What the photos of a place share; None in a gap."""
    if photo.kind == "label":
        return "label", photo.place
    if photo.kind == "position":
        return _cell(photo, config, number)
    if photo.kind == "frame":
        place, within = divmod(photo.frame + number, PITCH_FRAMES)
        return ("frame", photo.drive, place) if within < PITCH_FRAMES // 2 else None
    return "single", photo.root, photo.uri


def _cell(photo: TrainingPhoto, config: CellConfig, number: int) -> Hashable | None:
    pitch_m = config.side_m + config.gap_m
    shift_m = pitch_m / 2
    north_m, east_m = metres(photo)
    row, north_within = divmod(north_m + shift_m * (number // 2), pitch_m)
    column, east_within = divmod(east_m + shift_m * (number % 2), pitch_m)
    if north_within >= config.side_m or east_within >= config.side_m:
        return None
    return "cell", int(row), int(column), _sector(photo, config, number)


def _sector(photo: TrainingPhoto, config: CellConfig, number: int) -> int | None:
    """Sectors turn with each layout, so that headings at a border are not always apart; in the first, one looks north."""
    if photo.heading_deg is None:
        return None
    turn_deg = config.heading_deg * (0.5 + number / LAYOUTS)
    return int((photo.heading_deg + turn_deg) % 360 // config.heading_deg)


def metres(photo: TrainingPhoto) -> tuple[float, float]:
    """North of the equator and east of Greenwich, along the photo's own circle of latitude, which is held for a kilometre.

    So neighbouring cells fit together everywhere but at the borders between such bands.
    """
    assert photo.lat_deg is not None
    assert photo.lon_deg is not None
    north_m = photo.lat_deg * EARTH_M_PER_DEG
    band_lat_deg = north_m // 1000 * 1000 / EARTH_M_PER_DEG
    return north_m, photo.lon_deg * EARTH_M_PER_DEG * math.cos(math.radians(band_lat_deg))
