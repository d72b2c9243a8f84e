"""Positions between two known ones: on the line, at an even speed, and never before or after them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.locate.between import MOST_ERROR_M, MOST_M, MOST_S, Fix, between
from pipelines.locate.position import WGS84

HERE = Fix(seconds=100.0, lat_deg=55.7, lon_deg=13.19, error_m=10.0)


def away(metres: float, seconds: float, *, azimuth: float = 90.0, start: Fix = HERE) -> Fix:
    lon, lat, _ = WGS84.fwd(start.lon_deg, start.lat_deg, azimuth, metres)
    return Fix(seconds=start.seconds + seconds, lat_deg=float(lat), lon_deg=float(lon), error_m=10.0)


def apart_m(one: Fix, other: Fix) -> float:
    return float(WGS84.inv(one.lon_deg, one.lat_deg, other.lon_deg, other.lat_deg)[2])


def test_a_quarter_of_the_time_is_a_quarter_of_the_way():
    there = away(80, 40)

    found = between(HERE, there, 110.0)

    assert found is not None
    assert apart_m(HERE, found) == pytest.approx(20, abs=0.01)
    assert apart_m(found, there) == pytest.approx(60, abs=0.01)
    assert found.error_m == pytest.approx(10 + 2 * 10)  # 80 m in 40 s, 10 s from the nearer end


def test_at_the_ends_it_is_what_is_known_there():
    there = away(80, 40)

    assert (between(HERE, there, 100.0), between(HERE, there, 140.0)) == (HERE, there)


@pytest.mark.parametrize("seconds", [99.99, 140.01, -1e9, float("nan")])
def test_before_and_after_nothing_is_known(seconds: float):
    assert between(HERE, away(80, 40), seconds) is None


@pytest.mark.parametrize(("there", "known"), [(away(10, MOST_S + 1), False), (away(MOST_M + 1, 100), False), (away(99, 8), True)])
def test_between_positions_too_far_apart_nothing_is_known(there: Fix, known: bool):
    assert (between(HERE, there, 104.0) is not None) == known


def test_who_is_quick_may_have_turned_and_come_back():
    there = away(1, 60)
    slow, quick = (between(HERE, there, 130.0, speed_mps=speed) for speed in (1.0, 2.9))

    assert slow is not None
    assert quick is not None
    assert (slow.error_m, quick.error_m) == (pytest.approx(40, abs=0.5), pytest.approx(97, abs=0.5))
    assert between(HERE, there, 130.0, speed_mps=3.1) is None


def test_over_the_date_line_it_is_the_short_way():
    west = replace(HERE, lat_deg=-16.5, lon_deg=179.9995)

    found = between(west, away(100, 10, start=west), 105.0)

    assert found is not None
    assert apart_m(west, found) == pytest.approx(50, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 200), st.floats(0, 360), st.floats(0.5, 120), st.floats(0, 1), st.floats(-80, 80), st.floats(-180, 180))
def test_it_lies_between_them(metres: float, azimuth: float, took_s: float, share: float, lat_deg: float, lon_deg: float):
    here = Fix(seconds=0.0, lat_deg=lat_deg, lon_deg=lon_deg, error_m=5.0)
    there = away(metres, took_s, azimuth=azimuth, start=here)

    found = between(here, there, share * took_s)

    if found is not None:
        assert apart_m(here, found) + apart_m(found, there) == pytest.approx(apart_m(here, there), abs=0.01)
        assert 5 <= found.error_m <= MOST_ERROR_M
        assert np.isfinite([found.lat_deg, found.lon_deg]).all()
