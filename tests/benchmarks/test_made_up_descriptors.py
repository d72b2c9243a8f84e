"""Made-up descriptors are the same whenever they are made, and are alike where real ones are."""

import numpy as np
import pytest

from tests.benchmarks.made_up_descriptors import SEGMENT_PHOTOS, STREET_PHOTOS, Fit, MadeUpDescriptors

SMALL = Fit(dim=512)


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return MadeUpDescriptors(SMALL, seed=3).segment(5)


def test_a_segment_depends_on_nothing_but_its_number(photos: np.ndarray):
    city = MadeUpDescriptors(SMALL, seed=3)
    city.segment(4)

    assert np.array_equal(city.segment(5), photos)
    assert not np.array_equal(city.segment(6), photos)
    assert not np.array_equal(MadeUpDescriptors(SMALL, seed=4).segment(5), photos)


def test_photos_have_unit_length_and_share_what_they_are_to_share(photos: np.ndarray):
    other_streets = photos[::STREET_PHOTOS] @ photos[::STREET_PHOTOS].T

    np.testing.assert_allclose(np.linalg.norm(photos, axis=1), 1, atol=1e-5)
    assert other_streets[np.triu_indices(len(other_streets), 1)].mean() == pytest.approx(SMALL.mean, abs=0.03)


def test_photos_are_the_more_alike_the_nearer_they_stand(photos: np.ndarray):
    streets = photos.reshape(-1, STREET_PHOTOS, SMALL.dim)
    beside = {gap: (streets[:, gap:] * streets[:, : STREET_PHOTOS - gap]).sum(axis=2).mean() for gap in (1, 3, 20)}
    queries = MadeUpDescriptors(SMALL, seed=3).queries(5, np.arange(SEGMENT_PHOTOS))

    assert (queries * photos).sum(axis=1).mean() > beside[1] > beside[3] > beside[20] > SMALL.mean
