"""placeholder"""

import argparse
import csv
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from infra.settings import Settings
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from pipelines.catalog.sample_city.photos import plan_sample_city, write_photos
from pipelines.geotag.geotag import GeotagRequest, run_geotag
from tests.benchmarks.calibrated import PLACES, Placed
from tests.benchmarks.recall_sets import WORK, load_set
from tests.benchmarks.walks import walks_in

SETTINGS: Final = Settings(threads=1)


class Asked(NamedTuple):
    """A row of the table that an archive is read from; what is None is left to the photo's EXIF."""

    uri: str
    lat_deg: float | None = None
    lon_deg: float | None = None
    taken_at: str | None = None
    sequence_id: str | None = None


class PrecisionSet(NamedTuple):
    """A map's photos and an archive whose positions are known."""

    database: list[Placed]
    queries: list[Asked]


def _city(work: Path) -> PrecisionSet:
    found = load_set("sample-city")
    return PrecisionSet(PLACES["sample-city"](found.database), [Asked(str(path)) for path in found.queries])


def _walks(seed: int, places: int = 90, photos_each: int = 60) -> Callable[[Path], PrecisionSet]:
    def make(work: Path) -> PrecisionSet:
        city = walks_in(plan_sample_city(seed=seed, places=places), photos_each=photos_each)
        folder = work / f"walks-{seed}-{places}"
        if not (folder / "complete").exists():
            for _ in write_photos(city, folder):
                pass
            (folder / "complete").touch()
        return PrecisionSet(
            [Placed(str(folder / photo.name), None, None, None) for photo in city.database],
            [Asked(str(folder / photo.name)) for photo in city.queries],
        )

    return make


def _lund(work: Path) -> PrecisionSet:
    found = load_set("street-lund")
    database, queries = (PLACES["street-lund"](paths) for paths in (found.database, found.queries))
    return PrecisionSet(database, [Asked(one.uri, one.lat_deg, one.lon_deg) for one in queries])


def _drives(work: Path) -> PrecisionSet:
    found = load_set("mapillary")
    both = PLACES["mapillary"]([*found.database, *found.queries])
    database, queries = both[: len(found.database)], both[len(found.database) :]
    begin = datetime(2026, 6, 1, 8, tzinfo=UTC)
    drives = sorted({one.sequence_id or "" for one in both})
    asked = [
        Asked(
            one.uri,
            one.lat_deg,
            one.lon_deg,
            (begin + timedelta(days=drives.index(one.sequence_id or ""), seconds=int(Path(one.uri).stem))).isoformat(),
            one.sequence_id,
        )
        for one in queries
    ]
    return PrecisionSet(database, asked)


SETS: Final[Mapping[str, Callable[[Path], PrecisionSet]]] = {
    "street-lund": _lund,
    "walks-1": _walks(1),
    "walks-2": _walks(2),
    "sample-city": _city,
    "mapillary": _drives,
    "town-1": _walks(1, 400, 120),
    "town-2": _walks(2, 400, 120),
    "town-3": _walks(3, 400, 120),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", default=",".join(SETS))
    for name in parser.parse_args().sets.split(","):
        folder = WORK / "precision" / name
        folder.mkdir(parents=True, exist_ok=True)
        found = SETS[name](WORK / "precision")
        for table, rows in (("database", found.database), ("queries", found.queries)):
            with (folder / f"{table}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(rows[0]._fields)
                writer.writerows(rows)
        for line in run_build(
            BuildRequest(map_url=str(folder / "map"), photos=(str(folder / "database.csv"),), device="cpu"), SETTINGS
        ).lines():
            print(name, line, flush=True)
        summary = run_geotag(
            GeotagRequest(
                map_url=str(folder / "map"), photos=(str(folder / "queries.csv"),), out=str(folder / "alone"), device="cpu"
            ),
            SETTINGS,
        )
        for line in summary.lines():
            print(name, line, flush=True)


if __name__ == "__main__":
    main()
