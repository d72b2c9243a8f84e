"""A network, a reader and a decoder that tell photos apart by one byte: a build without pixels, torch or child processes."""

from collections.abc import Container
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto
from pipelines.catalog.loading import PhotoLoader
from pipelines.engine.partition import Partition, segment_id
from schemas.errors import PhotoError
from schemas.geoparquet import point_columns
from schemas.images import IMAGES, image_id
from schemas.reasons import RejectReason

DIM = 8
BAD = 1000
"""Photos from this number on do not decode."""


class NumberEncoder:
    """Photo n gets a descriptor along axis n % 8 and n % 3 local features."""

    descriptor_dim, local_dim, max_local_features, local_precision = DIM, 128, 2, "float16"
    fingerprint, trained, decode_side, weight_bytes, prepared_bytes = "f00d", False, None, 0, 12
    is_on_cpu, prepares_whole = True, False
    recipe = SimpleNamespace(name="tiny")
    reranking = RerankConfig()

    def __init__(self, batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self.batches: list[int] = []

    def settings(self) -> dict[str, Any]:
        return {}

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def encode_prepared(self, photos: list[np.ndarray]) -> list[EncodedPhoto]:
        self.batches.append(len(photos))
        return [self._encode(int(pixels[0, 0, 0])) for pixels in photos]

    def _encode(self, number: int) -> EncodedPhoto:
        count = number % 3
        return EncodedPhoto(
            descriptor=np.eye(DIM, dtype=np.float32)[number % DIM],
            features=np.eye(count, self.local_dim, dtype=np.float16),
            patch=np.full((count, 2), number, np.uint8),
            reliability=np.full(count, number, np.uint8),
        )


class NumberReader:
    """Photo n is one byte n. Those that are `away` cannot be read."""

    def __init__(self, away: Container[int] = ()) -> None:
        self._away = away

    def read(self, uri: str, root: str, *, size_bytes: int, checksum: str) -> bytes:
        number = int(uri.removesuffix(".jpg"))
        if number in self._away:
            raise PhotoError(RejectReason.MISSING, "no such file")
        if number >= BAD:
            raise PhotoError(RejectReason.TRUNCATED, f"photo {number} ends too soon")
        return bytes([number])


class NumberDecoder:
    """Photo n is two by two pixels of n."""

    def decode(self, data: bytes, *, min_side: int | None) -> np.ndarray:
        return np.full((2, 2, 3), data[0], np.uint8)

    def close(self) -> None:
        pass


def number_loader(encoder: NumberEncoder, away: Container[int] = ()) -> PhotoLoader[Any]:
    return PhotoLoader(NumberReader(away), NumberDecoder, encoder.prepare, min_side=None, ahead=2 * encoder.batch_size + 1)


def photos(*numbers: int) -> pa.Table:
    """Rows of images; photo n stands at 13 + n / 1000 degrees east."""
    lon, lat = 13 + np.array(numbers) / 1000, np.full(len(numbers), 55.0)
    rows = [
        {
            "image_id": image_id(f"{number}.jpg"),
            "photo_key": f"key {number}",
            "uri": f"{number}.jpg",
            "root": "/photos",
            "size_bytes": 1,
            "checksum": "sha256:00",
            "lat_deg": 55.0,
            "lon_deg": float(degrees),
        }
        for number, degrees in zip(numbers, lon, strict=True)
    ]
    plain = pa.Table.from_pylist(rows, pa.schema([field for field in IMAGES if field.name not in ("geometry", "bbox")]))
    return pa.Table.from_arrays([*plain.columns, *point_columns(lon, lat)], schema=IMAGES)


def partition(*numbers: int) -> Partition:
    """A partition of these photos."""
    images = photos(*numbers)
    return Partition(segment_id=segment_id(images["photo_key"].to_pylist(), NumberEncoder.fingerprint), images=images)
