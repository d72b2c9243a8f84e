"""Descriptor codes: one small checked range a row, readable with plain Zarr, and cosines that hardly move."""

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from infra.arrays import DescriptorCodesReader, LocalFeaturesReader, write_descriptor_codes
from infra.settings import Settings
from infra.storage import Storage, open_storage
from schemas.descriptor_codes import to_codes
from schemas.errors import DamagedError, FormatError
from schemas.manifest import ObjectRef

PATH = "s/descriptor_codes.zarr"
DIM = 264


@pytest.fixture
def local(tmp_path) -> Storage:
    return open_storage(str(tmp_path / "map"), Settings(threads=1))


def descriptors(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_t(4, (count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def written(storage: Storage, count: int = 70) -> list[ObjectRef]:
    return write_descriptor_codes(storage, PATH, to_codes(descriptors(count)))


@pytest.mark.parametrize("count", [0, 1, 70, 2049])
def test_rows_come_back_in_the_order_asked_for(local: Storage, count: int):
    refs = written(local, count)
    rows = np.random.default_rng(1).permutation(count)[:50].tolist()

    found = DescriptorCodesReader(local, PATH, expected=refs).read(rows)

    assert all(np.array_equal(codes, to_codes(descriptors(count))[row]) for codes, row in zip(found, rows, strict=True))


def test_a_row_is_one_small_request_after_the_first(local: Storage, monkeypatch: pytest.MonkeyPatch):
    reader = DescriptorCodesReader(local, PATH, expected=written(local))
    asked: list[int] = []
    get = local.get
    monkeypatch.setattr(local, "get", lambda path, **where: asked.append(len(data := get(path, **where))) or data)

    reader.read([0])
    reader.read([69])

    assert asked == [70 * 16 + 4, DIM + 4, DIM + 4]


def test_plain_zarr_reads_them(local: Storage, tmp_path):
    written(local)

    array = zarr.open_array(tmp_path / "map" / PATH, mode="r")

    assert array.dtype == np.int8
    assert np.array_equal(array[:], to_codes(descriptors(70)))
    assert dict(array.attrs) == {"kind": "descriptor_codes", "version": 1}


def test_no_flipped_bit_is_read_as_a_code(local: Storage):
    refs = written(local, 3)
    [path] = [ref.path for ref in refs if ref.path.endswith("c/0/0")]
    whole = local.get(path)

    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        local.put(path, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match="descriptor_codes"):
            DescriptorCodesReader(local, PATH, expected=refs).read([0, 1, 2])
    local.delete(path)
    with pytest.raises(DamagedError, match="nothing"):
        DescriptorCodesReader(local, PATH, expected=refs).read([0])


def test_another_array_is_not_taken_for_codes(local: Storage):
    written(local)

    with pytest.raises(FormatError, match="expected a Zarr array of kind local_features, found descriptor_codes"):
        LocalFeaturesReader(local, PATH)


@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 64, 8448]))
def test_no_number_moves_by_more_than_half_a_code(seed: int, dim: int):
    numbers = descriptors(3, seed, dim).astype(np.float64)

    codes = to_codes(descriptors(3, seed, dim)).astype(np.float64)

    step = np.abs(numbers).max(axis=1, keepdims=True) / 127
    assert (np.abs(codes * step - numbers) <= step * 0.501).all()


def test_what_points_nowhere_is_coded_as_zeros():
    assert not to_codes(np.zeros((2, 5), np.float16)).any()


def test_cosines_hardly_move():
    """Of descriptors as long as those of the default network: by 0.0005 at most."""
    rows = np.random.default_rng(2).normal(size=(40, 8448))
    numbers = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    exact = numbers.astype(np.float64) @ numbers.astype(np.float64).T
    codes = to_codes(numbers).astype(np.float64)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)

    assert np.abs(codes @ numbers.astype(np.float64).T - exact).max() < 5e-4
