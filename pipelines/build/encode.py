"""images ▶ segment: encode one partition and put the result into the map's store, whole or not at all.

    fetch, decode, prepare (`catalog.loading`, ahead) ▶ network ▶ local features (behind) ▶ tables, receipt

The stages overlap, with bounded queues between them: the worker's own thread does nothing but feed the network. The same function
runs in a thread of the command and inside a Ray actor (`actors.py`) and gives byte-identical files: on CPU each photo is encoded
by itself, so neither its neighbours nor the number of workers can change it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float16

from fol_model.inference import DeviceLostError, EncodedPhoto, Encoder, PreparedPhoto
from infra.arrays import LocalFeaturesWriter, write_descriptor_codes
from infra.commits import write_receipt
from infra.observability import log_fields
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import descriptor_column, write_table
from pipelines.build.progress import EncodedSegment, SegmentTally
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.loading import Loaded, PhotoLoader, Waiting, photo_loader
from pipelines.catalog.rows import reject_row
from pipelines.engine.behind import Behind
from pipelines.engine.partition import Partition
from schemas import layout
from schemas.descriptor_codes import to_codes
from schemas.descriptors import descriptors_schema
from schemas.errors import DeviceError, ModelError, PhotoError
from schemas.local_features import LocalFeatures
from schemas.manifest import BBox, ObjectRef, Receipt
from schemas.reasons import PASSING, RejectReason
from schemas.rejects import REJECTS

BEHIND: Final = 64
"""Photos whose local features wait to be written: 3 MB of the usual ones. What is slow is a shard of them, every few seconds."""

Loader: TypeAlias = PhotoLoader[PreparedPhoto]
Turn: TypeAlias = AbstractContextManager[object]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJob:
    """What every worker of a build needs to know; small enough to send anywhere."""

    map_url: str
    recipe: str
    weights: str | None
    device: str
    limits: PhotoLimits
    run_id: str
    """For the log."""


class SegmentWorker:
    """Encodes partitions of one map, one at a time. Holds decoder processes; the network may be shared by several workers.

    Those that share a `turn` as well use the network one after the other: for two that are to overlap, not to go side by side.
    They may share a `loader` then, and so its decoders; None: it has one of its own.
    """

    def __init__(
        self,
        job: EncodeJob,
        encoder: Encoder,
        settings: Settings,
        *,
        turn: Turn = nullcontext(),  # noqa: B008  it holds nothing
        loader: Loader | None = None,
    ) -> None:
        self._turn = turn
        self._storage = open_storage(job.map_url, settings)
        self._encoder = encoder
        self._loader = loader or photo_loader(encoder, settings, job.limits)
        self._run_id = job.run_id

    def run(self, task: Partition, on_photo: Callable[[], None]) -> EncodedSegment:
        """Encode a partition. Doing it twice changes nothing: the first receipt stands.

        Raises:
            DeviceError: the GPU fails; another one may do the same partition.
            ModelError, StorageError: as `encode_partition`.
        """
        tally, start = SegmentTally(), time.perf_counter()
        with log_fields(run_id=self._run_id, segment_id=task.segment_id):
            receipt = encode_partition(task, self._storage, self._encoder, self._loader, on_photo, tally=tally, turn=self._turn)
            tally.worker_s = time.perf_counter() - start - tally.queued_s
            _log.info(
                "segment %s: %d photos, %d rejected, %.1f s, of them %.1f s in the network and %.1f s waiting for photos",
                *(task.segment_id, tally.photos, tally.rejected.total(), tally.worker_s, tally.network_s, tally.waited_s),
            )
        return EncodedSegment(receipt=receipt, tally=tally)

    def close(self) -> None:
        """Stop the decoder processes."""
        self._loader.close()


def encode_partition(
    partition: Partition,
    storage: Storage,
    encoder: Encoder,
    loader: Loader,
    on_photo: Callable[[], None],
    *,
    tally: SegmentTally | None = None,
    turn: Turn = nullcontext(),  # noqa: B008  it holds nothing
) -> Receipt:
    """Encode the photos of a partition into a segment.

    Photos that cannot be used land in the segment's `rejects.parquet`; the others are not affected. What became of them is
    counted in `tally`, also where the receipt that stands is another attempt's: the work was done. Photos that an earlier segment
    names as not to be read, and of which none can be read now either, are tried again by the next build without a segment of this
    one: there would be one more each night.

    `turn` is held while photos go through the network, not while the first are loaded and the tables are written: so partitions
    that share one may be encoded in several threads, and the network of the next begins when that of the one before ends.

    Returns:
        The receipt that stands for this segment: ours, or that of an attempt that finished first. One without objects is in no
        store: there was nothing to keep.

    Raises:
        StorageError: the store of the map or of a photo does not answer; nothing of this attempt counts.
        ModelError: the network gives no descriptor for most photos; likewise.
        DeviceError: the GPU fails, or does that; likewise.
    """
    folder = layout.segment_folder(partition.segment_id, uuid4().hex[:12])
    writer = _features_writer(storage, folder, encoder)
    tally = tally or SegmentTally()
    tally.photos = len(partition.images)
    tally.size_bytes = pc.sum(partition.images["size_bytes"]).as_py() or 0
    kept, descriptors, rejects = _encode_photos(partition.images, encoder, loader, writer, on_photo, tally, turn)
    _require_most(partition.images, rejects, encoder)
    local_features = writer.close()
    if partition.tried_before and not kept and {reject["reason"] for reject in rejects} <= PASSING:
        return _without_objects(storage, partition.segment_id, folder, local_features, len(rejects), encoder.fingerprint)
    return finish_segment(
        storage,
        partition.segment_id,
        folder,
        images=partition.images.take(pa.array(kept, pa.int64())),
        descriptors=descriptors,
        rejects=rejects,
        local_features=local_features,
        model_fingerprint=encoder.fingerprint,
    )


def _features_writer(storage: Storage, folder: str, encoder: Encoder) -> LocalFeaturesWriter:
    return LocalFeaturesWriter(
        storage,
        f"{folder}/{layout.LOCAL_FEATURES}",
        features_per_photo=encoder.max_local_features,
        dim=encoder.local_dim,
        precision=encoder.local_precision,
    )


def _without_objects(
    storage: Storage, segment_id: str, folder: str, written: list[ObjectRef], rejected: int, model_fingerprint: str
) -> Receipt:
    """Say what became of a segment of which nothing is kept."""
    for ref in written:
        storage.delete(ref.path)
    return Receipt(
        segment_id=segment_id,
        attempt=folder.rsplit("/", 1)[1],
        model_fingerprint=model_fingerprint,
        rows=0,
        rejected=rejected,
        bbox=None,
        objects=[],
    )


def finish_segment(
    storage: Storage,
    segment_id: str,
    folder: str,
    *,
    images: pa.Table,
    descriptors: Float16[np.ndarray, "n D"],
    rejects: list[dict[str, Any]],
    local_features: list[ObjectRef],
    model_fingerprint: str,
) -> Receipt:
    """Write the tables and codes of a segment whose local features are written, and then declare it finished.

    Returns:
        The receipt that stands for this segment: ours, or that of an attempt that finished first.

    Raises:
        ModelError: a descriptor has no direction; nothing of this attempt counts.
        StorageError: the store does not answer; nothing of this attempt counts.
    """
    _require_directions(images, descriptors)
    objects = [
        write_table(storage, f"{folder}/{layout.IMAGES}", images, kind="images"),
        write_table(storage, f"{folder}/{layout.DESCRIPTORS}", _descriptor_table(images, descriptors), kind="descriptors"),
        write_table(storage, f"{folder}/{layout.REJECTS}", pa.Table.from_pylist(rejects, REJECTS), kind="rejects"),
        *write_descriptor_codes(storage, f"{folder}/{layout.DESCRIPTOR_CODES}", to_codes(descriptors)),
        *local_features,
    ]
    receipt = Receipt(
        segment_id=segment_id,
        attempt=folder.rsplit("/", 1)[1],
        model_fingerprint=model_fingerprint,
        rows=len(images),
        rejected=len(rejects),
        bbox=bounding_box(images) if len(images) else None,
        objects=sorted(objects, key=lambda ref: ref.path),
    )
    return write_receipt(storage, receipt)


def bounding_box(images: pa.Table) -> BBox:
    """Give west, south, east, north of at least one photo."""
    lon, lat = images["lon_deg"].to_numpy(), images["lat_deg"].to_numpy()
    return float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())


def _encode_photos(
    images: pa.Table,
    encoder: Encoder,
    loader: Loader,
    writer: LocalFeaturesWriter,
    on_photo: Callable[[], None],
    tally: SegmentTally,
    turn: Turn,
) -> tuple[list[int], Float16[np.ndarray, "n D"], list[dict[str, Any]]]:
    """Encode photos and write their local features: the rows that came out, their descriptors, and rejects for the others."""
    kept: list[int] = []
    rejects: list[dict[str, Any]] = []
    descriptors = np.empty((len(images), encoder.descriptor_dim), np.float16)
    waiting = Waiting()
    loaded = _begun(loader.load(images, waiting))
    asked_at = time.perf_counter()
    with turn, Behind(BEHIND) as behind:
        tally.queued_s += time.perf_counter() - asked_at
        for row, photo in _in_batches(loaded, len(images), encoder, tally):
            if isinstance(photo, PhotoError):
                tally.rejected[photo.reason.value] += 1
                rejects.append(reject_row(images, row, "encode", photo))
            else:
                descriptors[len(kept)] = photo.descriptor
                behind.do(writer.append, LocalFeatures(features=photo.features, patch=photo.patch, reliability=photo.reliability))
                kept.append(row)
            on_photo()
    tally.waited_s += waiting.waited_s
    tally.ready += waiting.ready
    return kept, descriptors[: len(kept)], rejects


def _begun(photos: Iterator[Loaded[PreparedPhoto]]) -> Iterator[Loaded[PreparedPhoto]]:
    """Have the first photo made now, and others begun."""
    return chain(list(islice(photos, 1)), photos)


def _in_batches(
    photos: Iterable[Loaded[PreparedPhoto]], count: int, encoder: Encoder, tally: SegmentTally
) -> Iterator[tuple[int, EncodedPhoto | PhotoError]]:
    """Encode in batches of the size the encoder likes (1 on CPU); rows come in order within each batch's good and bad ones."""
    batch: list[tuple[int, PreparedPhoto]] = []
    for row, photo in photos:
        if isinstance(photo, PhotoError):
            yield row, photo
        else:
            batch.append((row, photo))
        if len(batch) >= encoder.batch_size or (batch and row == count - 1):
            yield from zip([number for number, _ in batch], _encoded([one for _, one in batch], encoder, tally), strict=True)
            batch.clear()


