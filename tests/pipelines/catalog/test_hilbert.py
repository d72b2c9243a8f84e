"""The order along the Hilbert curve: every cell once, neighbours side by side."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog.hilbert import curve_position, hilbert_position


def grid(order: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.meshgrid(np.arange(2**order), np.arange(2**order))
    return x.ravel(), y.ravel()


@given(order=st.integers(1, 6))
def test_each_cell_of_a_grid_has_its_own_place_and_none_is_left_over(order: int):
    position = curve_position(*grid(order), order=order)

    assert sorted(position.tolist()) == list(range(4**order))


@given(order=st.integers(1, 6))
def test_one_step_along_the_curve_is_one_step_on_the_grid(order: int):
    x, y = grid(order)
    walk = np.argsort(curve_position(x, y, order=order))

    assert set(np.abs(np.diff(x[walk])) + np.abs(np.diff(y[walk]))) == {1}


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(1, 30))
def test_a_coarser_curve_visits_the_same_quadrants(x: int, y: int, order: int):
    """Cutting bits off the coordinates cuts bits off the position: so a run of the curve is compact at every scale."""
    cut = 31 - order
    fine = curve_position(np.array([x]), np.array([y]), order=31)
    coarse = curve_position(np.array([x >> cut]), np.array([y >> cut]), order=order)

    assert int(fine[0]) >> (2 * cut) == int(coarse[0])


def test_the_walk_over_four_cells_is_known():
    x, y = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])

    assert curve_position(x, y, order=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("corner", [(-180.0, -90.0), (180.0, 90.0), (-180.0, 90.0), (180.0, -90.0), (0.0, 0.0)])
def test_the_ends_of_the_earth_have_a_place(corner: tuple[float, float]):
    lon_deg, lat_deg = (np.array([value]) for value in corner)

    assert 0 <= int(hilbert_position(lon_deg, lat_deg)[0]) < 4**31


def test_photos_of_one_town_stay_together():
    lon_deg, lat_deg = np.array([13.19, -74.0, 13.20, -74.1]), np.array([55.70, 40.7, 55.71, 40.8])  # Lund, New York

    order = np.argsort(hilbert_position(lon_deg, lat_deg)).tolist()

    assert sorted(order[:2]) in ([0, 2], [1, 3])
