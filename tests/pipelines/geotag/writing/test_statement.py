"""Degrees survive the ways in which EXIF and XMP write them, and what has no position says so."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import chi2

from pipelines.geotag.writing.statement import (
    METHODS,
    ONE_SIGMA_RADII,
    NotWritten,
    exif_degrees,
    statement_of,
    xml_text,
    xmp_degrees,
)
from schemas.geotags import GeotagStatus
from tests.pipelines.geotag.writing.archives import geotag_row

DEGREES = st.floats(-180, 180)


@given(DEGREES)
@example(55.99999999999)
@example(-0.0)
@example(179.9999999999)
@example(-180.0)
@example(1 / 60 - 1e-13)
def test_degrees_survive_as_rationals_and_no_part_overflows(degrees: float):
    (whole, one), (minutes, also_one), (seconds, parts) = exif_degrees(degrees)

    assert (one, also_one) == (1, 1)
    assert 0 <= whole <= 180
    assert 0 <= minutes < 60
    assert 0 <= seconds < 60 * parts
    assert whole + minutes / 60 + seconds / parts / 3600 == pytest.approx(abs(degrees), abs=2e-8)


@given(DEGREES)
@example(55.99999999999)
@example(-0.0)
@example(-180.0)
def test_degrees_survive_as_text_with_their_hemisphere(degrees: float):
    found = re.fullmatch(r"(\d{1,3}),(\d{1,2}\.\d{6})([EW])", xmp_degrees(degrees, "EW"))

    assert found
    assert float(found[2]) < 60
    back = (int(found[1]) + float(found[2]) / 60) * (-1 if found[3] == "W" else 1)
    assert back == pytest.approx(degrees, abs=1e-8)


@given(st.text())
def test_any_name_becomes_text_that_xml_can_hold(name: str):
    from xml.etree.ElementTree import fromstring
    from xml.sax.saxutils import escape

    assert fromstring(f"<a>{escape(xml_text(name))}</a>".encode(errors="strict")).tag == "a"


def test_the_radius_of_nine_in_ten_is_told_as_that_of_68_percent():
    """By the Rayleigh distribution, which chi with two degrees of freedom is."""
    statement = statement_of(geotag_row("a.jpg", "/", expected_error_m=10.0), map_version=1, run_id="r")

    assert math.sqrt(chi2.ppf(0.68, 2) / chi2.ppf(0.9, 2)) == pytest.approx(ONE_SIGMA_RADII)
    assert statement.error_68_m == pytest.approx(7.035, abs=1e-3)


@pytest.mark.parametrize("status", sorted(set(GeotagStatus)))
def test_only_photos_with_a_position_are_written_about(status: GeotagStatus):
    row = geotag_row("a.jpg", "/", status=status.value)

    if status in METHODS:
        assert statement_of(row, map_version=1, run_id="r").status == status
    else:
        assert status in ("unknown", "refused")
        with pytest.raises(NotWritten) as left:
            statement_of(row, map_version=1, run_id="r")
        assert left.value.code == "no-position"


@pytest.mark.parametrize(
    ("lat_deg", "lon_deg", "code"),
    [
        (0.0, 0.0, "null-island"),
        (90.0001, 13.0, "position-invalid"),
        (55.0, -180.0001, "position-invalid"),
        (math.nan, 13.0, "position-invalid"),
        (None, None, "position-invalid"),
        (math.inf, 13.0, "position-invalid"),
    ],
)
def test_a_position_that_cannot_be_is_refused(lat_deg: float | None, lon_deg: float | None, code: str):
    with pytest.raises(NotWritten) as left:
        statement_of(geotag_row("a.jpg", "/", lat_deg=lat_deg, lon_deg=lon_deg), map_version=1, run_id="r")

    assert left.value.code == code


def test_what_is_not_known_is_not_said():
    row = geotag_row("a.jpg", "/", status="corrected", expected_error_m=None, probability=math.nan, matched_uri=None)

    said = {local for _, local in statement_of(row, map_version=None, run_id="r").xmp()}

    assert said == {"GPSLatitude", "GPSLongitude", "GPSMapDatum", "GPSProcessingMethod", "Status", "Run"}


@pytest.mark.parametrize(
    ("status", "best", "told"),
    [
        ("answered", (55.7, 13.2), True),
        ("accepted", (55.7, 13.2), True),
        ("interpolated", (55.9, 13.4), False),
        ("accepted", (55.9, 13.4), False),  # between two others, and a person said so too
        ("corrected", (55.9, 13.4), False),
        ("corrected", (None, None), False),
        ("corrected", (55.7, 13.2), True),
    ],
)
def test_a_probability_and_a_photo_that_matched_are_told_of_the_position_they_speak_for(
    status: str, best: tuple[float | None, float | None], told: bool
):
    row = geotag_row("a.jpg", "/", status=status, lat_deg=55.7, lon_deg=13.2, best_lat_deg=best[0], best_lon_deg=best[1])

    said = {local for _, local in statement_of(row, map_version=1, run_id="r").xmp()}

    assert ({"Probability", "MatchedPhoto"} <= said) == told
    assert told or not {"Probability", "MatchedPhoto"} & said
