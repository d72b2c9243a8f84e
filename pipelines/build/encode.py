"""images ▶ segment: encode one partition and put the result into the map's store, whole or not at all.

The same function runs in a thread of the command and inside a Ray actor (`actors.py`) and gives byte-identical files: on CPU each
photo is encoded by itself, so neither its neighbours nor the number of workers can change it.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float16

from fol_model.inference import EncodedPhoto, Encoder
from infra.arrays import LocalFeaturesWriter, write_descriptor_codes
from infra.commits import write_receipt
from infra.observability import log_fields
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import descriptor_column, write_table
from pipelines.build.progress import EncodedSegment, SegmentTally
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader
from pipelines.catalog.rows import load_photo, reject_row
from pipelines.engine.partition import Partition
from schemas import layout
from schemas.descriptor_codes import to_codes
from schemas.descriptors import descriptors_schema
from schemas.errors import ModelError, PhotoError
from schemas.local_features import LocalFeatures
from schemas.manifest import BBox, ObjectRef, Receipt
from schemas.rejects import REJECTS

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
    """Encodes partitions of one map, one at a time. Holds a decoder process; the network may be shared by several workers."""

    def __init__(self, job: EncodeJob, encoder: Encoder, settings: Settings) -> None:
        self._storage = open_storage(job.map_url, settings)
        self._encoder = encoder
        self._reader = PhotoReader(settings, job.limits)
        self._decoder = PhotoDecoder(job.limits)
        self._run_id = job.run_id

    def run(self, task: Partition, on_photo: Callable[[], None]) -> EncodedSegment:
        """Encode a partition. Doing it twice changes nothing: the first receipt stands."""
        tally, start = SegmentTally(), time.perf_counter()
        with log_fields(run_id=self._run_id, segment_id=task.segment_id):
            receipt = encode_partition(task, self._storage, self._encoder, self._reader, self._decoder, on_photo, tally=tally)
            tally.worker_s = time.perf_counter() - start
            _log.info(
                "segment %s: %d photos, %d rejected, %.1f s, of them %.1f s in the network",
                *(task.segment_id, tally.photos, tally.rejected.total(), tally.worker_s, tally.network_s),
            )
        return EncodedSegment(receipt=receipt, tally=tally)

    def close(self) -> None:
        """Stop the decoder process."""
        self._decoder.close()


def encode_partition(
    partition: Partition,
    storage: Storage,
    encoder: Encoder,
    reader: PhotoReader,
    decoder: PhotoDecoder,
    on_photo: Callable[[], None],
    *,
    tally: SegmentTally | None = None,
) -> Receipt:
    """Encode the photos of a partition into a segment.

    Photos that cannot be used land in the segment's `rejects.parquet`; the others are not affected. What became of them is
    counted in `tally`, also where the receipt that stands is another attempt's: the work was done.

    Returns:
        The receipt that stands for this segment: ours, or that of an attempt that finished first.

    Raises:
        StorageError: the store of the map or of a photo does not answer; nothing of this attempt counts.
    """
    folder = layout.segment_folder(partition.segment_id, uuid4().hex[:12])
    writer = LocalFeaturesWriter(
        storage,
        f"{folder}/{layout.LOCAL_FEATURES}",
        features_per_photo=encoder.max_local_features,
        dim=encoder.local_dim,
        precision=encoder.local_precision,
    )
    tally = tally or SegmentTally()
    tally.photos = len(partition.images)
    tally.size_bytes = pc.sum(partition.images["size_bytes"]).as_py() or 0
    kept: list[int] = []
    rejects: list[dict[str, Any]] = []
    descriptors = np.empty((len(partition.images), encoder.descriptor_dim), np.float16)
    for row, photo in _encode_photos(partition.images, encoder, reader, decoder, tally):
        if isinstance(photo, PhotoError):
            tally.rejected[photo.reason.value] += 1
            rejects.append(reject_row(partition.images, row, "encode", photo))
        else:
            descriptors[len(kept)] = photo.descriptor
            writer.append(LocalFeatures(features=photo.features, patch=photo.patch, reliability=photo.reliability))
            kept.append(row)
        on_photo()
    return finish_segment(
        storage,
        partition.segment_id,
        folder,
        images=partition.images.take(pa.array(kept, pa.int64())),
        descriptors=descriptors[: len(kept)],
        rejects=rejects,
        local_features=writer.close(),
        model_fingerprint=encoder.fingerprint,
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
    images: pa.Table, encoder: Encoder, reader: PhotoReader, decoder: PhotoDecoder, tally: SegmentTally
) -> Iterator[tuple[int, EncodedPhoto | PhotoError]]:
    """Encode in batches of the size the encoder likes (1 on CPU); rows come in order within each batch's good and bad ones."""
    batch: list[tuple[int, np.ndarray]] = []
    for row in range(len(images)):
        try:
            batch.append((row, load_photo(images, row, reader, decoder, min_side=encoder.decode_side)))
        except PhotoError as error:
            yield row, error
        if len(batch) == encoder.batch_size or (batch and row == len(images) - 1):
            start = time.perf_counter()
            encoded = encoder.encode([pixels for _, pixels in batch])
            tally.network_s += time.perf_counter() - start
            yield from zip((number for number, _ in batch), encoded, strict=True)
            batch.clear()


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
