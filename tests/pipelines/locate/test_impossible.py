"""Positions that no answer may be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.locate.impossible import covered_box, why_impossible

LUND = covered_box(np.array([55.70, 55.72]), np.array([13.18, 13.22]))


@pytest.mark.parametrize(
    ("lat_deg", "lon_deg", "reason"),
    [
        (55.71, 13.2, None),
        (55.725, 13.2, None),  # 600 m to the north of the photos
        (55.74, 13.2, "outside of the box"),
        (55.71, 13.3, "outside of the box"),
        (55.71, -166.8, "outside of the box"),
        (math.nan, 13.2, "not a number"),
        (55.71, math.inf, "not a number"),
        (0.0, 0.0, "latitude 0, longitude 0"),
        (0.0001, -0.0001, "latitude 0, longitude 0"),
        (91.0, 13.2, "cannot be one"),
        (55.71, 181.0, "cannot be one"),
    ],
)
def test_what_cannot_be_is_told_with_a_reason(lat_deg: float, lon_deg: float, reason: str | None):
    found = why_impossible(lat_deg, lon_deg, LUND)

    assert found is None if reason is None else found is not None and reason in found


def test_a_map_over_the_date_line_covers_both_sides_and_not_the_rest():
    fiji = covered_box(np.array([-16.5, -16.6]), np.array([179.9, -179.9]))

    assert why_impossible(-16.5, 180.0, fiji) is None
    assert why_impossible(-16.5, -179.95, fiji) is None
    assert why_impossible(-16.5, 0.0, fiji) is not None


def test_a_map_without_photos_speaks_against_nothing():
    assert why_impossible(10.0, 20.0, covered_box(np.empty(0), np.empty(0))) is None


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-180, 180)), min_size=1, max_size=8))
def test_the_places_of_a_maps_photos_are_covered(places: list[tuple[float, float]]):
    lat, lon = np.array(places).T
    covered = covered_box(lat, lon)

    for lat_deg, lon_deg in places:
        reason = why_impossible(lat_deg, lon_deg, covered)
        assert reason is None or "latitude 0" in reason
