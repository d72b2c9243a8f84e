"""Batches are whole, fair, and the same for the same seed and epoch."""

from collections import Counter

import pytest

from fol_model.training.config import TrainingConfig
from fol_model.training.places import PlaceSampler, photo_rng, share_of

CONFIG = TrainingConfig(places_per_batch=3, photos_per_place=2, seed=5)
PLACES = [[10 * place + photo for photo in range(3)] for place in range(10)]


def test_a_batch_has_p_places_and_k_different_photos_of_each():
    batches = PlaceSampler(PLACES, CONFIG).epoch(0)

    assert len(batches) == PlaceSampler(PLACES, CONFIG).batches_per_epoch == 3
    for batch in batches:
        assert len({place for place, _ in batch}) == 3
        for place, photos in batch:
            assert len(set(photos)) == 2
            assert set(photos) <= set(PLACES[place])


def test_no_place_comes_twice_in_an_epoch():
    drawn = Counter(place for batch in PlaceSampler(PLACES, CONFIG).epoch(0) for place, _ in batch)

    assert set(drawn.values()) == {1}


def test_an_epoch_is_a_function_of_the_seed_and_its_number():
    """A resumed run asks a new sampler for an epoch in the middle."""
    straight = PlaceSampler(PLACES, CONFIG)
    epochs = [straight.epoch(number) for number in range(3)]

    assert PlaceSampler(PLACES, CONFIG).epoch(2) == epochs[2]
    assert epochs[1] != epochs[2]


def test_the_places_left_over_have_their_turn_later():
    sampler = PlaceSampler(PLACES, CONFIG)

    assert {place for epoch in range(20) for batch in sampler.epoch(epoch) for place, _ in batch} == set(range(10))


def test_a_place_with_few_photos_repeats_them_as_evenly_as_can_be():
    config = TrainingConfig(places_per_batch=2, photos_per_place=5)
    sampler = PlaceSampler([[1], [2, 3], [4, 5, 6, 7, 8]], config)

    drawn = {place: sorted(Counter(photos).values()) for epoch in range(9) for b in sampler.epoch(epoch) for place, photos in b}

    assert drawn == {0: [5], 1: [2, 3], 2: [1, 1, 1, 1, 1]}
    assert sampler.short == (0, 1)
    assert sampler.left_out == ()


def test_a_place_with_few_photos_is_left_out_if_asked_and_named():
    config = TrainingConfig(places_per_batch=2, photos_per_place=2, few_photos="leave_out")
    sampler = PlaceSampler([[1], [2, 3], [], [4, 5]], config)

    assert {place for place, _ in sampler.epoch(0)[0]} == {1, 3}
    assert sampler.left_out == sampler.short == (0, 2)


def test_a_place_without_photos_is_never_drawn():
    assert PlaceSampler([[], [1], [2], [3]], CONFIG).left_out == (0,)


@pytest.mark.parametrize("places", [[], [[]], [[1, 2]], [[1], [2]]])
def test_too_few_places_for_one_batch_are_refused_with_the_setting_to_lower(places: list[list[int]]):
    with pytest.raises(ValueError, match=r"needs places_per_batch=3 places, but . of . places have .* Lower places_per_batch"):
        PlaceSampler(places, CONFIG)


def test_workers_share_a_batch_equally_and_completely():
    batch = PlaceSampler(PLACES, TrainingConfig(places_per_batch=6, photos_per_place=2)).epoch(0)[0]

    assert [*share_of(batch, 0, 3), *share_of(batch, 1, 3), *share_of(batch, 2, 3)] == batch
    with pytest.raises(ValueError, match="a multiple of the number of workers, 4, and at least twice it; got 6"):
        share_of(batch, 0, 4)


def test_every_photo_shown_has_a_stream_of_its_own():
    drawn = [photo_rng(5, epoch, place, turn).random() for epoch in (0, 1) for place in (0, 1) for turn in (0, 1)]

    assert len(set(drawn)) == 8
    assert photo_rng(5, 1, 1, 1).random() == drawn[-1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"photos_per_place": 1}, "no photo has a positive; got 1"),
        ({"places_per_batch": 3, "accumulate": 2}, "at least 2 for each of accumulate=2"),
        ({"learned_blocks": -1}, "None learns all"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_settings_that_cannot_train_are_refused(wrong: dict[str, float], said: str):
    with pytest.raises(ValueError, match=said):
        TrainingConfig(**wrong)  # type: ignore[arg-type]


def test_the_learning_rate_falls_in_a_line_and_stays():
    """1.0 to 0.1 of 6e-5 over 10,000 steps; half way it is 0.55."""
    rates = [TrainingConfig().rate_at(step) for step in (0, 5_000, 10_000, 20_000)]

    assert rates == pytest.approx([6e-5, 3.3e-5, 6e-6, 6e-6])
