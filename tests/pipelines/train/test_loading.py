"""Batches do not depend on who loads them, and a bad photo costs nobody else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fol_model.recipes import recipe_named
from fol_model.training.config import LossWeights, TrainingConfig
from fol_model.training.learner import Batch
from fol_model.training.places import PlacePhotos
from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.train.loading import Augment, PhotoLoader, ViewConfig
from pipelines.train.photos import TrainingPhoto
from schemas.errors import ModelError
from schemas.reasons import RejectReason
from tests.pipelines.train.photos import photo, write_photo

PLACES = ((0, 1, 2), (3, 4), (5,))


def write_photos(folder: Path) -> list[TrainingPhoto]:
    """The photos of PLACES."""
    photos = []
    for place, rows in enumerate(PLACES):
        for row in rows:
            write_photo(folder / f"{row}.jpg", place=place, number=row)
            photos.append(photo(f"{row}.jpg", root=str(folder)))
    return photos


def views_of(augment: Augment = "all", *, reliability: float = 0.0) -> ViewConfig:
    training = TrainingConfig(
        places_per_batch=2, photos_per_place=2, input_size=126, losses=LossWeights(reliability=reliability), seed=3
    )
    return ViewConfig.of(recipe_named("tiny"), training, augment)


def load(
    photos: list[TrainingPhoto], plan: Sequence[Sequence[PlacePhotos]], config: ViewConfig, *, threads: int = 1, epoch: int = 0
) -> tuple[list[Batch], dict[int, RejectReason]]:
    with PhotoLoader(photos, Settings(threads=threads), PhotoLimits()) as loader:
        batches = list(loader.batches(epoch, plan, PLACES, config))
        return batches, {row: error.reason for row, error in loader.rejects.items()}


PLAN: list[list[PlacePhotos]] = [[(0, [2, 0]), (1, [3, 4])], [(2, [5, 5]), (0, [1, 2])], [(1, [4, 3]), (2, [5, 5])]]


def test_batches_are_the_same_whatever_the_number_of_threads(tmp_path: Path):
    photos = write_photos(tmp_path)

    one, _ = load(photos, PLAN, views_of(), threads=1)
    three, _ = load(photos, PLAN, views_of(), threads=3)

    assert [batch.photos for batch in one] == [["2.jpg", "0.jpg", "3.jpg", "4.jpg"], *(batch.photos for batch in three[1:])]
    assert all(np.array_equal(a.images.numpy(), b.images.numpy()) for a, b in zip(one, three, strict=True))


def test_the_rest_of_an_epoch_is_what_the_whole_would_have_ended_with(tmp_path: Path):
    photos = write_photos(tmp_path)

    whole, _ = load(photos, PLAN, views_of())
    rest, _ = load(photos, PLAN[2:], views_of())

    assert np.array_equal(whole[2].images.numpy(), rest[0].images.numpy())


def test_another_epoch_shows_other_views(tmp_path: Path):
    photos = write_photos(tmp_path)

    first, _ = load(photos, PLAN[:1], views_of())
    second, _ = load(photos, PLAN[:1], views_of(), epoch=4)

    assert not np.array_equal(first[0].images.numpy(), second[0].images.numpy())


def test_a_photo_that_is_shown_twice_is_two_views_with_known_reliability(tmp_path: Path):
    batches, _ = load(write_photos(tmp_path), [[(2, [5, 5]), (0, [0, 1])]], views_of(reliability=1.0))

    batch = batches[0]
    known = batch.known_reliability
    assert known is not None
    assert known.shape == (4, 9, 9)
    assert not np.array_equal(batch.images[0].numpy(), batch.images[1].numpy())
    assert np.nanmax(known[:2].numpy()) == 1  # the two views show parts of each other
    assert not (known[2:].numpy() == 1).any()  # of other photos only what is pasted over is known


def test_photos_of_full_places_can_be_left_as_they_are(tmp_path: Path):
    photos = write_photos(tmp_path)

    first, _ = load(photos, [[(0, [0, 1]), (2, [5, 5])]], views_of("few"))
    later, _ = load(photos, [[(0, [0, 1]), (2, [5, 5])]], views_of("few"), epoch=1)

    assert np.array_equal(first[0].images[:2].numpy(), later[0].images[:2].numpy())
    assert not np.array_equal(first[0].images[2:].numpy(), later[0].images[2:].numpy())


def test_another_photo_of_the_place_stands_in_for_an_unreadable_one(tmp_path: Path):
    photos = write_photos(tmp_path)
    (tmp_path / "0.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:900])
    (tmp_path / "3.jpg").unlink()

    batches, rejects = load(photos, [[(0, [2, 0]), (1, [3, 4])]], views_of())

    assert batches[0].photos == ["2.jpg", "1.jpg", "4.jpg", "4.jpg"]
    assert rejects == {0: RejectReason.TRUNCATED, 3: RejectReason.MISSING}


def test_a_place_without_a_readable_photo_is_left_out_of_the_batch(tmp_path: Path):
    photos = write_photos(tmp_path)
    (tmp_path / "5.jpg").write_bytes(b"")

    batches, rejects = load(photos, [[(0, [0, 1]), (2, [5, 5]), (1, [3, 4])]], views_of())

    assert batches[0].places.tolist() == [0, 0, 1, 1]
    assert rejects == {5: RejectReason.EMPTY_FILE}


def test_a_batch_of_one_readable_place_is_refused(tmp_path: Path):
    photos = write_photos(tmp_path)
    (tmp_path / "5.jpg").unlink()

    with pytest.raises(ModelError, match="only 1 of 2 places of a batch"):
        load(photos, [[(0, [0, 1]), (2, [5, 5])]], views_of())
