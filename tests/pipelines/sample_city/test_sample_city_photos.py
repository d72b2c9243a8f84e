"""The photos of the sample city: which there are, where they are from, and what their EXIF says."""

import io
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from pyproj import Geod

from pipelines.catalog.sample_city.photos import (
    ORIGIN_LAT_DEG,
    ORIGIN_LON_DEG,
    PlannedPhoto,
    SampleCity,
    plan_sample_city,
    write_photos,
    write_sample_city,
)
from schemas.errors import CatalogError


@pytest.fixture(scope="module")
def city() -> SampleCity:
    """The default city, planned but not photographed."""
    return plan_sample_city()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleCity, Path]:
    """A few written photos."""
    directory = tmp_path_factory.mktemp("city")
    return write_sample_city(directory, places=2, queries=4, unmapped=1), directory


def distances_m(query: PlannedPhoto, city: SampleCity) -> np.ndarray:
    surveyed = np.array([(photo.pose.x_m, photo.pose.y_m) for photo in city.database])
    return np.hypot(surveyed[:, 0] - query.pose.x_m, surveyed[:, 1] - query.pose.y_m)


def turns_deg(query: PlannedPhoto, city: SampleCity) -> np.ndarray:
    headings = np.array([photo.pose.heading_deg for photo in city.database])
    return np.abs((headings - query.pose.heading_deg + 180) % 360 - 180)


def gps_degrees(parts: tuple[float, float, float]) -> float:
    return float(parts[0]) + float(parts[1]) / 60 + float(parts[2]) / 3600


def test_each_place_gives_four_database_photos(city: SampleCity):
    assert len(city.database) == 4 * 90
    assert len(city.queries) == 120
    assert len({photo.name for photo in (*city.database, *city.queries)}) == 480


def test_all_queries_but_eight_have_a_photo_that_looks_the_same_way_within_25_m(city: SampleCity):
    answerable = [((distances_m(query, city) < 25) & (turns_deg(query, city) <= 12)).any() for query in city.queries]
    unmapped = [distances_m(query, city).min() > 25 for query in city.queries]

    assert sum(answerable) == 112
    assert [not answer for answer in answerable] == unmapped


def test_no_query_is_taken_from_where_a_database_photo_is(city: SampleCity):
    nearest = np.array([distances_m(query, city).min() for query in city.queries])

    assert np.median(nearest) > 1.0
    assert {photo.visit for photo in city.database}.isdisjoint({photo.visit for photo in city.queries})


def test_every_visit_meets_other_cars(city: SampleCity):
    assert len({life.cars for life in city.street_life}) == len(city.street_life) == 6


def test_places_are_about_ten_metres_apart_however_many_there_are():
    for places in (30, 400):
        database = plan_sample_city(places=places, queries=1, unmapped=0).database
        ahead = np.array([(photo.pose.x_m, photo.pose.y_m) for photo in database[: 2 * places : 2]])
        steps = np.hypot(*np.diff(ahead, axis=0).T)
        assert 8 < np.median(steps) < 16


def test_the_folder_holds_exactly_the_planned_photos(small: tuple[SampleCity, Path]):
    city, directory = small
    written = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}

    assert written == {photo.name for photo in (*city.database, *city.queries)}
    assert len(written) == 2 * 4 + 4


def test_exif_gives_back_position_heading_and_time(small: tuple[SampleCity, Path]):
    """The position is checked on the ellipsoid: its distance and bearing from the town's south-west corner."""
    (city, directory), earth = small, Geod(ellps="WGS84")
    for photo in (*city.database, *city.queries):
        with Image.open(directory / photo.name) as image:
            assert (image.size, image.format) == ((480, 360), "JPEG")
            exif = image.getexif()
        gps, times = exif.get_ifd(IFD.GPSInfo), exif.get_ifd(IFD.Exif)
        lat_deg, lon_deg = gps_degrees(gps[GPS.GPSLatitude]), gps_degrees(gps[GPS.GPSLongitude])
        bearing_deg, _, distance_m = earth.inv(ORIGIN_LON_DEG, ORIGIN_LAT_DEG, lon_deg, lat_deg)
        expected_m = np.hypot(photo.pose.x_m, photo.pose.y_m)
        assert (gps[GPS.GPSLatitudeRef], gps[GPS.GPSLongitudeRef], gps[GPS.GPSImgDirectionRef]) == ("N", "E", "T")
        assert distance_m == pytest.approx(expected_m, abs=0.01)
        assert np.deg2rad(bearing_deg) == pytest.approx(np.arctan2(photo.pose.x_m, photo.pose.y_m), abs=1e-4)
        assert float(gps[GPS.GPSImgDirection]) == pytest.approx(photo.pose.heading_deg, abs=0.01)
        written = f"{times[Base.DateTimeOriginal]}{times[Base.OffsetTimeOriginal]}"
        assert datetime.strptime(written, "%Y:%m:%d %H:%M:%S%z") == photo.taken_at
        assert gps[GPS.GPSDateStamp] == photo.taken_at.strftime("%Y:%m:%d")
        assert int(gps[GPS.GPSTimeStamp][0]) == photo.taken_at.hour - 1


def test_the_same_seed_writes_the_same_bytes(small: tuple[SampleCity, Path], tmp_path: Path):
    city, directory = small
    write_sample_city(tmp_path, places=2, queries=4, unmapped=1)

    for photo in (*city.database, *city.queries):
        assert (tmp_path / photo.name).read_bytes() == (directory / photo.name).read_bytes()


def test_another_seed_writes_other_photos(small: tuple[SampleCity, Path], tmp_path: Path):
    other = plan_sample_city(seed=2, places=2, queries=4, unmapped=1)
    path = next(write_photos(other, tmp_path))
    with Image.open(path) as new, Image.open(small[1] / other.database[0].name) as old:
        difference = np.abs(np.asarray(new, np.int16) - np.asarray(old, np.int16))

    assert difference.mean() > 10


def test_a_photo_is_a_picture_not_noise(small: tuple[SampleCity, Path]):
    """It packs to far less than noise of its size, which takes about 180 kB, and more than an empty picture."""
    city, directory = small
    for photo in city.database:
        data = (directory / photo.name).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            assert np.asarray(image).std() > 20
        assert 20_000 < len(data) < 120_000


def test_photos_of_another_city_in_the_folder_are_refused(tmp_path: Path):
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "holiday.jpg").write_bytes(b"mine")
    city = plan_sample_city(places=1, queries=1, unmapped=0)

    with pytest.raises(CatalogError, match=r"holiday\.jpg: is no photo of this sample city.*Nothing was written"):
        next(write_photos(city, tmp_path))
    assert not (tmp_path / "database").exists()


@pytest.mark.parametrize("counts", [{"places": 0}, {"queries": 0}, {"queries": 4, "unmapped": 5}, {"unmapped": -1}])
def test_impossible_numbers_are_refused(counts: dict[str, int]):
    with pytest.raises(ValueError, match="places and queries must be at least 1"):
        plan_sample_city(**counts)
