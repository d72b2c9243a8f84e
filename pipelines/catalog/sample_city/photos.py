"""Photograph the sample city twice and write the photos as JPEG files with EXIF.

`database/` is what a survey car takes: it drives every mapped street both ways and takes two photos at each place, one
ahead and one to the left, across the street. `queries/` is what others take on four later visits, in other weather, with
other people and cars in the way, a few steps aside and looking a little elsewhere. Some queries are from a street that the
car never drove; nothing in their names tells, so "don't know" is the right answer to them.

EXIF holds the true position and heading in both folders: it is the truth that answers are scored against. Used by
`folio demo`, tests and, through `plan_sample_city` and `Renderer`, by training.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import numpy as np
import pyproj
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from pipelines.catalog.sample_city.camera import CameraConfig, Pose
from pipelines.catalog.sample_city.conditions import Conditions, dusk, fair, overcast, rain, sun_position, sunny
from pipelines.catalog.sample_city.occluders import Car, StreetLife, draw_street_life
from pipelines.catalog.sample_city.render import Renderer
from pipelines.catalog.sample_city.town import Figure, Town, make_town
from schemas.errors import CatalogError

ORIGIN_LAT_DEG: Final = 54.70
"""The town's south-west corner lies on the Dogger Bank in the North Sea: land until eight thousand years ago, no town since."""
ORIGIN_LON_DEG: Final = 2.70

_SUMMER_TIME: Final = timezone(timedelta(hours=1))
_SPACING_M: Final = 9.5  # a town is made large enough that places are at least this far apart on average
_MEAN_BLOCK_M: Final = (87.0, 69.0)  # with one street, east-west and north-south
_LANE_M: Final = 1.3  # from the middle of the street, on the right
_SURVEY_HEIGHT_M: Final = 2.3
_SURVEY_CAMERA: Final = CameraConfig()
_QUERY_CAMERA: Final = CameraConfig(fov_deg=74.0)
_UNMAPPED_CLEAR_M: Final = 35.0
_JPEG_QUALITY: Final = 88
_VIEWS: Final = (("ahead", 0.0), ("left", -90.0))

