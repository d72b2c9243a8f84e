"""GSV-Cities on disk: the newest photos of each place, and what is wrong with a copy said plainly."""

import csv
from pathlib import Path

import pytest

from pipelines.train.gsv_cities import read_gsv_cities
from schemas.errors import CatalogError

COLUMNS = ["place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid"]


def write_city(folder: Path, rows: list[dict[str, object]], *, columns: list[str] = COLUMNS, ending: str = "JPG") -> None:
    (folder / "Dataframes").mkdir(parents=True)
    with (folder / "Dataframes" / "Lund.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    images = folder / "Images" / "Lund"
    images.mkdir(parents=True)
    for row in rows:
        name = (
            f"Lund_{row['place_id']:07d}_{row['year']:04d}_{row['month']:02d}_{row['northdeg']:03d}_"
            f"{row['lat']}_{row['lon']}_{row['panoid']}.{ending}"
        )
        (images / name).write_bytes(b"not opened")


def row(place: int, year: int, month: int = 6, lat: float = 55.7) -> dict[str, object]:
    return {
        **{"place_id": place, "year": year, "month": month, "northdeg": 90, "city_id": "Lund"},
        **{"lat": lat, "lon": 13.19, "panoid": f"id{place}-{year}-{month}"},
    }


def test_the_newest_photos_of_each_place_are_taken(tmp_path: Path):
    write_city(tmp_path, [row(7, year) for year in (2012, 2019, 2015, 2017, 2010, 2018)])

    found = read_gsv_cities(tmp_path, photos_per_place=4)

    assert [photo.uri.split("_")[2] for photo in found.photos] == ["2019", "2018", "2017", "2015"]
    assert {photo.place for photo in found.photos} == {"Lund 7"}
    assert found.photos[0].uri == "Images/Lund/Lund_0000007_2019_06_090_55.7_13.19_id7-2019-6.JPG"


def test_month_and_then_latitude_decide_within_a_year(tmp_path: Path):
    write_city(tmp_path, [row(7, 2019, 3), row(7, 2019, 9, 55.7), row(7, 2019, 9, 55.8), row(7, 2019, 1)])

    found = read_gsv_cities(tmp_path, photos_per_place=3)

    assert [(photo.uri.split("_")[3], photo.lat_deg) for photo in found.photos] == [("09", 55.8), ("09", 55.7), ("03", 55.7)]


def test_places_with_too_few_photos_are_left_out_and_counted(tmp_path: Path):
    write_city(tmp_path, [row(1, 2010), row(1, 2011), row(2, 2010)], ending="jpg")

    found = read_gsv_cities(tmp_path, photos_per_place=2)

    assert {photo.place for photo in found.photos} == {"Lund 1"}
    assert "1 places with fewer than 2 photos were left out" in found.notes[0]


def test_a_photo_that_is_not_there_is_a_reject_and_an_older_one_takes_its_place(tmp_path: Path):
    write_city(tmp_path, [row(1, year) for year in (2010, 2011, 2012)])
    next((tmp_path / "Images" / "Lund").glob("*_2012_*")).unlink()

    found = read_gsv_cities(tmp_path, photos_per_place=2)

    assert [photo.uri.split("_")[2] for photo in found.photos] == ["2011", "2010"]
    assert [reject["reason"] for reject in found.rejects] == ["missing"]


def test_a_folder_without_tables_is_refused(tmp_path: Path):
    with pytest.raises(CatalogError, match=r"no Dataframes/\*\.csv"):
        read_gsv_cities(tmp_path, photos_per_place=4)


def test_a_table_without_a_column_is_refused(tmp_path: Path):
    write_city(tmp_path, [row(1, 2010)], columns=COLUMNS[:-1])

    with pytest.raises(CatalogError, match="no column panoid"):
        read_gsv_cities(tmp_path, photos_per_place=4)


def test_a_row_that_is_no_row_is_named(tmp_path: Path):
    write_city(tmp_path, [row(1, 2010)])
    table = tmp_path / "Dataframes" / "Lund.csv"
    table.write_text(table.read_text().replace("2010", "soon", 1))

    with pytest.raises(CatalogError, match="line 2 is no row of GSV-Cities"):
        read_gsv_cities(tmp_path, photos_per_place=4)
