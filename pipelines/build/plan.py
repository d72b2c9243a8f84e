"""What a build would do and cost, before it spends anything. `--plan` prints this and stops."""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from fol_model.inference import Encoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.loading import AHEAD, BYTES_AHEAD, most_decoders
from pipelines.ivfpq import IndexConfig, derive_parameters
from schemas.errors import PlanError
from schemas.local_features import bytes_per_feature
from schemas.manifest import decode_document
from schemas.versions import FORMATS

SEGMENT_BYTES: Final = 48_000
"""Of a segment beside its photos: the index of a shard of its arrays, metadata, and the footers of three tables."""

EXACT_PHOTOS: Final = 256

TRIAL_PHOTOS: Final = 3
"""Forward passes timed for the estimate; the first warms up and is not counted."""


class BuildPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Work, memory and disk of a build. Also `runs/<run_id>/plan.json`."""

    format_version: int = FORMATS["plan"]
    run_id: str
    mode: str
    """`build` or `backfill`."""
    recipe: str
    trained: bool
    photos_listed: int
    photos_rejected: int
    """By the catalog; photos that do not decode come on top."""
    photos_known: int
    """Encoded or rejected before; nothing to do."""
    photos_to_encode: int
    segments_to_encode: int
    workers: int
    memory_bytes: int
    """Most that all workers, or the training after them, should need at once."""
    store_bytes: int
    """At most that many are added to the map's store, by segments and the index."""
    photos_dropped: int = 0
    """In the map now, and not in what it would become."""
    segments_to_merge: int = 0
    """Small, mostly masked or to be purged; copied into fresh ones without the network."""
    photos_to_copy: int = 0
    """In those."""
    quantizer: str = ""
    """Whether it is kept or trained, and why."""
    training_bytes: int = 0
    """Memory that training it should need, after the workers are done."""
    base: int | None = None
    """The version that the run starts from; None: there is none yet."""
    reused: list[str] = []
    """Segments beyond those of that version which runs before have left, and whose photos are not encoded again. With `base`, it
    fixes how the others are cut: a run that was interrupted goes on with the same cuts."""
    sha256: str = ""
    """The seal; see `schemas.manifest`. Empty until the document is written."""

    def lines(self) -> list[str]:
        """Say it to a person."""
        merging = f"{self.segments_to_merge:,} segments with {self.photos_to_copy:,} photos, without the network"
        return [
            f"{self.photos_listed:,} photos listed, {self.photos_rejected:,} rejected, {self.photos_known:,} known, "
            f"{self.photos_dropped:,} to be dropped",
            f"work    {self.photos_to_encode:,} photos in {self.segments_to_encode:,} segments to encode with {self.recipe}"
            f"{'' if self.trained else ' (untrained)'}, {self.workers} at once",
            *([f"merge   {merging}"] if self.segments_to_merge else []),
            f"index   quantizer {self.quantizer}",
            f"memory  up to {self.memory_bytes / 1e9:.1f} GB",
            f"disk    up to {self.store_bytes / 1e6:,.1f} MB more in the map's store",
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedEstimate:
    """How fast this machine encodes, measured now on a made-up picture."""

    photos_per_second: float
    """Of one worker, without fetching and decoding."""


def name_run(mode: str, model_fingerprint: str, photo_keys: Sequence[str]) -> str:
    """Name a run by what it is to do: 16 hex digits, the same when it is started again."""
    return hashlib.sha256(msgspec.json.encode([mode, model_fingerprint, sorted(photo_keys)])).hexdigest()[:16]


def memory_needed(encoder: Encoder, photos: int, workers: int, limits: PhotoLimits) -> int:
    """Network once, and for each worker its decoders (512 MB each at most), photos ahead, a segment's descriptors, a shard.

    What the largest photo takes in one worker while it is prepared colour by colour is in the 900 MB of the process.
    """
    whole = workers * 8 * limits.max_pixels if encoder.prepares_whole else 0
    decoders, zarr_shard = most_decoders(encoder) * (512 << 20), 64 << 20
    ahead = BYTES_AHEAD + (2 * encoder.batch_size + AHEAD) * encoder.prepared_bytes
    of_worker = decoders + ahead + zarr_shard + photos * encoder.descriptor_dim * 2
    return encoder.weight_bytes + workers * of_worker + whole + (900 << 20)


def training_memory(encoder: Encoder, photos: int, config: IndexConfig) -> int:
    """Network, and what training a quantizer takes: the sample, and beside it first its axes, then its codes; 0: too few photos.

    Measured at 1,000, 10,000 and 100,000 photos of 8,448 numbers: 0.12, 0.77 and 1.89 GB; this says 0.13, 0.89 and 2.07 beside
    the network.
    """
    parameters = derive_parameters(photos, encoder.descriptor_dim, config)
    if parameters is None:
        return 0
    sample, axes_of = min(photos, config.train_photos), min(photos, config.pca_photos)
    beside = max(axes_of * (8 * encoder.descriptor_dim + 16 * axes_of), 16 * sample * parameters.pca_dim)
    return encoder.weight_bytes + int(1.25 * (2 * sample * encoder.descriptor_dim + beside)) + (900 << 20)


def decode_plan(data: bytes, *, where: str) -> BuildPlan:
    """Read a stored plan.

    Raises:
        DamagedError: it is not what was written.
        FormatError: not a plan, or one of a format this Folio does not read.
    """
    return decode_document(data, BuildPlan, "plan", where=where)


def bytes_per_photo(encoder: Encoder) -> int:
    """Count what one photo takes in a segment at most: descriptor, its code, local features with patch and reliability, row."""
    per_feature = bytes_per_feature(encoder.local_dim, encoder.local_precision)
    return 3 * encoder.descriptor_dim + encoder.max_local_features * per_feature + 400


def index_bytes(encoder: Encoder, photos: int) -> int:
    """Count what the index of so many photos takes at most.

    A small map has descriptors as float32; a larger one as much as 256 of them in its quantizer, and a code and an id a photo.
    """
    return 4 * encoder.descriptor_dim * min(photos, EXACT_PHOTOS) + 140 * photos


def measure_speed(encoder: Encoder) -> SpeedEstimate:
    """Time a few forward passes of this network on this machine."""
    photo = np.zeros((encoder.recipe.input_size, encoder.recipe.input_size, 3), np.uint8)
    encoder.encode([photo])
    start = time.perf_counter()
    for _ in range(TRIAL_PHOTOS - 1):
        encoder.encode([photo])
    return SpeedEstimate(photos_per_second=(TRIAL_PHOTOS - 1) / (time.perf_counter() - start))


def require_memory(plan: BuildPlan, there_bytes: int | None, needed: Callable[[int], int]) -> None:
    """Refuse a build whose workers this machine has no memory for, and name how many it has.

    Args:
        plan: of the build.
        there_bytes: of the machine or container; None: not known, so nothing is refused.
        needed: bytes for so many workers.

    Raises:
        PlanError: it would not fit.
    """
    if there_bytes is None or not plan.photos_to_encode or plan.memory_bytes <= there_bytes:
        return
    fits = next((workers for workers in range(plan.workers - 1, 0, -1) if needed(workers) <= there_bytes), 0)
    remedy = f"FOLIO_THREADS={fits} would fit" if fits else f"One worker takes {needed(1) / 1e9:.1f} GB: use a larger machine"
    if plan.training_bytes > there_bytes:
        training = f"{plan.training_bytes / 1e9:.1f} GB"
        remedy = f"Training the index takes {training}, however many workers there are: use a larger machine"
    raise PlanError(
        f"the build would need up to {plan.memory_bytes / 1e9:.1f} GB of memory with {plan.workers} workers, but this machine or "
        f"container has {there_bytes / 1e9:.1f} GB. Nothing was written. {remedy}, a smaller network, or Ray on other machines."
    )


def require_room(plan: BuildPlan, map_url: str) -> None:
    """Refuse a build that the map's disk has no room for. Buckets are taken to be large enough.

    Raises:
        PlanError: it would not fit.
    """
    folder = Path(map_url.removeprefix("file://"))
    if "://" in map_url.removeprefix("file://"):
        return
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if plan.store_bytes > free:
        raise PlanError(
            f"{map_url}: the build would write up to {plan.store_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free. "
            "Nothing was written. Free some space, or put the map elsewhere."
        )
