"""Small pictures, and matched patches placed on them."""

import base64
import io

import numpy as np
from PIL import Image

from pipelines.report.pictures import Picture, make_picture, matched_regions, patch_colour


def test_a_picture_is_shrunk_to_its_long_side_and_keeps_its_proportions():
    picture = make_picture(np.zeros((300, 400, 3), np.uint8), long_side=100)

    jpeg = base64.b64decode(picture.uri.removeprefix("data:image/jpeg;base64,"))
    assert (picture.width, picture.height) == (100, 75)
    assert Image.open(io.BytesIO(jpeg)).size == (100, 75)


def test_a_small_photo_is_not_enlarged():
    picture = make_picture(np.zeros((30, 40, 3), np.uint8), long_side=100)

    assert (picture.width, picture.height) == (40, 30)


def test_a_patch_lies_where_the_stretched_grid_puts_it_on_each_photo():
    """A grid of 4 over 80 x 60 pixels has patches of 20 x 15; over 40 x 40, of 10 x 10."""
    wide, square = Picture(uri="", width=80, height=60), Picture(uri="", width=40, height=40)

    (on_query,), (on_candidate,) = matched_regions(np.array([[1, 2, 3, 0]], np.uint8), 4, wide, square)

    assert (on_query.x, on_query.y) == (40, 15)
    assert (on_candidate.x, on_candidate.y) == (0, 30)
    assert on_query.colour == on_candidate.colour


def test_the_five_best_pairs_are_numbered_on_both_photos_and_drawn_last():
    patches = np.zeros((7, 4), np.uint8)
    picture = Picture(uri="", width=80, height=60)

    on_query, on_candidate = matched_regions(patches, 4, picture, picture)

    assert [region.label for region in on_query] == ["", "", "5", "4", "3", "2", "1"]
    assert on_candidate == on_query


def test_patches_at_different_places_differ_in_colour():
    colours = {patch_colour(row, column, 15) for row in range(15) for column in range(15)}

    assert len(colours) == 225
    assert patch_colour(0, 0, 1) == patch_colour(0, 0, 15)
