"""Local features go out and come back unchanged; what Zarr would read as zeros or as noise is noticed."""

import hashlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra import arrays
from infra.arrays import LocalFeaturesReader, LocalFeaturesWriter
from infra.storage import Storage
from schemas.errors import DamagedError, FormatError
from schemas.local_features import LocalFeatures, Precision
from schemas.manifest import ObjectRef

K, DIM = 6, 8
COUNTS = [6, 0, 3, 1, 6, 2, 0]


@pytest.fixture(autouse=True)
def three_photos_a_shard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 3 * K * (DIM + 4))


def photo(number: int, count: int, precision: Precision = "int8") -> LocalFeatures:
    random = np.random.default_rng(number)
    features = random.normal(size=(count, DIM))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return LocalFeatures(
        features=np.rint(features * 7).astype(np.int8) if precision.startswith("int") else features.astype(precision),
        patch=random.integers(0, 16, (count, 2), np.uint8),
        reliability=random.integers(0, 256, count, np.uint8),
    )


PHOTOS = [photo(number, count) for number, count in enumerate(COUNTS)]


def write(
    storage: Storage,
    path: str = "s/local_features.zarr",
    photos: list[LocalFeatures] = PHOTOS,
    precision: Precision = "int8",
) -> list[ObjectRef]:
    writer = LocalFeaturesWriter(storage, path, features_per_photo=K, dim=DIM, precision=precision)
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


@pytest.mark.parametrize("precision", ["int4", "int8", "float16", "float32"])
def test_features_of_every_precision_come_back_unchanged(local: Storage, precision: Precision):
    photos = [photo(number, count, precision) for number, count in enumerate(COUNTS)]
    refs = write(local, photos=photos, precision=precision)

    found = LocalFeaturesReader(local, "s/local_features.zarr", expected=refs).read(range(len(photos)))

    assert all(same(one, other) for one, other in zip(found, photos, strict=True))


def test_features_of_another_precision_are_refused(local: Storage):
    with pytest.raises(ValueError, match="float16 cannot be stored as int8"):
        write(local, photos=[photo(0, 1, "float16")])
    with pytest.raises(ValueError, match="from -7 to 7"):
        write(local, "t", photos=[replace(photo(0, 1), features=np.full((1, DIM), 8, np.int8))], precision="int4")


def test_one_photo_is_one_small_request(local: Storage, monkeypatch: pytest.MonkeyPatch):
    """After the first, which also asks for the index of the shard."""
    reader = LocalFeaturesReader(local, "s/local_features.zarr", expected=write(local))
    asked: list[int] = []
    get = local.get
    monkeypatch.setattr(local, "get", lambda path, **where: asked.append(len(data := get(path, **where))) or data)

    reader.read([0])
    reader.read([1])
    reader.read([2])

    record = K * (DIM + 4) + 4
    assert asked == [3 * 16 + 4, record, record, record]


