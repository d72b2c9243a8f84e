"""An archive of three photos, and results folders that say where they were taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.geotag.writing.archives import geotag_row, jpeg, write_geotags


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder with three photos: a.jpg, b c.jpg and ö.jpg."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for shade, name in enumerate(("a.jpg", "b c.jpg", "ö.jpg")):
        (folder / name).write_bytes(jpeg(shade))
    return folder


@pytest.fixture
def geotagged(archive: Path, tmp_path: Path) -> Callable[..., str]:
    """Make a results folder in which every photo of the archive has an answer, or what is given instead."""

    def make(**changes: Any) -> str:
        names = sorted(path.name for path in archive.iterdir() if path.suffix.lower() != ".xmp")
        return write_geotags(tmp_path / "out", [geotag_row(name, str(archive), **changes) for name in names])

    return make
