"""Photos that are there, have moved, are broken, or must not be read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipelines.report.photo_source import PhotoSource
from tests.pipelines.report.results_folders import SETTINGS


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a photo of 8 x 6 pixels, one that is none, and a photo beside the folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "private.png"):
        Image.new("RGB", (8, 6), (10, 20, 30)).save(path)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def source() -> Iterator[PhotoSource]:
    with PhotoSource(SETTINGS, root=None) as opened:
        yield opened


def test_a_photo_is_read_below_its_root(photos: Path, source: PhotoSource):
    pixels = source.read("a.png", str(photos), min_side=4)

    assert pixels is not None
    assert (pixels.shape, pixels[0, 0].tolist()) == ((6, 8, 3), [10, 20, 30])


def test_an_absolute_name_needs_no_root(photos: Path, source: PhotoSource):
    assert source.read(str(photos / "a.png"), "", min_side=4) is not None


def test_a_photo_that_has_moved_is_found_under_the_root_that_was_given_instead(photos: Path, source: PhotoSource):
    assert source.read("a.png", "/where/it/was", min_side=4) is None
    with PhotoSource(SETTINGS, root=str(photos)) as told:
        assert told.read("a.png", "/where/it/was", min_side=4) is not None


@pytest.mark.parametrize("name", ["broken.jpg", "missing.jpg", "a\0b.png", "", "../private.png"])
def test_what_is_broken_missing_impossible_or_outside_is_none(photos: Path, source: PhotoSource, name: str):
    assert source.read(name, str(photos), min_side=4) is None
    assert source.read("a.png", str(photos), min_side=4) is not None  # the next one is read as if nothing had been
