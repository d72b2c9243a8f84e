"""What is known of where and when photos were taken before they are looked at: then only that part of a map is searched.

Answers are those that a search of the whole map would give without the photos that cannot match: no cell of the index is left
out, and photos that were taken down stay away. Segments that lie elsewhere are not even opened.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import shapely
from jaxtyping import Bool

from pipelines.catalog.boxes import inside, meet, parse_box
from pipelines.locate.position import distances_m
from schemas.manifest import BBox

DEFAULT_WITHIN_M: Final = 1000.0

METRES_PER_DEGREE: Final = 110_500.0
"""Of latitude, where a degree is shortest."""

_DISTANCE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(m|km|)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """Which photos of a map can match at all: those that satisfy everything that is given."""

    near: tuple[float, float] | None = None
    """Latitude, longitude in degrees."""
    within_m: float = DEFAULT_WITHIN_M
    """Of `near`, on the ellipsoid."""
    boxes: tuple[BBox, ...] = ()
    """In one of them, edges included."""
    area: bytes | None = None
    """Well-known binary of polygons in longitude and latitude; edges included."""
    taken_from: datetime | None = None
    taken_until: datetime | None = None
    """Both ends included. Photos of unknown time do not match then."""

    def __post_init__(self) -> None:
        if self.near is not None and not (-90 <= self.near[0] <= 90 and -180 <= self.near[1] <= 180):
            raise ValueError(f"a position is latitude,longitude in degrees, got {self.near[0]},{self.near[1]}")
        if not 0 < self.within_m < float("inf"):
            raise ValueError(f"a distance is positive, got {self.within_m} m")
        if self.taken_from and self.taken_until and self.taken_from > self.taken_until:
            raise ValueError(f"nothing lies between {self.taken_from} and {self.taken_until}")

    def touches(self, bbox: BBox) -> bool:
        """Tell whether a photo in a box can match; never no where one can."""
        return (
            (self.near is None or meet(_box_round(self.near, self.within_m), bbox))
            and (not self.boxes or any(meet(box, bbox) for box in self.boxes))
            and (self.area is None or bool(shapely.intersects(shapely.from_wkb(self.area), shapely.box(*bbox))))
        )

    def matches(self, images: pa.Table) -> Bool[np.ndarray, " n"]:
        """Mark the photos that match.

        Args:
            images: with columns lat_deg, lon_deg and taken_at.
        """
        lat, lon = images["lat_deg"].to_numpy(), images["lon_deg"].to_numpy()
        found = np.ones(len(lat), bool)
        if self.near is not None:
            found &= distances_m(np.full(len(lat), self.near[0]), np.full(len(lon), self.near[1]), lat, lon) <= self.within_m
        if self.boxes:
            found &= np.logical_or.reduce([inside(lon, lat, box) for box in self.boxes])
        if self.area is not None:
            found &= shapely.intersects_xy(shapely.from_wkb(self.area), lon, lat)
        if self.taken_from or self.taken_until:
            taken = images["taken_at"].to_numpy()  # datetime64 in UTC; NaT compares as false
            found &= ~np.isnat(taken)
            found &= taken >= _naive(self.taken_from) if self.taken_from else True
            found &= taken <= _naive(self.taken_until) if self.taken_until else True
        return found


def prior_of(
    *,
    near: str | None,
    within: str | None,
    bbox: Sequence[str],
    area: str | None,
    taken_from: str | None,
    taken_until: str | None,
) -> Prior | None:
    """Read what a command line says; None: nothing.

    Args:
        near: latitude,longitude.
        within: as 800m or 2km.
        bbox: each west,south,east,north.
        area: a GeoJSON file of polygons.
        taken_from: ISO 8601, UTC where it does not say.
        taken_until: the same; a day alone is meant to its end.

    Raises:
        ValueError: something cannot be read.
    """
    if within and not near:
        raise ValueError("a distance needs a position to start from: --near LAT,LON")
    prior = Prior(
        near=_position(near) if near else None,
        within_m=_distance_m(within) if within else DEFAULT_WITHIN_M,
        boxes=tuple(parse_box(text) for text in bbox),
        area=polygons_of(Path(area)) if area else None,
        taken_from=_time(taken_from, end=False) if taken_from else None,
        taken_until=_time(taken_until, end=True) if taken_until else None,
    )
    return None if prior == Prior() else prior


def polygons_of(file: Path) -> bytes:
    """Read the polygons of a GeoJSON file as well-known binary, in longitude and latitude.

    Raises:
        ValueError: there are none, or it cannot be read.
    """
    try:
        shape = shapely.from_geojson(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, shapely.errors.GEOSException) as error:
        raise ValueError(f"{file}: needed GeoJSON with polygons, found {error}") from error
    parts = [part for part in shapely.get_parts(shapely.get_parts(shape)) if part.geom_type == "Polygon" and not part.is_empty]
    if not parts:
        raise ValueError(f"{file}: needed GeoJSON with polygons, found a {shape.geom_type} without any")
    whole = shapely.union_all(shapely.make_valid(np.array(parts)))
    west, south, east, north = shapely.bounds(whole).tolist()
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise ValueError(
            f"{file}: needed longitude and latitude in degrees, found numbers from {west} to {east}, {south} to {north}"
        )
    return bytes(shapely.to_wkb(whole))


def _position(text: str) -> tuple[float, float]:
    try:
        lat, lon = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"a position is latitude,longitude in degrees, got {text!r}") from error
    return lat, lon


def _distance_m(text: str) -> float:
    if not (found := _DISTANCE.fullmatch(text.strip())):
        raise ValueError(f"a distance is a number with m or km behind it, as 800m, got {text!r}")
    return float(found[1]) * (1000 if found[2] == "km" else 1)


def _time(text: str, *, end: bool) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"a time is written as 2026-06-01 or 2026-06-01T14:30:00Z, got {text!r}") from error
    if end and len(text) <= len("2026-06-01"):
        time = time.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _naive(time: datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "us")


def _box_round(near: tuple[float, float], within_m: float) -> BBox:
    """Give a box that holds everything within a distance, and a little more."""
    lat, lon = near
    half = within_m / METRES_PER_DEGREE
    south, north = max(-90.0, lat - half), min(90.0, lat + half)
    narrowest = np.cos(np.radians(max(abs(south), abs(north))))
    if south == -90 or north == 90 or half >= 179 * narrowest:
        return -180.0, south, 180.0, north
    east = half / float(narrowest)
    return (lon - east + 180) % 360 - 180, south, (lon + east + 180) % 360 - 180, north
