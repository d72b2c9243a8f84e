"""A backbone in bfloat16 says the same as one in float32, and a GPU's memory is used as far as it goes and no further."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fol_model.config import Recipe
from fol_model.inference import BatchSize, EncodedPhoto, Encoder, arithmetic_named, in_batches, open_encoder
from fol_model.recipes import recipe_named, tiny
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits

STREET = Path(__file__).parents[3] / "shared/data/street"


@pytest.fixture(scope="module")
def street() -> list[np.ndarray]:
    """Real photos: each sixth of a drive."""
    files = sorted((STREET / "mapillary_seq").rglob("*.jpg"))[::6]
    if not files:
        pytest.skip("no photos in ../shared/data/street/mapillary_seq")
    with PhotoDecoder(PhotoLimits()) as decoder:
        return [decoder.decode(file.read_bytes(), min_side=322) for file in files]


def both(recipe: Recipe, photos: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors in float32 and in bfloat16, rows of unit length."""
    seeded = replace(recipe, seed=0)
    exact, rounded = (
        np.stack([one.descriptor for one in Encoder(seeded, device="cpu", arithmetic=kind).encode(photos)]).astype(np.float64)
        for kind in ("float32", "bfloat16")
    )
    return exact, rounded


@pytest.mark.parametrize("recipe", [tiny(), replace(recipe_named("folpp_vits14"), input_size=224)], ids=lambda one: one.name)
def test_descriptors_of_a_backbone_in_bfloat16_have_a_cosine_of_at_least_0_9999(street: list[np.ndarray], recipe: Recipe):
    exact, rounded = both(recipe, street[: 20 if recipe.name == "tiny" else 3])

    cosines = (exact * rounded).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() >= 0.9999
    assert (exact != rounded).any(), "or nothing was rounded"


def test_the_same_photos_are_found_first(street: list[np.ndarray]):
    """Every second photo looks for the others: recall@1 moves by less than 0.1 points when no first one changes."""
    exact, rounded = both(tiny(), street)

    first = [(rows[::2] @ rows[1::2].T).argmax(axis=1) for rows in (exact, rounded)]
    assert np.array_equal(*first)


def test_a_backbone_that_learns_nothing_stays_as_it_is(street: list[np.ndarray]):
    """Histograms of gradients are computed in float32 whatever is asked for, and so are all heads."""
    (exact,) = open_encoder("folio-small", weights=None, device="cpu", arithmetic="float32").encode(street[:1])
    (rounded,) = open_encoder("folio-small", weights=None, device="cpu", arithmetic="bfloat16").encode(street[:1])

    assert np.array_equal(exact.descriptor, rounded.descriptor)
    assert np.array_equal(exact.features, rounded.features)


def test_float32_is_what_it_says_also_where_the_processor_has_more():
    cpu = torch.device("cpu")

    assert arithmetic_named("float32", cpu) is torch.float32
    assert arithmetic_named("bfloat16", cpu) is torch.bfloat16
    assert arithmetic_named("auto", cpu) in (torch.float32, torch.bfloat16)


class Gpu:
    """Holds so many photos at once. `encode` gives each its number."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.batches: list[int] = []

    def encode(self, photos: Sequence[int]) -> list[EncodedPhoto]:
        if len(photos) > self.room:
            raise torch.OutOfMemoryError("no memory left")
        self.batches.append(len(photos))
        return [
            EncodedPhoto(
                descriptor=np.array([one], np.float32),
                features=np.empty((0, 1), np.int8),
                patch=np.empty((0, 2), np.uint8),
                reliability=np.empty(0, np.uint8),
            )
            for one in photos
        ]


@pytest.mark.parametrize("room", [1, 3, 7, 8, 100])
def test_a_batch_that_does_not_fit_is_tried_in_halves_and_no_photo_is_lost(room: int):
    gpu, size = Gpu(room), BatchSize(16)

    found = in_batches(range(45), size, gpu.encode)

    assert [int(one.descriptor[0]) for one in found] == list(range(45))
    assert size.now == min(16, 1 << room.bit_length() - 1)  # and stays there: the next photos begin with what fitted
    assert max(gpu.batches) <= room


def test_a_gpu_without_room_for_one_photo_says_so():
    with pytest.raises(torch.OutOfMemoryError):
        in_batches(range(3), BatchSize(16), Gpu(0).encode)


@pytest.mark.parametrize(("free", "each", "expected"), [(1000, 100, 8), (1000, 2, 64), (100, 100, 1), (10, 100, 1), (99, 0, 64)])
def test_the_first_size_is_what_fits_into_the_memory_that_is_free(free: int, each: int, expected: int):
    size = BatchSize(64)

    size.fit(lambda: (free, each))

    assert size.now == expected


def test_the_size_is_found_once():
    size = BatchSize(64)
    size.fit(lambda: (1000, 100))

    size.fit(lambda: pytest.fail("measured again"))
