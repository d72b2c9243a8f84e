"""Views look like the photo, and what they say about each other is true."""

import numpy as np
import pytest
from jaxtyping import UInt8
from numpy.testing import assert_allclose
from PIL import Image

from fol_model.training.augment import View, known_reliability, reliability_targets, views
from fol_model.training.config import AugmentConfig
from fol_model.training.light import night
from fol_model.training.viewpoints import homography_between, moved, random_homography

ONLY_MOVED = AugmentConfig(colour=0.0, night=0.0, weather=0.0, blur=0.0, noise=0.0, jpeg=0.0, occluder=0.0)
ALWAYS = AugmentConfig(night=0.5, weather=1.0, blur=1.0, noise=1.0, jpeg=1.0, occluder=1.0)


@pytest.fixture
def photo() -> UInt8[np.ndarray, "H W 3"]:
    """Smooth, so that a view can be compared with it pixel by pixel; wider than high."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC))


def shifted(right_px: float, covered: tuple[slice, slice] | None = None) -> View:
    """A view of 8 x 8 pixels that is its photo, moved to the right."""
    occluded = np.zeros((8, 8), dtype=bool)
    if covered is not None:
        occluded[covered] = True
    homography = np.array([[1.0, 0.0, right_px], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return View(image=np.zeros((8, 8, 3), np.uint8), homography=homography, occluded=occluded)


def test_the_same_generator_makes_the_same_views(photo: UInt8[np.ndarray, "H W 3"]):
    made, again, other = (views(photo, 3, np.random.default_rng(seed), ALWAYS, size_px=70) for seed in (1, 1, 2))

    for one, same in zip(made, again, strict=True):
        assert np.array_equal(one.image, same.image)
        assert np.array_equal(one.homography, same.homography)
        assert np.array_equal(one.occluded, same.occluded)
    assert not np.array_equal(made[0].image, other[0].image)
    assert not np.array_equal(made[0].image, made[1].image)


def test_the_homography_says_where_each_point_of_the_photo_went(photo: UInt8[np.ndarray, "H W 3"]):
    """Colours at 200 places of each view are those of the photo at the place that the homography comes from."""
    rng = np.random.default_rng(3)
    for view in views(photo, 4, rng, ONLY_MOVED, size_px=140):
        points = rng.uniform(2, 138, (200, 2))
        column, row = moved(np.linalg.inv(view.homography), np.floor(points) + 0.5).astype(int).T

        seen = view.image[points[:, 1].astype(int), points[:, 0].astype(int)].astype(float)

        assert np.abs(seen - photo[row, column]).mean() < 3


def test_a_large_photo_is_shrunk_first_and_lands_in_the_same_place(photo: UInt8[np.ndarray, "H W 3"]):
    """At 70 px a photo of 399 x 301 is shrunk by whole factors that do not divide its sides."""
    odd = photo[:, :-1].copy()
    odd = np.concatenate([odd, odd[-1:]])
    (view,) = views(odd, 1, np.random.default_rng(0), ONLY_MOVED, size_px=70)
    column, row = moved(np.linalg.inv(view.homography), np.array([(35.5, 35.5), (10.5, 60.5)])).astype(int).T

    assert np.abs(view.image[[35, 60], [35, 10]].astype(float) - odd[row, column]).max() < 12


def test_a_view_never_looks_past_the_edges_of_its_photo():
    config = AugmentConfig(rotation_deg=30.0, perspective=0.2)
    for seed in range(50):
        homography = random_homography(400, 300, 70, np.random.default_rng(seed), config)
        corners = moved(np.linalg.inv(homography), np.array([(0.0, 0.0), (70.0, 0.0), (70.0, 70.0), (0.0, 70.0)]))

        assert (corners > -1e-6).all()
        assert (corners < (400 + 1e-6, 300 + 1e-6)).all()


def test_with_nothing_to_change_a_view_is_the_photo_resized(photo: UInt8[np.ndarray, "H W 3"]):
    config = AugmentConfig(
        crop_min=1.0,
        rotation_deg=0.0,
        perspective=0.0,
        **{name: getattr(ONLY_MOVED, name) for name in ("colour", "night", "weather", "blur", "noise", "jpeg", "occluder")},
    )

    (view,) = views(photo, 1, np.random.default_rng(0), config, size_px=300)

    assert_allclose(view.homography, np.diag([0.75, 1.0, 1.0]), atol=1e-9)
    expected = np.asarray(Image.fromarray(photo).resize((300, 300), Image.Resampling.BILINEAR), float)
    assert np.abs(view.image - expected).mean() < 1


def test_four_points_decide_a_homography():
    square = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    bent = np.array([(1.0, 2.0), (5.0, 2.5), (6.0, 7.0), (0.5, 6.0)])

    assert_allclose(moved(homography_between(square, bent), square), bent, atol=1e-9)


def test_what_is_pasted_is_where_the_mask_says(photo: UInt8[np.ndarray, "H W 3"]):
    config = AugmentConfig(colour=0.0, night=0.0, weather=0.0, blur=0.0, noise=0.0, jpeg=0.0, occluder=1.0)
    red = np.full((50, 50, 3), (255, 0, 0), np.uint8)
    covered, differing = [], []
    for seed in range(8):
        (plain,) = views(photo, 1, np.random.default_rng(seed), ONLY_MOVED, size_px=140)
        (pasted,) = views(photo, 1, np.random.default_rng(seed), config, size_px=140, others=[red])
        changed = (plain.image != pasted.image).any(axis=2)
        covered.append(pasted.occluded.mean())
        differing.append((changed & ~pasted.occluded).mean())

        assert not plain.occluded.any()
        assert changed[pasted.occluded].mean() > 0.95

    assert 0.02 < np.mean(covered) < 0.6
    assert max(differing) < 0.03  # soft edges


def test_a_night_is_dark_and_its_sky_darker_than_its_ground():
    day = np.full((160, 160, 3), (150, 190, 230), np.uint8)
    day[80:] = np.random.default_rng(0).integers(60, 200, (80, 160, 3), dtype=np.uint8)
    nights = [np.asarray(night(Image.fromarray(day), np.random.default_rng(seed)), float) for seed in range(10)]

    assert np.mean(nights) < 0.6 * day.mean()
    assert np.mean([one[:60].mean() < one[100:].mean() for one in nights]) > 0.8


def test_reliability_is_known_where_the_other_view_looks():
    """Patches of 2 x 2 pixels. What `shifted(4)` shows in its right half is the left half of `shifted(0)`."""
    known = known_reliability(shifted(0), shifted(4), 4)

    assert (known[:, :2] == 1).all()
    assert np.isnan(known[:, 2:]).all()


def test_a_patch_under_something_pasted_is_unreliable_even_where_the_other_view_does_not_look():
    known = known_reliability(shifted(0, (slice(0, 2), slice(0, 8))), shifted(4), 4)

    assert (known[0] == 0).all()
    assert (known[1:, :2] == 1).all()


def test_a_patch_that_is_hidden_in_the_other_view_only_is_not_judged():
    known = known_reliability(shifted(0), shifted(0, (slice(2, 4), slice(0, 8))), 4)

    assert np.isnan(known[1]).all()
    assert (known[[0, 2, 3]] == 1).all()


def test_a_patch_that_is_covered_in_part_is_not_judged():
    """One pixel of four: more than a tenth, less than half."""
    known = known_reliability(shifted(0, (slice(0, 1), slice(0, 1))), shifted(0), 4)

    assert np.isnan(known[0, 0])
    assert np.nansum(known) == 15


def test_several_views_know_what_any_of_them_shows():
    targets = reliability_targets([shifted(0, (slice(0, 2), slice(0, 2))), shifted(4), shifted(-4)], 4)

    assert targets.shape == (3, 4, 4)
    assert targets[0, 0, 0] == 0
    assert np.nansum(targets[0]) == 15  # the left half is in one view, the right half in the other


def test_a_single_view_knows_what_was_pasted_into_it():
    (known,) = reliability_targets([shifted(0, (slice(0, 4), slice(0, 8)))], 4)

    assert (known[:2] == 0).all()
    assert np.isnan(known[2:]).all()


def test_a_view_that_is_not_made_of_whole_patches_is_refused():
    with pytest.raises(ValueError, match="a multiple of its 3 patches, got 8 pixels"):
        known_reliability(shifted(0), shifted(0), 3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"night": 1.5}, "night must be between 0 and 1"), ({"perspective": 0.3}, "folds over"), ({"crop_min": 0.0}, "crop_min")],
)
def test_strengths_out_of_range_are_refused(wrong: dict[str, float], said: str):
    with pytest.raises(ValueError, match=said):
        AugmentConfig(**wrong)  # type: ignore[arg-type]
