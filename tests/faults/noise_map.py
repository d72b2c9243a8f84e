"""A map of noise: everything of a real one but the network, made in a second. For suites that need many segments and no meaning.

Each photo is one colour. A stand-in for the network gives it a random descriptor and three random local features, drawn from that
colour, so that the same photo is always encoded the same. Everything else is what a user's build does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from PIL import ExifTags, Image

from fol_model.config import RerankConfig
from fol_model.inference import EncodedPhoto
from fol_model.matching import to_codes
from infra import arrays, tables
from infra.settings import Settings
from pipelines.build import build
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest, BuildSummary, Mode
from pipelines.engine.partition import PartitionConfig
from pipelines.maintain import repair

DIM: Final = 64
FEATURES: Final = 4
SETTINGS: Final = Settings(threads=1)
PARTITION: Final = PartitionConfig(min_photos=16, pieces=3)


class NoiseEncoder:
    """Stands in for the network. `features` is the most local features a photo can have; each has one less."""

    local_dim, local_precision, batch_size, grid_side = 128, "int8", 1, 16
    fingerprint, trained, decode_side, weight_bytes, prepared_bytes, is_on_cpu = "0f" * 32, False, None, 0, 12, True
    recipe, prepares_whole = SimpleNamespace(name="tiny", input_size=224), False
    reranking = RerankConfig()

    def __init__(self, *, dim: int = DIM, features: int = FEATURES) -> None:
        self.descriptor_dim = dim
        self.max_local_features = features

    def settings(self) -> dict[str, Any]:
        return {"mode": "weighted"}

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def encode_prepared(self, photos: list[np.ndarray]) -> list[EncodedPhoto]:
        return [self.photo(_number(pixels)) for pixels in photos]

    def photo(self, number: int) -> EncodedPhoto:
        """What becomes of the photo of this number."""
        random = np.random.default_rng(number)
        descriptor = random.normal(size=self.descriptor_dim)
        features = random.normal(size=(self.max_local_features - 1, self.local_dim))
        return EncodedPhoto(
            descriptor=(descriptor / np.linalg.norm(descriptor)).astype(np.float32),
            features=to_codes(features / np.linalg.norm(features, axis=1, keepdims=True)),
            patch=random.integers(0, 16, (len(features), 2), np.uint8),
            reliability=random.integers(1, 256, len(features), np.uint8),
        )


def write_photos(folder: Path, numbers: range) -> Path:
    """Write photos 10 m apart along a meridian of the Dogger Bank; the name tells the number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (54.0, 42.0 + number * 0.006, 0.0), 3: "E", 4: (2.0, 42.0, 0.0)})
        shade = tuple(digit * 8 + 4 for digit in (number % 32, number // 32 % 32, number // 1024))
        Image.new("RGB", (16, 12), shade).save(folder / f"{number:04d}.jpg", quality=100, exif=exif)
    return folder


@contextmanager
def without_network() -> Iterator[None]:
    """Encode with `NoiseEncoder`, and cut tables and arrays so small that each has several parts."""
    with (
        patch.object(build, "load_encoder", lambda *_, **__: NoiseEncoder()),
        patch.object(repair, "load_encoder", lambda *_, **__: NoiseEncoder()),
        patch.object(tables, "DESCRIPTOR_GROUP_BYTES", 32 * 2 * DIM),
        patch.object(arrays, "SHARD_BYTES", 32 * 2 * FEATURES * 128),
    ):
        yield


def build_noise_map(url: str, photos: Path, *, mode: Mode = "build") -> BuildSummary:
    """Bring a map up to date with the photos of a folder."""
    request = BuildRequest(recipe="tiny", map_url=url, photos=(str(photos),), mode=mode, partition=PARTITION)
    with without_network():
        return run_build(request, SETTINGS)


def _number(pixels: np.ndarray) -> int:
    red, green, blue = (int(channel) // 8 for channel in pixels[0, 0])
    return red + 32 * green + 1024 * blue
