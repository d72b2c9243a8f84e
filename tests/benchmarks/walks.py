"""Walks through the sample city: photos of people who stroll along its streets, as `geotag_precision` asks about them.

The sample city's own queries are taken here and there, so that neighbours in time say nothing of one another. These are taken
along the streets that the survey car drove, a few metres apart at the pace of a walk, on the same four later visits; each walk
ends in the street that the map does not have.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Final

import numpy as np

from pipelines.catalog.sample_city import photos
from pipelines.catalog.sample_city.conditions import sun_position
from pipelines.catalog.sample_city.photos import PlannedPhoto, SampleCity

PACE_MPS: Final = 1.3
"""Of somebody who looks about."""


def walks_in(city: SampleCity, *, photos_each: int = 60, unmapped_each: int = 8) -> SampleCity:
    """Plan four walks in the place of the sample city's queries.

    Args:
        city: with places to walk along.
        photos_each: of a walk.
        unmapped_each: how many of them, the last ones, are from a street without database photos.
    """
    rng = np.random.default_rng([city.seed, 5])
    walks = [_walk(city, visit, photos_each, unmapped_each, rng) for visit in range(len(photos._QUERY_VISITS))]
    return replace(city, queries=tuple(photo for walk in walks for photo in walk))


def _walk(city: SampleCity, visit: int, count: int, unmapped: int, rng: np.random.Generator) -> Iterator[PlannedPhoto]:
    stops = photos._stops(city.town, len(city.database) // 4)
    first = int(rng.integers(len(stops)))
    along = [stops[(first + step) % len(stops)] for step in range(count - unmapped)]
    lost = photos._unmapped_stops(city.town, city.database)
    route = [*along, *lost[:: max(1, len(lost) // unmapped)][:unmapped]]
    begin, weather = photos._QUERY_VISITS[visit]
    number = len(photos._SURVEY_VISITS) + visit
    obstacles = photos._Obstacles(city.town, city.street_life[number])
    taken_at, before = begin, route[0]
    for index, stop in enumerate(route):
        walked_m = float(np.hypot(stop.x_m - before.x_m, stop.y_m - before.y_m))
        taken_at += timedelta(seconds=round(walked_m / PACE_MPS + float(rng.uniform(0, 6))))
        before = stop
        yield PlannedPhoto(
            name=f"queries/walk{visit + 1}-{index + 1:04d}.jpg",
            pose=photos._pose_near(stop, obstacles, rng),
            camera=photos._QUERY_CAMERA,
            conditions=weather(sun_position(begin, lat_deg=photos.ORIGIN_LAT_DEG, lon_deg=photos.ORIGIN_LON_DEG)),
            taken_at=taken_at,
            visit=number,
        )
