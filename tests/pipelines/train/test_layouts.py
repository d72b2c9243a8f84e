"""Which photos show the same place, epoch by epoch."""

import pytest

from pipelines.train.layouts import CellConfig, places_of
from tests.pipelines.train.photos import at_metres, photo

CELLS = CellConfig(side_m=10.0, gap_m=5.0)


def test_photos_of_a_cell_are_a_place_and_those_in_the_gap_are_left_out():
    photos = at_metres([1, 9, 12, 16, 24])  # two cells from 0 to 10 and 15 to 25, a gap between

    first, *_ = places_of(photos, range(5), CELLS)

    assert first == ((0, 1), (3, 4))


def test_every_photo_is_in_some_layout():
    photos = at_metres([m / 2 for m in range(200)])

    layouts = places_of(photos, range(200), CELLS)

    assert {row for layout in layouts for place in layout for row in place} == set(range(200))
    assert all(len({row for place in layout for row in place}) < 200 for layout in layouts)


def test_photos_of_a_cell_that_look_different_ways_are_different_places():
    photos = [*at_metres([1, 2], heading_deg=10.0), *at_metres([3, 4], heading_deg=190.0)]

    first, *_ = places_of(photos, range(4), CELLS)

    assert first == ((0, 1), (2, 3))


def test_headings_around_north_are_one_sector():
    photos = [*at_metres([1], heading_deg=355.0), *at_metres([2], heading_deg=5.0)]

    assert places_of(photos, range(2), CELLS)[0] == ((0, 1),)


def test_two_frames_are_a_place_and_the_next_two_a_gap():
    photos = [photo(f"{n}.jpg", drive="d", frame=n) for n in range(7)]

    layouts = places_of(photos, range(7), CELLS)

    assert layouts[0] == ((0, 1), (4, 5))
    assert layouts[1] == ((0,), (3, 4))
    assert layouts[2] == ((2, 3), (6,))


def test_a_label_counts_before_a_position_and_a_photo_with_nothing_is_a_place_by_itself():
    photos = [photo("a.jpg", place="x", lat_deg=1.0, lon_deg=2.0), photo("b.jpg", place="x"), photo("c.jpg")]

    assert set(places_of(photos, range(3), CELLS)) == {((0, 1), (2,))}


def test_a_cell_without_size_is_refused():
    with pytest.raises(ValueError, match="side_m must be above 0"):
        CellConfig(side_m=0.0)
