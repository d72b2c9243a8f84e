"""Photos ▶ those to train on and those to validate with.

Held out are whole places, blocks of a town or drives, and no photo of a place that is trained on.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float64

from pipelines.train.layouts import metres
from pipelines.train.photos import NEAR_DEG, NEAR_FRAMES, NEAR_M, TrainingPhoto

BLOCK_M: Final = 100.0
"""Side of a block of a town: what is held out together of photos with positions."""

EARTH_RADIUS_M: Final = 6_371_009.0

By = Literal["places", "drives"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOutConfig:
    """Which photos are kept for validation."""

    share: float = 0.1
    """Of the photos of each kind, in whole places, blocks or drives; at least one. Single photos, of which nobody knows what
    shows the same place, are never held out. 0: no validation, and the last weights are kept."""

    by: By = "places"
    """`places`: labelled places, blocks of 100 m, drives of photos that have only a frame number. `drives`: whole
    drives, of whatever photos were taken on one."""

    max_photos: int = 1000
    """Stop holding out at this many photos of a kind. All of them are encoded and searched after each epoch."""

    max_queries: int = 300
    """Look up at most this many of them. More: a steadier recall, in proportion to the time."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"the share to validate with must be from 0 to below 1, got {self.share}")
        if self.max_photos < 2 or self.max_queries < 1:
            raise ValueError(f"max_photos must be at least 2 and max_queries 1, got {self.max_photos} and {self.max_queries}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Row numbers of photos, ascending. A photo in neither list shows a place of the validation."""

    training: list[int]
    validation: list[int]
    notes: list[str]


def hold_out(photos: Sequence[TrainingPhoto], config: HoldOutConfig, *, seed: int) -> Split:
    """Split photos.

    Args:
        photos: all of them.
        config: which to hold out.
        seed: another seed, another choice.
    """
    units: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, photo in enumerate(photos):
        kind, unit = _unit(photo, config.by)
        units[kind][unit].append(row)
    held: set[int] = set()
    notes: list[str] = []
    if config.share:
        for kind, members in units.items():
            if kind == "photo":
                continue  # nobody knows what shows the same place, so it would be held out for nothing
            if len(members) == 1:
                notes.append(
                    f"nothing of the {len(photos):,} photos is held out by {kind}: there is only one, {next(iter(members))}"
                )
            else:
                held |= _chosen(members, config, seed)
    left_out = _shown_in(photos, held)
    training = [row for row in range(len(photos)) if row not in held and row not in left_out]
    if left_out:
        notes.append(f"{len(left_out):,} photos are left out: they show places that are held out for validation")
    return Split(training=training, validation=sorted(held)[: len(units) * config.max_photos], notes=notes)


def same_place(photos: Sequence[TrainingPhoto], queries: Sequence[int]) -> Bool[np.ndarray, "queries n"]:
    """Say for some photos which of all show the same place. Nobody knows it of a single photo; no photo is its own answer."""
    same = np.zeros((len(queries), len(photos)), bool)
    known = _Columns.of(photos)
    for at, row in enumerate(queries):
        photo = photos[row]
        if photo.kind == "label":
            same[at] = (known.kind == "label") & (known.place == str(photo.place))
        elif photo.kind == "position":
            near = np.linalg.norm(known.earth_m - known.earth_m[row], axis=1) <= NEAR_M
            same[at] = (known.kind == "position") & near & ~_looks_elsewhere(known.heading_deg, known.heading_deg[row])
        elif photo.kind == "frame":
            near = abs(known.frame - photo.frame) <= NEAR_FRAMES
            same[at] = (known.kind == "frame") & (known.drive == str(photo.drive)) & near
        same[at, row] = False
    return same


@dataclass(frozen=True, kw_only=True, slots=True)
class _Columns:
    """What is known of photos, as arrays."""

    kind: np.ndarray
    place: np.ndarray
    drive: np.ndarray
    frame: np.ndarray
    heading_deg: Float64[np.ndarray, " n"]
    """NaN where unknown."""
    earth_m: Float64[np.ndarray, "n 3"]

    @classmethod
    def of(cls, photos: Sequence[TrainingPhoto]) -> "_Columns":
        return cls(
            kind=np.array([photo.kind for photo in photos]),
            place=np.array([str(photo.place) for photo in photos]),
            drive=np.array([str(photo.drive) for photo in photos]),
            frame=np.array([photo.frame for photo in photos]),
            heading_deg=np.array([np.nan if photo.heading_deg is None else photo.heading_deg for photo in photos]),
            earth_m=np.array([_on_earth_m(photo) for photo in photos]).reshape(-1, 3),
        )


def _unit(photo: TrainingPhoto, by: By) -> tuple[str, str]:
    """What is held out together with a photo."""
    if photo.drive is not None and (by == "drives" or photo.kind == "frame"):
        return "drive", photo.drive
    if photo.kind == "label":
        return "place", str(photo.place)
    if photo.kind == "position":
        north_m, east_m = metres(photo)
        return "block", f"{int(north_m // BLOCK_M)}, {int(east_m // BLOCK_M)}"
    return "photo", f"{photo.root} {photo.uri}"


def _chosen(units: dict[str, list[int]], config: HoldOutConfig, seed: int) -> set[int]:
    """Units in order of a hash until they hold the share of the photos: at least one, not all, and not too many photos."""
    order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed} {unit}".encode()).digest())
    wanted = config.share * sum(len(members) for members in units.values())
    chosen: set[int] = set()
    for unit in order[:-1]:
        if chosen and (len(chosen) >= wanted or len(chosen) + len(units[unit]) > config.max_photos):
            break
        chosen.update(units[unit])
    return chosen


