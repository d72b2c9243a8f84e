"""Build the golden map of the format that this Folio writes, into `format-<number of the manifest>/`, from `photos/`.

Run it once after the number of the manifest in `schemas/versions.py` has risen, and commit what it adds:

    .venv/bin/python -m tests.golden_maps.make_golden_map

It refuses to replace a map: that stands for the maps that users have. The map of format 1 was built by the last Folio before
format 2 (33a9b86) with this file.
"""

from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import ExifTags, Image

from infra import arrays
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import run_build
from pipelines.build.request import BuildRequest
from schemas.versions import FORMATS

HERE = Path(__file__).parent
PHOTOS = HERE / "photos"
COUNT = 3
SOURCE = "memory://golden-photos"
"""Where the map has its photos from: a place that is the same on every machine."""

SETTINGS = Settings(threads=1)


def write_photos() -> None:
    """Write small photos of coloured blocks, 100 m apart on the Dogger Bank."""
    PHOTOS.mkdir(exist_ok=True)
    for number in range(COUNT):
        random = np.random.default_rng(number)
        picture = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120), Image.Resampling.NEAREST)
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (54.0, 42.0 + number * 0.06, 0.0), 3: "E", 4: (2.0, 42.0, 0.0)})
        picture.save(PHOTOS / f"{number}.jpg", quality=70, exif=exif)


def offer_photos() -> None:
    """Put the photos where the map has them from."""
    storage = open_storage(SOURCE, SETTINGS)
    for photo in sorted(PHOTOS.iterdir()):
        storage.put(photo.name, photo.read_bytes())


def golden_map(version: int) -> Path:
    """Name the map of a format."""
    return HERE / f"format-{version}"


def main() -> None:
    """Write what is not there yet."""
    if not PHOTOS.exists():
        write_photos()
    place = golden_map(FORMATS["manifest"])
    if place.exists():
        raise SystemExit(f"{place} is there already")
    offer_photos()
    # The index of a shard of the usual size alone takes 20 kB.
    with patch.object(arrays, "SHARD_BYTES", 64 * 1024):
        run_build(BuildRequest(recipe="tiny", map_url=str(place), photos=(SOURCE,)), SETTINGS)


if __name__ == "__main__":
    main()