def _encoded(photos: list[PreparedPhoto], encoder: Encoder, tally: SegmentTally) -> list[EncodedPhoto | PhotoError]:
    """Put photos through the network; what comes out without a direction is tried once more, alone."""
    start = time.perf_counter()
    try:
        encoded = encoder.encode_prepared(photos)
        return [
            one if _has_direction(one) else _last_try(encoder.encode_prepared([photo])[0])
            for one, photo in zip(encoded, photos, strict=True)
        ]
    except DeviceLostError as error:
        raise DeviceError(str(error)) from error
    finally:
        tally.network_s += time.perf_counter() - start


def _last_try(photo: EncodedPhoto) -> EncodedPhoto | PhotoError:
    if _has_direction(photo):
        return photo
    return PhotoError(RejectReason.NO_DESCRIPTOR, "the network gave zeros or NaN for it, twice")


def _has_direction(photo: EncodedPhoto) -> bool:
    with np.errstate(over="ignore"):  # infinite then
        stored = photo.descriptor.astype(np.float16)
    return bool(np.isfinite(stored).all() and stored.any())


def _require_most(images: pa.Table, rejects: list[dict[str, Any]], encoder: Encoder) -> None:
    """Refuse a segment when the network gave no descriptor for most of its photos: that is no fault of theirs."""
    failed = [reject["uri"] for reject in rejects if reject["reason"] == RejectReason.NO_DESCRIPTOR.value]
    decoded = len(images) - len(rejects) + len(failed)
    if 2 * len(failed) <= decoded:
        return
    found = (
        f"{failed[0]}: the network gave zeros or NaN for it, as for {len(failed):,} of the {decoded:,} photos of its segment; "
        "needed finite numbers. Nothing of the segment counts, and nothing was published."
    )
    if encoder.is_on_cpu:
        raise ModelError(f"{found} Check the weights: folio models")
    raise DeviceError(f"{found} Look at the GPU with nvidia-smi, try --device cpu, and check the weights: folio models")


def _require_directions(images: pa.Table, descriptors: Float16[np.ndarray, "n D"]) -> None:
    """Refuse descriptors that are not finite, or all zeros: FAISS would lose their photos without a word, or not train."""
    good = np.isfinite(descriptors).all(axis=1) & (descriptors != 0).any(axis=1)
    if not good.all():
        first, bad = int(np.argmin(good)), len(good) - int(good.sum())
        found = "zeros" if np.isfinite(descriptors[first]).all() else "NaN"
        raise ModelError(
            f"{images['uri'][first]}: the network gave a descriptor of {found} for it, as "
            f"for {bad:,} of the {len(good):,} photos of its segment; needed finite numbers. "
            "Nothing of the segment counts, and nothing was published. Try --device cpu, and check the weights: folio models"
        )


def _descriptor_table(images: pa.Table, descriptors: np.ndarray) -> pa.Table:
    columns = [images["image_id"], descriptor_column(descriptors), images["geometry"], images["bbox"]]
    return pa.Table.from_arrays(columns, schema=descriptors_schema(descriptors.shape[1]))
