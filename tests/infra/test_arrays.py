"""Local features go out and come back unchanged; what Zarr would read as zeros or as noise is noticed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from infra import arrays
from infra.arrays import LocalFeaturesReader, LocalFeaturesWriter
from infra.storage import Storage
from schemas.errors import DamagedError, FormatError
from schemas.local_features import LocalFeatures
from schemas.manifest import ObjectRef

K, DIM = 6, 8
COUNTS = [6, 0, 3, 1, 6, 2, 0]


@pytest.fixture(autouse=True)
def three_photos_a_shard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 3 * K * DIM * 2)


def photo(number: int, count: int) -> LocalFeatures:
    random = np.random.default_rng(number)
    features = random.normal(size=(count, DIM))
    return LocalFeatures(
        features=(features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16),
        patch=random.integers(0, 16, (count, 2), np.uint8),
        reliability=random.integers(0, 256, count, np.uint8),
    )


PHOTOS = [photo(number, count) for number, count in enumerate(COUNTS)]


def write(storage: Storage, path: str = "s/local_features.zarr", photos: list[LocalFeatures] = PHOTOS) -> list[ObjectRef]:
    writer = LocalFeaturesWriter(storage, path, features_per_photo=K, dim=DIM)
    for one in photos:
        writer.append(one)
    return writer.close()


def same(found: LocalFeatures, expected: LocalFeatures) -> bool:
    pairs = [(getattr(found, name), getattr(expected, name)) for name in ("features", "patch", "reliability")]
    return all(np.array_equal(one, other) and one.dtype == other.dtype for one, other in pairs)


def test_photos_come_back_in_the_order_asked_for(storage: Storage):
    refs = write(storage)
    reader = LocalFeaturesReader(storage, "s/local_features.zarr", expected=refs)

    rows = [6, 0, 4, 3, 0, 1]

    assert len(reader) == 7
    assert all(same(found, PHOTOS[row]) for found, row in zip(reader.read(rows), rows, strict=True))
    assert reader.read([]) == []
    with pytest.raises(IndexError, match="0 to 6"):
        reader.read([0, 7])


def test_close_names_every_object_with_its_size_and_sha256(local: Storage):
    refs = write(local)

    assert [ref.path for ref in refs] == [info.path for info in local.list()]
    assert "s/local_features.zarr/features/c/2/0/0" in [ref.path for ref in refs]  # 7 photos, 3 a shard
    for ref in refs:
        data = local.get(ref.path)
        assert (ref.size_bytes, ref.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_equal_photos_give_equal_bytes(local: Storage):
    first, second = write(local, "first"), write(local, "second")

    assert [ref.sha256 for ref in first] == [ref.sha256 for ref in second]


@pytest.mark.parametrize("photos", [[], [photo(0, 0)], [photo(0, 0)] * 3, [photo(0, 2)]])
def test_a_segment_of_no_photos_or_photos_without_features_is_a_segment(local: Storage, photos: list[LocalFeatures]):
    refs = write(local, photos=photos)

    reader = LocalFeaturesReader(local, "s/local_features.zarr", expected=refs)

    assert len(reader) == len(photos)
    assert all(same(found, one) for found, one in zip(reader.read(range(len(photos))), photos, strict=True))


def test_more_features_than_announced_are_refused(local: Storage):
    writer = LocalFeaturesWriter(local, "s", features_per_photo=K, dim=DIM)

    with pytest.raises(ValueError, match="at most 6 features, got 7"):
        writer.append(photo(0, 7))


def test_zarr_alone_opens_the_group(local: Storage, tmp_path: Path):
    write(local)

    group = zarr.open_group(tmp_path / "map/s/local_features.zarr", mode="r")

    assert dict(group.attrs) == {"kind": "local_features", "version": 1}
    assert group["count"][:].tolist() == COUNTS
    assert group["features"].shape == (7, K, DIM)
    assert group["features"].chunks == (1, K, DIM)
    assert np.array_equal(group["features"][2, :3], PHOTOS[2].features)
    assert not group["features"][2, 3:].any()


def test_any_flipped_bit_is_noticed_in_every_object(local: Storage):
    refs = write(local)
    random = np.random.default_rng(5)
    for ref in refs:
        data = local.get(ref.path)
        for bit in random.integers(0, 8 * len(data), 3).tolist():
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            local.put(ref.path, bytes(flipped))
            with pytest.raises(DamagedError, match=ref.path):
                LocalFeaturesReader(local, "s/local_features.zarr", expected=refs).read(range(7))
        local.put(ref.path, data)


def test_a_truncated_or_missing_shard_is_noticed_with_its_name(local: Storage):
    shards = [ref for ref in write(local) if "/c/" in ref.path and "/count/" not in ref.path]
    for ref in shards:
        data = local.get(ref.path)
        for kept in (data[:-5], data[5:], b""):
            local.put(ref.path, kept)
            with pytest.raises(DamagedError, match=ref.path):
                LocalFeaturesReader(local, "s/local_features.zarr").read(range(7))
        local.delete(ref.path)
        with pytest.raises(DamagedError, match=f"{ref.path}: found nothing"):
            LocalFeaturesReader(local, "s/local_features.zarr").read(range(7))
        local.put(ref.path, data)
    assert len(shards) == 9


def test_a_chunk_dropped_from_inside_its_shard_is_noticed(local: Storage, tmp_path: Path):
    """Zarr drops a chunk that is overwritten with zeros, with good checksums all around."""
    write(local)
    zarr.open_group(tmp_path / "map/s/local_features.zarr")["features"][4] = 0

    reader = LocalFeaturesReader(local, "s/local_features.zarr")

    assert same(reader.read([3])[0], PHOTOS[3])
    with pytest.raises(DamagedError, match="features/c/1/0/0: found no chunk of 96 bytes for photo 4, needed one"):
        reader.read([3, 4])


@pytest.mark.parametrize("name", ["zarr.json", "count/zarr.json", "count/c/0", "patch/zarr.json"])
def test_missing_metadata_is_noticed(local: Storage, name: str):
    refs = write(local)
    local.delete(f"s/local_features.zarr/{name}")

    with pytest.raises(DamagedError, match=r"s/local_features\.zarr"):
        LocalFeaturesReader(local, "s/local_features.zarr")
    with pytest.raises(DamagedError, match=f"{name}: found nothing"):
        LocalFeaturesReader(local, "s/local_features.zarr", expected=refs)


def test_another_group_or_a_newer_format_is_refused(local: Storage, tmp_path: Path):
    write(local)
    group = zarr.open_group(tmp_path / "map/s/local_features.zarr")

    group.attrs["version"] = 2
    with pytest.raises(FormatError, match="local_features format 2 was found"):
        LocalFeaturesReader(local, "s/local_features.zarr")
    group.attrs["kind"] = "other"
    with pytest.raises(FormatError, match="found other"):
        LocalFeaturesReader(local, "s/local_features.zarr")
