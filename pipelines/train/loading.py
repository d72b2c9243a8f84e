"""Photos ▶ batches, ahead of the network and in threads, so that it need not wait.

What a batch holds depends on the seed, the epoch and the photos alone, not on the threads: each place is made by itself, from
random streams of its own, and batches come in their order. A photo that cannot be read is a reject; another of its place stands
in.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8

from fol_model.config import Recipe
from fol_model.inference import use_threads
from fol_model.training.augment import reliability_targets, views
from fol_model.training.config import AugmentConfig, TrainingConfig
from fol_model.training.door import as_batch
from fol_model.training.learner import Batch
from fol_model.training.places import PlacePhotos, photo_rng
from infra.settings import Settings
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.locations import locate
from pipelines.catalog.reading import PhotoReader, Storages, photo_errors
from pipelines.train.layouts import Place
from pipelines.train.photos import TrainingPhoto
from schemas.errors import ModelError, PhotoError

BATCHES_AHEAD: Final = 2
"""Batches that wait ready. At 60 x 4 photos of 322 px: 300 MB each."""

AS_IT_IS: Final = AugmentConfig(
    crop_min=1.0,
    rotation_deg=0.0,
    perspective=0.0,
    colour=0.0,
    night=0.0,
    weather=0.0,
    blur=0.0,
    noise=0.0,
    jpeg=0.0,
    occluder=0.0,
)
"""A view that is the photo, resized."""

Augment = Literal["all", "few"]

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig:
    """How photos become what the network sees."""

    training: TrainingConfig
    size_px: int
    """Side of a view."""
    grid: int
    """Patches along a side."""
    augment: Augment
    """`all`: each photo is another view each time. `few`: only photos of places with fewer than K, which are shown repeatedly."""
    reliability: bool
    """Hand on which patches are hidden or seen again, to learn reliability from."""

    @classmethod
    def of(cls, recipe: Recipe, training: TrainingConfig, augment: Augment) -> "ViewConfig":
        """Fill it in from a recipe and the settings of training."""
        size_px = training.size_for(recipe)
        return cls(
            training=training,
            size_px=size_px,
            grid=recipe.grid_side_at(size_px),
            augment=augment,
            reliability=training.losses.reliability > 0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """The views of one place."""

    place: int
    images: list[UInt8[np.ndarray, "S S 3"]]
    reliability: list[Float32[np.ndarray, "g g"]]
    names: list[str]


class PhotoLoader:
    """Reads, decodes and augments photos in threads, each with a decoder process of its own. Use it in `with`."""

    def __init__(self, photos: Sequence[TrainingPhoto], settings: Settings, limits: PhotoLimits) -> None:
        self.rejects: Final[dict[int, PhotoError]] = {}
        """Photos that could not be read, by row. Grows."""
        self._photos = photos
        self._limits = limits
        self._storages = Storages(settings)
        self._reader = PhotoReader(settings, limits)
        self._threads = settings.threads
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="photos", initializer=use_threads, initargs=(1,))
        self._local = threading.local()
        self._decoders: list[PhotoDecoder] = []

    def pixels(self, rows: Sequence[int], *, min_side: int | None) -> Iterator[UInt8[np.ndarray, "H W 3"] | None]:
        """Decode photos in their order; None for one that cannot be read."""
        yield from _in_order(self._pool, lambda row: self._decoded(row, min_side), rows, ahead=4 * self._threads)

    def batches(
        self, epoch: int, plan: Sequence[Sequence[PlacePhotos]], places: Sequence[Place], config: ViewConfig
    ) -> Generator[Batch, None, None]:
        """Make the batches of an epoch, or the rest of them.

        Args:
            epoch: decides what the views look like.
            plan: the places of each batch, from a `PlaceSampler`.
            places: all photos of each place, to stand in for unreadable ones.
            config: how photos become views.

        Raises:
            ModelError: too few places of a batch can be read.
            StorageError: a store does not answer.
        """
        made = self._made(epoch, plan, places, config)
        with ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=use_threads, initargs=(1,)) as one_thread:
            yield from _in_order(one_thread, lambda _: next(made), plan, ahead=BATCHES_AHEAD)

    def _made(
        self, epoch: int, plan: Sequence[Sequence[PlacePhotos]], places: Sequence[Place], config: ViewConfig
    ) -> Iterator[Batch]:
        flat = [(place, rows) for batch in plan for place, rows in batch]
        per_batch = len(plan[0]) if plan else 0
        seen = _in_order(self._pool, lambda one: self._place(epoch, one, places, config), flat, ahead=BATCHES_AHEAD * per_batch)
        for batch in plan:
            readable = [one for one in (next(seen) for _ in batch) if one is not None]
            if len(readable) < 2 * config.training.accumulate:
                raise ModelError(
                    f"only {len(readable)} of {len(batch)} places of a batch have a photo that can be read, and at least "
                    f"{2 * config.training.accumulate} are needed. The last checkpoint is whole. Look at the photos"
                )
            yield _as_batch(readable, config)

    def _place(self, epoch: int, drawn: PlacePhotos, places: Sequence[Place], config: ViewConfig) -> _Seen | None:
        """Make the views of one place; None when none of its photos can be read."""
        place, rows = drawn
        min_side = ceil(config.size_px / config.training.augment.crop_min)
        pixels = {row: self._decoded(row, min_side) for row in dict.fromkeys(rows)}
        if any(found is None for found in pixels.values()):
            rows, pixels = self._with_stand_ins(rows, pixels, places[place], min_side)
        if not rows:
            return None
        few = len(places[place]) < config.training.photos_per_place
        augment = config.training.augment if few or config.augment == "all" else AS_IT_IS
        seen = _Seen(place=place, images=[], reliability=[], names=[])
        for row, count in Counter(rows).items():
            photo = pixels[row]
            assert photo is not None
            rng = photo_rng(config.training.seed, epoch, place, rows.index(row))
            made = views(photo, count, rng, augment if count == 1 else config.training.augment, size_px=config.size_px)
            seen.images.extend(view.image for view in made)
            seen.names.extend([self._photos[row].uri] * count)
            if config.reliability:
                seen.reliability.extend(reliability_targets(made, config.grid))
        return seen

    def _with_stand_ins(
        self,
        rows: Sequence[int],
        pixels: dict[int, UInt8[np.ndarray, "H W 3"] | None],
        place: Place,
        min_side: int,
    ) -> tuple[list[int], dict[int, UInt8[np.ndarray, "H W 3"] | None]]:
        """Replace unreadable photos by others of the place, and where there are none by readable ones once more."""
        kept = [row for row in rows if pixels[row] is not None]
        for other in place:
            if len(kept) < len(rows) and other not in pixels:
                pixels[other] = self._decoded(other, min_side)
                if pixels[other] is not None:
                    kept.append(other)
        return [kept[at % len(kept)] for at in range(len(rows))] if kept else [], pixels

    def _decoded(self, row: int, min_side: int | None) -> UInt8[np.ndarray, "H W 3"] | None:
        """Read and decode one photo; None, and a reject, if that cannot be done."""
        if not hasattr(self._local, "decoder"):
            self._local.decoder = PhotoDecoder(self._limits)
            self._decoders.append(self._local.decoder)
        decoder: PhotoDecoder = self._local.decoder
        try:
            return decoder.decode(self._bytes(self._photos[row]), min_side=min_side)
        except PhotoError as error:
            self.rejects[row] = error
            return None

    def _bytes(self, photo: TrainingPhoto) -> bytes:
        if photo.checksum is not None:
            return self._reader.read(photo.uri, photo.root, size_bytes=photo.size_bytes, checksum=photo.checksum)
        location = locate(photo.uri, photo.root)
        with photo_errors(location):
            return self._storages.get(location, stop=self._limits.max_bytes + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()


def _in_order(pool: ThreadPoolExecutor, work: Callable[[A], B], items: Iterable[A], *, ahead: int) -> Iterator[B]:
    """Work on items in the pool's threads, a limited number ahead; results in the order of the items."""
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _as_batch(places: Sequence[_Seen], config: ViewConfig) -> Batch:
    counts = [len(one.images) for one in places]
    return as_batch(
        np.stack([image for one in places for image in one.images]),
        np.repeat(np.array([one.place for one in places], np.int64), counts),
        np.stack([known for one in places for known in one.reliability]) if config.reliability else None,
        [name for one in places for name in one.names],
    )
