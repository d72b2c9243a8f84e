"""GSV-Cities on disk ▶ photos with labels of places.

The data set (arXiv:2210.10239) is a folder with `Dataframes/<City>.csv`, a row a photo, and `Images/<City>/`, where the name of a
file repeats its row. The files are not opened here: there are half a million of them.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipelines.train.photos import Photos, TrainingPhoto
from schemas.errors import CatalogError
from schemas.reasons import RejectReason

COLUMNS: Final = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")

Row = dict[str, str]


def read_gsv_cities(folder: Path, *, photos_per_place: int) -> Photos:
    """List the newest photos of every place of GSV-Cities.

    Args:
        folder: with Dataframes/ and Images/.
        photos_per_place: this many of each place; places with fewer are left out, and noted.

    Raises:
        CatalogError: no such folder, no tables in it, or a table without the columns.

    Source: the method's released training code takes the 4 newest by year, month and latitude of places with at least 4.
    """
    tables = sorted((folder / "Dataframes").glob("*.csv"))
    if not tables:
        raise CatalogError(
            f"{folder}: no Dataframes/*.csv in it, which GSV-Cities has. Nothing was started. Give the folder that holds "
            "Dataframes/ and Images/."
        )
    photos: list[TrainingPhoto] = []
    rejects: list[dict[str, object]] = []
    few = 0
    for table in tables:
        by_place: dict[str, list[Row]] = defaultdict(list)
        for row in _rows(table):
            by_place[row["place_id"]].append(row)
        for rows in by_place.values():
            found: list[TrainingPhoto] = []
            for row in sorted(rows, key=_age, reverse=True):
                if len(found) == photos_per_place:
                    break
                file = _file(folder, row)
                if file.is_file():
                    found.append(_photo(row, file, folder))
                else:
                    rejects.append(_missing(file, folder))
            if len(found) < photos_per_place:
                few += 1
            else:
                photos += found
    notes = [f"{folder}: {few:,} places with fewer than {photos_per_place} photos were left out"] if few else []
    return Photos(photos=photos, rejects=rejects, notes=notes)


def file_name(row: Row, ending: str) -> str:
    """Name the file of a row."""
    place, year, month, north = (int(row[name]) for name in ("place_id", "year", "month", "northdeg"))
    lat, lon = float(row["lat"]), float(row["lon"])  # without the zeros that a table may end them with
    return f"{row['city_id']}_{place:07d}_{year:04d}_{month:02d}_{north:03d}_{lat}_{lon}_{row['panoid']}.{ending}"


def _file(folder: Path, row: Row) -> Path:
    """The file of a row. Copies of the data set differ in how the names end."""
    city = folder / "Images" / row["city_id"]
    lower = city / file_name(row, "jpg")
    return lower if lower.is_file() else city / file_name(row, "JPG")


def _rows(table: Path) -> Iterator[Row]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise CatalogError(
                f"{table}: no column {', '.join(missing)}; GSV-Cities has {', '.join(COLUMNS)}. Nothing was started. "
                "Take the data set's own table."
            )
        for number, row in enumerate(reader, start=2):
            try:
                _age(row), int(row["place_id"]), int(row["northdeg"]), float(row["lon"])
            except (TypeError, ValueError) as error:
                raise CatalogError(f"{table}: line {number} is no row of GSV-Cities ({error}). Nothing was started.") from error
            yield row


def _age(row: Row) -> tuple[int, int, float]:
    return int(row["year"]), int(row["month"]), float(row["lat"])


def _photo(row: Row, file: Path, folder: Path) -> TrainingPhoto:
    return TrainingPhoto(
        uri=file.relative_to(folder).as_posix(),
        root=str(folder.absolute()),
        size_bytes=file.stat().st_size,
        checksum=None,
        place=f"{row['city_id']} {row['place_id']}",
        lat_deg=float(row["lat"]),
        lon_deg=float(row["lon"]),
        heading_deg=float(row["northdeg"]),
    )


def _missing(file: Path, folder: Path) -> dict[str, object]:
    return {
        "uri": file.relative_to(folder).as_posix(),
        "root": str(folder.absolute()),
        "photo_key": None,
        "stage": "catalog",
        "reason": RejectReason.MISSING.value,
        "detail": "named in Dataframes, but no such file",
    }
