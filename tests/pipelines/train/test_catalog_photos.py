"""What is known of the places of a catalog's photos."""

from pathlib import Path

from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.train.catalog_photos import read_catalog
from pipelines.train.photos import Photos
from tests.pipelines.train.photos import write_labelled, write_photo


def read(*sources: Path, drives: bool = False) -> Photos:
    return read_catalog(
        [str(source) for source in sources], folders_are_drives=drives, settings=Settings(threads=1), limits=PhotoLimits()
    )


def test_a_column_of_a_table_names_the_places_and_keeps_their_zeros(tmp_path: Path):
    found = read(write_labelled(tmp_path, places=2, photos=2))

    assert [photo.place for photo in found.photos] == ["000", "000", "001", "001"]
    assert {photo.kind for photo in found.photos} == {"label"}


def test_folders_are_drives_when_the_user_says_so(tmp_path: Path):
    for drive in ("one", "two"):
        for number in range(3):
            write_photo(tmp_path / "drives" / drive / f"{number}.jpg", place=number, number=0)

    found = read(tmp_path / "drives", drives=True)

    assert [(photo.drive, photo.frame) for photo in found.photos] == [
        *(("drives/one", n) for n in range(3)),
        *(("drives/two", n) for n in range(3)),
    ]
    assert {photo.kind for photo in read(tmp_path / "drives").photos} == {"single"}


def test_a_file_that_is_no_photo_is_a_reject(tmp_path: Path):
    write_photo(tmp_path / "photos" / "good.jpg", place=0, number=0)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"nothing of the kind")

    found = read(tmp_path / "photos")

    assert [photo.uri for photo in found.photos] == ["photos/good.jpg"]
    assert [reject["reason"] for reject in found.rejects] == ["not-an-image"]
