"""Positions in file names. The numbers of the first test are those of a photo of San Francisco in SF-XL's form."""

import math
from datetime import UTC, datetime

import pytest

from pipelines.catalog.file_names import UtmZone, claim_from_name
from schemas.errors import CatalogError

FULL = "@0551021.00@4180000.00@10@S@037.76590@-122.42072@pano_7@2@090@@@@20230412_101530@@.jpg"


def test_all_fields_of_a_benchmark_name_are_read():
    claim = claim_from_name(FULL, None)

    assert claim is not None
    assert (claim.lat_deg, claim.lon_deg) == pytest.approx((37.76590, -122.42072), abs=1e-5)
    assert claim.heading_deg == 90
    assert claim.taken_at == datetime(2023, 4, 12, 10, 15, 30, tzinfo=UTC)


def test_the_utm_position_counts_because_it_is_given_to_the_centimetre():
    """On the equator at the central meridian of zone 31, 3 degrees east; one metre north is 9.05 millionths of a degree."""
    claim = claim_from_name("@500000.00@0000001.00@31@N@0.00000@3.00000@@.jpg", None)

    assert claim is not None
    assert (claim.lat_deg, claim.lon_deg) == pytest.approx((9.05e-6, 3.0), abs=1e-7)


def test_without_a_zone_the_latitude_and_longitude_of_the_name_are_taken():
    claim = claim_from_name("@500000@1@@@48.5@-2.25@@.jpg", None)

    assert claim is not None
    assert (claim.lat_deg, claim.lon_deg) == (48.5, -2.25)


@pytest.mark.parametrize(
    ("zone", "lat_deg"), [("31N", 9.0466), ("31north", 9.0466), ("31U", 9.0466), ("31south", -81.0609), ("31M", -81.0609)]
)
def test_the_two_field_form_takes_the_zone_it_is_given(zone: str, lat_deg: float):
    """A million metres north of the equator, or of a point ten million metres south of it."""
    claim = claim_from_name("@500000@1000000@.jpg", UtmZone.parse(zone))

    assert claim is not None
    assert (claim.lat_deg, claim.lon_deg) == (pytest.approx(lat_deg, abs=1e-3), pytest.approx(3.0))


def test_the_two_field_form_without_a_zone_says_what_to_pass():
    with pytest.raises(CatalogError, match=r"@500000@1@.jpg: a UTM position without its zone.*--utm-zone 33U"):
        claim_from_name("@500000@1@.jpg", None)


@pytest.mark.parametrize(
    "name", ["plain.jpg", "me@home@night.jpg", "@someone_at_the_beach.jpg", "@1@.jpg", "@@@.jpg", "@nan@inf@.jpg"]
)
def test_other_names_claim_nothing(name: str):
    assert claim_from_name(name, None) is None


@pytest.mark.parametrize("name", ["@99500000@1@31@N@.jpg", "@500000@-5@31@N@.jpg", "@500000@1@61@N@.jpg", "@500000@1@0@N@.jpg"])
def test_a_place_that_is_not_on_the_grid_is_no_number(name: str):
    claim = claim_from_name(name, None)

    assert claim is not None
    assert math.isnan(claim.lat_deg or 0)


@pytest.mark.parametrize("text", ["", "33", "0U", "61U", "33I", "33O", "33A", "33UU", "U33", "33.5U"])
def test_what_is_no_zone_is_refused(text: str):
    with pytest.raises(CatalogError, match="needed a number from 1 to 60 and a latitude band"):
        UtmZone.parse(text)


def test_zone_s_is_refused_because_it_means_two_things():
    with pytest.raises(CatalogError, match="Write 56north or 56south"):
        UtmZone.parse("56S")