def _shown_in(photos: Sequence[TrainingPhoto], held: set[int]) -> set[int]:
    """Photos that are not held out but show a place that is."""
    labels = {photos[row].place for row in held if photos[row].kind == "label"}
    by_label = {row for row, photo in enumerate(photos) if row not in held and photo.kind == "label" and photo.place in labels}
    grid: dict[tuple[int, int, int], list[tuple[float, float, float]]] = defaultdict(list)
    for row in held:
        if photos[row].kind == "position":
            place = _on_earth_m(photos[row])
            grid[_square(place)].append(place)
    by_position = {
        row
        for row, photo in enumerate(photos)
        if row not in held and photo.kind == "position" and _any_near(_on_earth_m(photo), grid)
    }
    return by_label | by_position


def _square(place: tuple[float, float, float]) -> tuple[int, int, int]:
    x, y, z = (int(value // NEAR_M) for value in place)
    return x, y, z


def _any_near(place: tuple[float, float, float], grid: dict[tuple[int, int, int], list[tuple[float, float, float]]]) -> bool:
    centre = _square(place)
    around = (grid.get((centre[0] + x, centre[1] + y, centre[2] + z), []) for x, y, z in product((-1, 0, 1), repeat=3))
    return any(math.dist(place, other) <= NEAR_M for cube in around for other in cube)


def _on_earth_m(photo: TrainingPhoto) -> tuple[float, float, float]:
    """Metres from the middle of a round Earth: near points are near, also at the poles and the date line. NaN: not known."""
    if photo.lat_deg is None or photo.lon_deg is None:
        return math.nan, math.nan, math.nan
    lat, lon = math.radians(photo.lat_deg), math.radians(photo.lon_deg)
    return (
        EARTH_RADIUS_M * math.cos(lat) * math.cos(lon),
        EARTH_RADIUS_M * math.cos(lat) * math.sin(lon),
        EARTH_RADIUS_M * math.sin(lat),
    )


def _looks_elsewhere(heading_deg: Float64[np.ndarray, " n"], own_deg: float) -> Bool[np.ndarray, " n"]:
    """Whether photos are known to look another way."""
    turn = abs(heading_deg - own_deg) % 360
    return np.minimum(turn, 360 - turn) > NEAR_DEG
