"""Which photos a step learns from: P places, K photos of each.

A pure function of the seed and the epoch, so that a run is resumed from the number of its steps alone. Used by `pipelines/train`.

Letters: P places in a batch, K photos of a place.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from fol_model.training.config import TrainingConfig

PlacePhotos = tuple[int, list[int]]
"""A place, and K photos of it. A photo that is there twice is meant to be shown in two different augmented views."""


class PlaceSampler:
    """Shuffles places and draws photos, epoch by epoch.

    Args:
        places: the photos of each place, as indices.
        config: P, K, the seed, and what becomes of places with few photos.

    Raises:
        ValueError: fewer than two places can be used, so that no photo would have a negative; or too few for one batch.
    """

    def __init__(self, places: Sequence[Sequence[int]], config: TrainingConfig) -> None:
        self._config: Final = config
        self._photos: Final = [tuple(photos) for photos in places]
        self.short: Final = tuple(place for place, photos in enumerate(self._photos) if len(photos) < config.photos_per_place)
        """Places with fewer than K photos. `few_photos` says what becomes of them."""
        needed = config.photos_per_place if config.few_photos == "leave_out" else 1
        self.used: Final = tuple(place for place, photos in enumerate(self._photos) if len(photos) >= needed)
        """Places that are learnt from."""
        if len(self.used) < config.places_per_batch:
            found = f"{len(self.used):,} of {len(self._photos):,} places have at least {needed} photos each"
            raise ValueError(
                f"training needs places_per_batch={config.places_per_batch} places, but {found}. Lower places_per_batch (2 is "
                f"the least), add photos, or see whether few_photos={config.few_photos!r} leaves too many out"
            )

    @property
    def left_out(self) -> tuple[int, ...]:
        """Places that are never learnt from, for want of photos."""
        used = set(self.used)
        return tuple(place for place in range(len(self._photos)) if place not in used)

    @property
    def batches_per_epoch(self) -> int:
        """Steps in an epoch. The places left over after the last full batch have their turn in another epoch."""
        return len(self.used) // self._config.places_per_batch

    def epoch(self, epoch: int) -> list[list[PlacePhotos]]:
        """List the batches of an epoch, counted from 0: full ones, no place twice."""
        rng = np.random.default_rng([self._config.seed, epoch])
        P = self._config.places_per_batch
        order = rng.permutation(self.used)[: self.batches_per_epoch * P].tolist()
        drawn = [(place, self._drawn(place, rng)) for place in order]
        return [drawn[start : start + P] for start in range(0, len(drawn), P)]

    def _drawn(self, place: int, rng: np.random.Generator) -> list[int]:
        """Draw K photos of a place: all different, or, if it has fewer, each as often as any other, give or take one."""
        photos = self._photos[place]
        shuffled = [photos[index] for index in rng.permutation(len(photos))]
        K = self._config.photos_per_place
        return (shuffled * -(-K // len(shuffled)))[:K]


def share_of(batch: Sequence[PlacePhotos], rank: int, workers: int) -> list[PlacePhotos]:
    """Give a worker its part of a batch: equally many places as every other, so that the mean of their gradients is the batch's.

    Raises:
        ValueError: the places cannot be shared out equally.
    """
    each, rest = divmod(len(batch), workers)
    if rest or each < 2:
        raise ValueError(
            f"places_per_batch must be a multiple of the number of workers, {workers}, and at least twice it; got {len(batch)}"
        )
    return list(batch[rank * each : (rank + 1) * each])


def photo_rng(seed: int, epoch: int, place: int, turn: int) -> np.random.Generator:
    """Make the generator that augments a photo: the same in a resumed run and on any worker.

    Args:
        seed: of the run.
        epoch: counted from 0.
        place: the place the photo is shown for.
        turn: 0 to K - 1, which of the place's photos it is.
    """
    return np.random.default_rng([seed, epoch, 1 + place, turn])  # place 0 turn 0 would be the stream that the sampler draws from