@given(rows=st.sets(st.integers(0, 6), min_size=1), gap=st.sampled_from([0, 80, 10_000]), most=st.sampled_from([1, 150, 10_000]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_photos_that_lie_near_each_other_are_one_request_and_come_back_the_same(
    local: Storage, rows: set[int], gap: int, most: int
):
    """Three photos a shard, of 76 bytes each with a checksum."""
    refs = write(local)
    reader, wanted = LocalFeaturesReader(local, "s/local_features.zarr", expected=refs), sorted(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "RUN_GAP_BYTES", gap)
        patch.setattr(arrays, "RUN_BYTES", most)
        runs = reader.runs(wanted)
        asked: list[str] = []
        get = local.get
        patch.setattr(local, "get", lambda path, **where: asked.append(path) or get(path, **where))
        found = [photo for run in runs for photo in reader.read_run(run)]

    assert [row for run in runs for row in run] == wanted
    assert all(same(photo, PHOTOS[row]) for photo, row in zip(found, wanted, strict=True))
    assert len(asked) == len(runs)
    for run in runs:
        assert len({row // 3 for row in run}) == 1
        assert len(run) == 1 or (run[-1] - run[0] + 1) * 76 <= most
        assert all(76 * (after - before - 1) <= gap for before, after in pairwise(run))
    if most == gap == 10_000:
        assert len(runs) == len({row // 3 for row in rows})


def test_a_chunk_that_is_damaged_or_dropped_inside_a_run_is_noticed(local: Storage, tmp_path: Path):
    write(local)
    zarr.open_array(tmp_path / "map/s/local_features.zarr")[4] = 0
    path = "s/local_features.zarr/c/0/0/0"
    flipped = bytearray(local.get(path))
    flipped[80] ^= 1
    local.put(path, bytes(flipped))
    reader = LocalFeaturesReader(local, "s/local_features.zarr")

    assert reader.runs([0, 1, 2, 3, 4, 5]) == [[0, 1, 2], [3], [4], [5]]
    with pytest.raises(DamagedError, match="c/0/0/0: found a wrong crc32c of the 76 bytes from 76 on"):
        reader.read_run([0, 1, 2])
    with pytest.raises(DamagedError, match="c/1/0/0: found no chunk of 72 bytes for photo 4, needed one"):
        reader.read_run([4])
    assert same(reader.read_run([5])[0], PHOTOS[5])


def test_close_names_every_object_with_its_size_and_sha256(local: Storage):
    refs = write(local)

    assert [ref.path for ref in refs] == [info.path for info in local.list()]
    assert "s/local_features.zarr/c/2/0/0" in [ref.path for ref in refs]  # 7 photos, 3 a shard
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
    writer = LocalFeaturesWriter(local, "s", features_per_photo=K, dim=DIM, precision="int8")

    with pytest.raises(ValueError, match="at most 6 features, got 7"):
        writer.append(photo(0, 7))


def test_zarr_alone_opens_the_array(local: Storage, tmp_path: Path):
    write(local)

    array = zarr.open_array(tmp_path / "map/s/local_features.zarr", mode="r")

    assert dict(array.attrs) == {"kind": "local_features", "version": 2, "dim": DIM, "precision": "int8"}
    assert (array.shape, array.chunks) == ((7, K, DIM + 4), (1, K, DIM + 4))
    assert array[:, :, -1].sum(axis=1).tolist() == COUNTS
    assert np.array_equal(array[2, :3, :DIM].view(np.int8), PHOTOS[2].features)
    assert not array[2, 3:].any()


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
    shards = [ref for ref in write(local) if "/c/" in ref.path]
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
    assert len(shards) == 3


def test_a_chunk_dropped_from_inside_its_shard_is_noticed(local: Storage, tmp_path: Path):
    """Zarr drops a chunk that is overwritten with zeros, with good checksums all around."""
    write(local)
    zarr.open_array(tmp_path / "map/s/local_features.zarr")[4] = 0

    reader = LocalFeaturesReader(local, "s/local_features.zarr")

    assert same(reader.read([3])[0], PHOTOS[3])
    with pytest.raises(DamagedError, match="zarr/c/1/0/0: found no chunk of 72 bytes for photo 4, needed one"):
        reader.read([3, 4])


def test_bytes_that_are_no_features_are_noticed_whatever_their_checksum(local: Storage, tmp_path: Path):
    write(local)
    zarr.open_array(tmp_path / "map/s/local_features.zarr")[4, 2] = 9

    with pytest.raises(DamagedError, match="zarr/c/1/0/0: found in photo 4"):
        LocalFeaturesReader(local, "s/local_features.zarr").read([4])


def test_missing_metadata_is_noticed(local: Storage):
    refs = write(local)
    name = "zarr.json"
    local.delete(f"s/local_features.zarr/{name}")

    with pytest.raises(DamagedError, match=r"s/local_features\.zarr"):
        LocalFeaturesReader(local, "s/local_features.zarr")
    with pytest.raises(DamagedError, match=f"{name}: found nothing"):
        LocalFeaturesReader(local, "s/local_features.zarr", expected=refs)


def test_another_array_or_a_newer_format_is_refused(local: Storage, tmp_path: Path):
    write(local)
    array = zarr.open_array(tmp_path / "map/s/local_features.zarr")

    array.attrs["version"] = 3
    with pytest.raises(FormatError, match="local_features format 3 was found"):
        LocalFeaturesReader(local, "s/local_features.zarr")
    array.attrs["kind"] = "other"
    with pytest.raises(FormatError, match="found other"):
        LocalFeaturesReader(local, "s/local_features.zarr")