_SURVEY_VISITS: Final = (
    (datetime(2025, 6, 14, 9, 30, tzinfo=_SUMMER_TIME), sunny),
    (datetime(2025, 6, 14, 13, 40, tzinfo=_SUMMER_TIME), fair),
)
_QUERY_VISITS: Final = (
    (datetime(2025, 7, 22, 17, 20, tzinfo=_SUMMER_TIME), sunny),
    (datetime(2025, 8, 30, 19, 10, tzinfo=_SUMMER_TIME), dusk),
    (datetime(2025, 9, 3, 12, 10, tzinfo=_SUMMER_TIME), overcast),
    (datetime(2025, 10, 8, 10, 5, tzinfo=_SUMMER_TIME), rain),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPhoto:
    """One photo before it is taken."""

    name: str
    """Path below the sample city's directory."""
    pose: Pose
    camera: CameraConfig
    conditions: Conditions
    taken_at: datetime
    visit: int
    """Index into `SampleCity.street_life`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleCity:
    """A town and the photos to take of it."""

    seed: int
    town: Town
    street_life: tuple[StreetLife, ...]
    """Cars and people of each visit."""
    database: tuple[PlannedPhoto, ...]
    queries: tuple[PlannedPhoto, ...]


# --------------------------------------------------------------------------------------------------------- planning


def plan_sample_city(*, seed: int = 1, places: int = 90, queries: int = 120, unmapped: int = 8) -> SampleCity:
    """Decide what to photograph, without taking a photo.

    Args:
        seed: another seed, another town.
        places: where the survey car stops; each gives four database photos, two in either direction. The town grows with it.
        queries: photos of the later visits, `unmapped` included.
        unmapped: queries from a street without database photos.

    Raises:
        ValueError: fewer than one place or query, or more unmapped queries than queries.
    """
    if places < 1 or queries < 1 or not 0 <= unmapped <= queries:
        raise ValueError(
            f"places and queries must be at least 1 and unmapped from 0 to queries, got {places=}, {queries=}, {unmapped=}"
        )
    town = make_town(seed, blocks=_blocks_for(places))
    rng = np.random.default_rng([seed, 3])
    visits = len(_SURVEY_VISITS) + len(_QUERY_VISITS)
    street_life = tuple(draw_street_life(town, rng) for _ in range(visits))
    stops = _stops(town, places)
    database = tuple(_survey(stops))
    return SampleCity(
        seed=seed,
        town=town,
        street_life=street_life,
        database=database,
        queries=tuple(_query_photos(town, stops, database, street_life, queries, unmapped, rng)),
    )


@dataclass(frozen=True, slots=True)
class _Stop:
    """A place in the middle of a street and the direction the street is driven in first."""

    x_m: float
    y_m: float
    heading_deg: float

    def pose(self, *, ahead_m: float, right_m: float, height_m: float, turn_deg: float, onward: bool) -> Pose:
        """Stand near the place: `onward` in the first direction, otherwise in the opposite one."""
        heading_deg = self.heading_deg if onward else self.heading_deg + 180
        heading = np.deg2rad(heading_deg)
        return Pose(
            x_m=float(self.x_m + ahead_m * np.sin(heading) + right_m * np.cos(heading)),
            y_m=float(self.y_m + ahead_m * np.cos(heading) - right_m * np.sin(heading)),
            height_m=height_m,
            heading_deg=float((heading_deg + turn_deg) % 360),
        )


def _blocks_for(places: int) -> tuple[int, int]:
    """The smallest town whose mapped streets are long enough. The easternmost street is never mapped."""
    columns, rows = 2, 1
    while True:
        north_south = columns * rows * _MEAN_BLOCK_M[1]
        east_west = (rows + 1) * (columns - 1) * _MEAN_BLOCK_M[0]
        if north_south + east_west >= places * _SPACING_M:
            return columns, rows
        columns, rows = (columns, rows + 1) if columns > rows + 1 else (columns + 1, rows)


def _stops(town: Town, places: int) -> list[_Stop]:
    """Places at equal distances along all mapped streets, one street after the other, back and forth."""
    mapped = town.streets_ns[:-1]
    south, north = town.streets_ew[0].centre_m, town.streets_ew[-1].centre_m
    west, east = mapped[0].centre_m, mapped[-1].centre_m
    legs = [((street.centre_m, south), (street.centre_m, north)) for street in mapped]
    legs += [((west, street.centre_m), (east, street.centre_m)) for street in town.streets_ew]
    legs = [leg if index % 2 == 0 else (leg[1], leg[0]) for index, leg in enumerate(legs)]
    lengths = [abs(end[0] - start[0]) + abs(end[1] - start[1]) for start, end in legs]
    leg_starts = np.concatenate([[0.0], np.cumsum(lengths)])
    stops = []
    for travelled in (np.arange(places) + 0.5) * leg_starts[-1] / places:
        leg = int(np.searchsorted(leg_starts, travelled, side="right")) - 1
        (x0, y0), (x1, y1) = legs[leg]
        share = (travelled - leg_starts[leg]) / lengths[leg]
        heading = float(np.rad2deg(np.arctan2(x1 - x0, y1 - y0)) % 360)
        stops.append(_Stop(float(x0 + share * (x1 - x0)), float(y0 + share * (y1 - y0)), heading))
    return stops


def _survey(stops: list[_Stop]) -> Iterator[PlannedPhoto]:
    """Both drives of the survey car: all streets, then all of them back."""
    for visit, (begin, weather) in enumerate(_SURVEY_VISITS):
        conditions = weather(sun_position(begin, lat_deg=ORIGIN_LAT_DEG, lon_deg=ORIGIN_LON_DEG))
        for frame, stop in enumerate(stops if visit == 0 else reversed(stops)):
            for view, turn_deg in _VIEWS:
                yield PlannedPhoto(
                    name=f"database/drive{visit + 1}-{frame + 1:04d}-{view}.jpg",
                    pose=stop.pose(ahead_m=0.0, right_m=_LANE_M, height_m=_SURVEY_HEIGHT_M, turn_deg=turn_deg, onward=visit == 0),
                    camera=_SURVEY_CAMERA,
                    conditions=conditions,
                    taken_at=begin + timedelta(seconds=2 * frame),
                    visit=visit,
                )


def _query_photos(
    town: Town,
    stops: list[_Stop],
    database: Sequence[PlannedPhoto],
    street_life: tuple[StreetLife, ...],
    queries: int,
    unmapped: int,
    rng: np.random.Generator,
) -> Iterator[PlannedPhoto]:
    is_unmapped = rng.permutation(queries) < unmapped
    order = [int(stop) for _ in range(-(-queries // len(stops))) for stop in rng.permutation(len(stops))]
    unmapped_stops = _unmapped_stops(town, database)
    obstacles = [_Obstacles(town, life) for life in street_life]
    for index in range(queries):
        visit = index * len(_QUERY_VISITS) // queries
        stop = unmapped_stops[int(rng.integers(len(unmapped_stops)))] if is_unmapped[index] else stops[order[index]]
        begin, weather = _QUERY_VISITS[visit]
        yield PlannedPhoto(
            name=f"queries/visit{visit + 1}-{index + 1:04d}.jpg",
            pose=_pose_near(stop, obstacles[len(_SURVEY_VISITS) + visit], rng),
            camera=_QUERY_CAMERA,
            conditions=weather(sun_position(begin, lat_deg=ORIGIN_LAT_DEG, lon_deg=ORIGIN_LON_DEG)),
            taken_at=begin + timedelta(seconds=15 * index),
            visit=len(_SURVEY_VISITS) + visit,
        )


def _unmapped_stops(town: Town, database: Sequence[PlannedPhoto]) -> list[_Stop]:
    """Places of the easternmost street that are far from every database photo."""
    surveyed = np.array([(photo.pose.x_m, photo.pose.y_m) for photo in database])
    x = town.streets_ns[-1].centre_m
    stops = [_Stop(x, float(y), 0.0) for y in np.arange(town.streets_ew[0].centre_m, town.streets_ew[-1].centre_m, 4.0)]
    return [stop for stop in stops if np.hypot(*(surveyed - (stop.x_m, stop.y_m)).T).min() > _UNMAPPED_CLEAR_M]


class _Obstacles:
    """What a photographer cannot stand in on one visit."""

    def __init__(self, town: Town, life: StreetLife) -> None:
        self._things: list[Car | Figure] = [*life.cars, *life.people, *town.figures]
        self._places = np.array([(thing.x_m, thing.y_m) for thing in self._things]).reshape(-1, 2)

    def near(self, stop: _Stop) -> list[Car | Figure]:
        """Those within 12 m."""
        distances = np.hypot(*(self._places - (stop.x_m, stop.y_m)).T)
        return [self._things[index] for index in np.flatnonzero(distances < 12).tolist()]


def _pose_near(stop: _Stop, obstacles: _Obstacles, rng: np.random.Generator) -> Pose:
    """Up to 4 m along the street, 3 m beside the lane and 12° off, where no car, tree, lamp or person is."""
    near = obstacles.near(stop)
    onward, turn_deg = bool(rng.random() < 0.5), _VIEWS[int(rng.integers(len(_VIEWS)))][1]
    while True:
        pose = stop.pose(
            ahead_m=float(rng.uniform(-4, 4)),
            right_m=_LANE_M + float(rng.uniform(-3, 3)),
            height_m=float(rng.uniform(1.5, 2.4)),
            turn_deg=turn_deg + float(rng.uniform(-12, 12)),
            onward=onward,
        )
        if not any(_touches(thing, pose) for thing in near):
            return pose


def _touches(thing: Car | Figure, pose: Pose) -> bool:
    if isinstance(thing, Figure):
        return float(np.hypot(thing.x_m - pose.x_m, thing.y_m - pose.y_m)) < 1.0
    seat = Pose(x_m=thing.x_m, y_m=thing.y_m, height_m=0.0, heading_deg=thing.heading_deg)
    right, forward = seat.seen_from(np.array([pose.x_m, pose.y_m]))
    return abs(float(right)) < 1.5 and abs(float(forward)) < thing.length_m / 2 + 0.6


# ---------------------------------------------------------------------------------------------------------- writing


def write_sample_city(directory: Path, *, seed: int = 1, places: int = 90, queries: int = 120, unmapped: int = 8) -> SampleCity:
    """Write `directory/database/*.jpg` and `directory/queries/*.jpg`. Doing it again writes the same bytes.

    Args:
        directory: is made if it does not exist.
        seed: see `plan_sample_city`, as for the others.
        places: four database photos each.
        queries: photos of later visits.
        unmapped: how many of them are from a street without database photos.

    Raises:
        ValueError: see `plan_sample_city`.
        CatalogError: see `write_photos`.
    """
    city = plan_sample_city(seed=seed, places=places, queries=queries, unmapped=unmapped)
    for _ in write_photos(city, directory):
        pass
    return city


def write_photos(city: SampleCity, directory: Path) -> Iterator[Path]:
    """Take and write one photo after the other, so that the caller can show progress and stop.

    Args:
        city: what to take, from `plan_sample_city`; it has `len(city.database) + len(city.queries)` photos.
        directory: gets `database/` and `queries/`; is made if it does not exist.

    Yields:
        The path of each written photo.

    Raises:
        CatalogError: `directory` holds photos of another sample city, which would be taken for photos of this one.
    """
    photos = (*city.database, *city.queries)
    _refuse_strangers(photos, directory)
    renderer, to_lon_lat = Renderer(city.town), _to_lon_lat()
    for index, photo in enumerate(photos):
        view = renderer.render(
            photo.pose,
            photo.conditions,
            photo.camera,
            rng=np.random.default_rng([city.seed, 4, index]),
            street_life=city.street_life[photo.visit],
        )
        lon_deg, lat_deg = to_lon_lat.transform(photo.pose.x_m, photo.pose.y_m)
        path = directory / photo.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(view.image, _exif(photo, lat_deg=lat_deg, lon_deg=lon_deg)))
        yield path


def _refuse_strangers(photos: Sequence[PlannedPhoto], directory: Path) -> None:
    names = {photo.name for photo in photos}
    for folder in ("database", "queries"):
        for path in sorted((directory / folder).glob("*")):
            if f"{folder}/{path.name}" not in names:
                raise CatalogError(
                    f"{path}: is no photo of this sample city, but {directory / folder} must hold nothing else. "
                    "Nothing was written. Choose an empty folder, or delete this one"
                )


def _to_lon_lat() -> pyproj.Transformer:
    """From metres of the town to degrees: a transverse Mercator plane that touches the Earth at the origin."""
    plane = f"+proj=tmerc +lat_0={ORIGIN_LAT_DEG} +lon_0={ORIGIN_LON_DEG} +k=1 +datum=WGS84 +units=m"
    return pyproj.Transformer.from_crs(plane, "EPSG:4326", always_xy=True)


def _jpeg(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], exif: Image.Exif) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=_JPEG_QUALITY, exif=exif)
    return data.getvalue()


def _exif(photo: PlannedPhoto, *, lat_deg: float, lon_deg: float) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Model] = "Folio", "Sample city"
    exif.get_ifd(IFD.Exif).update(
        {
            Base.DateTimeOriginal: photo.taken_at.strftime("%Y:%m:%d %H:%M:%S"),
            Base.OffsetTimeOriginal: photo.taken_at.isoformat()[-6:],
        }
    )
    moment = photo.taken_at.astimezone(UTC)
    exif.get_ifd(IFD.GPSInfo).update(
        {
            GPS.GPSVersionID: b"\2\3\0\0",
            GPS.GPSLatitudeRef: "N" if lat_deg >= 0 else "S",
            GPS.GPSLatitude: degrees_minutes_seconds(abs(lat_deg)),
            GPS.GPSLongitudeRef: "E" if lon_deg >= 0 else "W",
            GPS.GPSLongitude: degrees_minutes_seconds(abs(lon_deg)),
            GPS.GPSTimeStamp: tuple(IFDRational(part) for part in (moment.hour, moment.minute, moment.second)),
            GPS.GPSDateStamp: moment.strftime("%Y:%m:%d"),
            GPS.GPSImgDirectionRef: "T",
            GPS.GPSImgDirection: IFDRational(round(photo.pose.heading_deg * 100) % 36_000, 100),
            GPS.GPSMapDatum: "WGS-84",
        }
    )
    return exif


def degrees_minutes_seconds(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    """To a hundred-thousandth of a second: less than a millimetre."""
    minutes, ticks = divmod(round(degrees * 3600 * 100_000), 60 * 100_000)
    return IFDRational(minutes // 60), IFDRational(minutes % 60), IFDRational(ticks, 100_000)
