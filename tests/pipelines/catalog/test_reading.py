"""Photos that are fetched again when they are encoded."""

from pathlib import Path

import pytest

from infra.settings import Settings
from infra.storage import ObjectInfo
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader, sha256_of
from pipelines.catalog.sources import list_photos
from schemas.errors import PhotoError, StorageError
from tests.pipelines.catalog.photos import TRICKY_NAMES, jpeg

SETTINGS = Settings(threads=1)


@pytest.fixture
def reader() -> PhotoReader:
    return PhotoReader(SETTINGS, PhotoLimits())


def test_every_photo_of_a_catalog_can_be_read_again(tmp_path: Path, reader: PhotoReader):
    for name in TRICKY_NAMES:
        (tmp_path / name).write_bytes(jpeg(1, 2))
    images = list_photos([str(tmp_path)], settings=SETTINGS, limits=PhotoLimits(), needs_position=True).images
    assert len(images) == len(TRICKY_NAMES)

    for row in images.to_pylist():
        data = reader.read(row["uri"], row["root"], size_bytes=row["size_bytes"], checksum=row["checksum"])
        assert data == jpeg(1, 2)


@pytest.mark.parametrize(
    "changed", [jpeg(shade=91), jpeg() + b"\0", jpeg()[:-1], b""], ids=["other", "longer", "shorter", "empty"]
)
def test_a_photo_that_changed_since_it_was_listed_is_refused(tmp_path: Path, reader: PhotoReader, changed: bytes):
    (tmp_path / "a.jpg").write_bytes(changed)

    with pytest.raises(PhotoError, match="changed: listed with"):
        reader.read("a.jpg", str(tmp_path), size_bytes=len(jpeg()), checksum=sha256_of(jpeg()))


def test_a_photo_that_is_gone_is_missing(tmp_path: Path, reader: PhotoReader):
    with pytest.raises(PhotoError, match="missing: no such file"):
        reader.read("a.jpg", str(tmp_path), size_bytes=3, checksum=sha256_of(b"abc"))


def test_a_photo_above_the_limit_is_not_read(tmp_path: Path):
    reader = PhotoReader(SETTINGS, PhotoLimits(max_bytes=2))

    with pytest.raises(PhotoError, match="too-many-bytes: 3 bytes, the limit is 2"):
        reader.read("a.jpg", str(tmp_path), size_bytes=3, checksum=sha256_of(b"abc"))


class Bucket:
    """A store with one object, or one that is out of order."""

    etag = "one"
    broken = False

    def get(self, path: str, *, stop: int | None = None) -> bytes:
        if self.broken:
            raise StorageError("s3://survey: no answer")
        return b"abc"

    def info(self, path: str) -> ObjectInfo:
        return ObjectInfo(path=path, size_bytes=3, etag=self.etag, modified_at=None)


@pytest.fixture
def bucket(monkeypatch) -> Bucket:
    bucket = Bucket()
    monkeypatch.setattr("pipelines.catalog.reading.open_storage", lambda url, settings: bucket)
    return bucket


def test_a_photo_in_a_bucket_is_compared_by_its_etag(bucket: Bucket, reader: PhotoReader):
    assert reader.read("s3://survey/a.jpg", "", size_bytes=3, checksum="etag:one") == b"abc"
    bucket.etag = "two"

    with pytest.raises(PhotoError, match="changed"):
        reader.read("s3://survey/a.jpg", "", size_bytes=3, checksum="etag:one")


def test_a_store_that_does_not_answer_costs_no_photo_its_place(bucket: Bucket, reader: PhotoReader):
    bucket.broken = True

    with pytest.raises(StorageError, match="no answer"):
        reader.read("s3://survey/a.jpg", "", size_bytes=3, checksum="etag:one")
