"""Sources ▶ a training set: photos, places for each epoch, and what is held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from infra.observability import progress
from infra.settings import Settings
from pipelines.catalog.sample_city.photos import plan_sample_city, write_photos
from pipelines.train.catalog_photos import read_catalog
from pipelines.train.gsv_cities import read_gsv_cities
from pipelines.train.hold_out import hold_out
from pipelines.train.layouts import Place, places_of
from pipelines.train.photos import Photos, TrainingPhoto
from pipelines.train.request import TrainRequest
from pipelines.train.validation import Validation, plan_validation
from schemas.errors import CatalogError

CITY_SEED: Final = 1001
"""Of the made-up town for seed 0. Not 1, the town that `folio sample-city` makes and benchmarks measure on."""

CITY_QUERIES_PER_PLACE: Final = 24
"""Photos that passers-by take at each place of the made-up town, in four kinds of weather, beside the survey car's four."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSet:
    """What a network is trained on, and measured with."""

    photos: list[TrainingPhoto]

    layouts: tuple[tuple[Place, ...], ...]
    """The places of one epoch after the other, and again from the first. Rows of `photos`."""

    validation: Validation | None
    """None: nothing could be held out."""

    held_out: int
    """Photos that are kept from training."""

    rejects: list[dict[str, object]]

    notes: list[str]

    def places_at(self, epoch: int) -> tuple[Place, ...]:
        """The places of an epoch."""
        return self.layouts[epoch % len(self.layouts)]

    def facts(self) -> dict[str, Any]:
        """Say for the plan what it is. The digest covers every photo's name, size, checksum and place."""
        photos = msgspec.json.encode([replace(photo, root="") for photo in self.photos])  # they may move to another disk
        rows = None if self.validation is None else self.validation.rows
        return {
            "photos": len(self.photos),
            "places": len(self.layouts[0]),
            "held_out": self.held_out,
            "digest": hashlib.sha256(photos + msgspec.json.encode([self.layouts, rows])).hexdigest(),
        }


def read_training_set(request: TrainRequest, settings: Settings) -> TrainingSet:
    """Read the sources and arrange their photos.

    Raises:
        CatalogError: a source cannot be understood, or there are no places to train on.
        StorageError: a store does not answer.
    """
    found = _read(request, settings)
    split = hold_out(found.photos, request.hold_out, seed=request.training.seed)
    layouts = places_of(found.photos, split.training, request.cells)
    _require_places(found, layouts, request)
    validation = plan_validation(found.photos, split.validation, max_queries=request.hold_out.max_queries)
    notes = [*found.notes, *split.notes, *_notes_on_places(layouts[0], request)]
    if validation is None:
        notes.append(
            "nothing can be validated: no two held-out photos are known to show the same place; the last weights are kept"
        )
    return TrainingSet(
        photos=found.photos,
        layouts=layouts,
        validation=validation,
        held_out=len(split.validation),
        rejects=found.rejects,
        notes=notes,
    )


def _read(request: TrainRequest, settings: Settings) -> Photos:
    sources, parts = request.sources, []
    if sources.gsv_cities is not None:
        parts.append(read_gsv_cities(Path(sources.gsv_cities), photos_per_place=request.training.photos_per_place))
    listed = list(sources.photos)
    if sources.sample_city is not None:
        listed.append(str(write_city(Path(request.out), places=sources.sample_city, seed=CITY_SEED + request.training.seed)))
    if listed:
        drives = sources.folders_are_drives
        parts.append(read_catalog(listed, folders_are_drives=drives, settings=settings, limits=request.limits))
    if not parts:
        raise CatalogError("no photos to train on. Nothing was started. Give folders or tables, --gsv-cities or --sample-city.")
    return Photos(
        photos=[photo for part in parts for photo in part.photos],
        rejects=[reject for part in parts for reject in part.rejects],
        notes=[note for part in parts for note in part.notes],
    )


def write_city(out: Path, *, places: int, seed: int) -> Path:
    """Make the photos of a town in a run's folder, unless they are there."""
    folder = out / "sample-city"
    if not folder.exists():
        part = out / "sample-city.part"
        city = plan_sample_city(seed=seed, places=places, queries=CITY_QUERIES_PER_PLACE * places, unmapped=0)
        photos = len(city.database) + len(city.queries)
        for _ in progress(write_photos(city, part), total=photos, unit="photo", description="sample city"):
            pass
        part.rename(folder)
    return folder


def _require_places(found: Photos, layouts: Sequence[Sequence[Place]], request: TrainRequest) -> None:
    """Refuse what cannot fill a batch.

    Raises:
        CatalogError: there are too few places.
    """
    fewest = min(len(places) for places in layouts)
    needed = request.fewest_places if request.fewer_places else request.training.places_per_batch
    if fewest < needed:
        rejected = f" {len(found.rejects):,} photos were rejected." if found.rejects else ""
        raise CatalogError(
            f"{len(found.photos):,} photos give {fewest:,} places to train on, and a batch needs {needed:,}.{rejected} "
            f"Nothing was started. Give more photos, lower --places, or hold out less (--validate {request.hold_out.share:g})."
        )


def _notes_on_places(places: Sequence[Place], request: TrainRequest) -> list[str]:
    few = sum(len(place) < request.training.photos_per_place for place in places)
    if not few:
        return []
    what = "they are shown in several augmented views" if request.training.few_photos == "augment" else "they are left out"
    single = sum(len(place) == 1 for place in places)
    needed = request.training.photos_per_place
    return [f"{few:,} of {len(places):,} places have fewer than {needed} photos ({single:,} have one): {what}"]
