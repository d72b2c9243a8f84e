"""No photo of a place that is validated with is trained on."""

import numpy as np
import pytest

from pipelines.train.hold_out import HoldOutConfig, hold_out, same_place
from tests.pipelines.train.photos import at_metres, photo


def test_whole_labelled_places_are_held_out():
    photos = [photo(f"{n}.jpg", place=f"p{n // 3}") for n in range(30)]

    split = hold_out(photos, HoldOutConfig(share=0.2), seed=0)

    assert len(split.validation) == 6
    assert not {photos[row].place for row in split.validation} & {photos[row].place for row in split.training}
    assert sorted(split.validation + split.training) == list(range(30))


def test_no_photo_near_a_held_out_one_is_trained_on():
    photos = at_metres([m * 5.0 for m in range(200)])  # a street of a kilometre

    split = hold_out(photos, HoldOutConfig(share=0.3), seed=1)

    held, trained = (np.array([float(photos[row].uri[:-4]) for row in rows]) for rows in (split.validation, split.training))
    assert len(held) >= 20
    assert abs(held[:, None] - trained).min() > 25
    assert "are left out" in split.notes[0]


def test_whole_drives_are_held_out_also_of_photos_with_positions():
    photos = [
        photo(f"{drive}-{n}.jpg", drive=drive, frame=n, lat_deg=float(at), lon_deg=n / 1e4)
        for at, drive in enumerate(("a", "b", "c"))
        for n in range(5)
    ]

    split = hold_out(photos, HoldOutConfig(share=0.1, by="drives"), seed=0)

    assert len({photos[row].drive for row in split.validation}) == 1
    assert len(split.validation) == 5


def test_photos_of_a_held_out_drive_take_their_labelled_places_along():
    photos = [photo(f"{n}.jpg", place=f"p{n % 5}", drive="ab"[n // 5]) for n in range(10)]

    split = hold_out(photos, HoldOutConfig(share=0.5, by="drives"), seed=0)

    assert len(split.validation) == 5
    assert split.training == []


def test_a_single_drive_is_not_held_out_and_that_is_said():
    split = hold_out([photo(f"{n}.jpg", drive="d", frame=n) for n in range(9)], HoldOutConfig(), seed=0)

    assert split.validation == []
    assert "only one, d" in split.notes[0]


def test_single_photos_are_not_held_out_for_nothing():
    split = hold_out([photo(f"{n}.jpg") for n in range(9)], HoldOutConfig(share=0.5), seed=0)

    assert split.training == list(range(9))


def test_nothing_is_held_out_when_nothing_is_asked():
    split = hold_out([photo(f"{n}.jpg", place=str(n)) for n in range(9)], HoldOutConfig(share=0.0), seed=0)

    assert (split.validation, split.training) == ([], list(range(9)))


def test_photos_within_25_metres_that_look_the_same_way_show_the_same_place():
    photos = [*at_metres([0, 20, 30], heading_deg=350.0), *at_metres([5], heading_deg=10.0), *at_metres([6], heading_deg=90.0)]

    assert same_place(photos, [0]).tolist() == [[False, True, False, True, False]]


def test_frames_show_the_same_place_as_their_neighbours_in_the_drive():
    photos = [photo(f"{n}.jpg", drive="d", frame=n) for n in range(4)] + [photo("e.jpg", drive="e", frame=1)]

    assert same_place(photos, [1]).tolist() == [[True, False, True, False, False]]


def test_nobody_knows_what_else_a_single_photo_shows():
    assert not same_place([photo("a.jpg"), photo("b.jpg")], [0, 1]).any()


def test_a_share_of_everything_is_refused():
    with pytest.raises(ValueError, match="from 0 to below 1"):
        HoldOutConfig(share=1.0)
