"""Encoding one partition: its tables stay row for row together, bad photos go aside, and the first attempt stands."""

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fol_model.inference import DeviceLostError, EncodedPhoto
from infra import arrays
from infra.arrays import LocalFeaturesReader
from infra.commits import read_receipts, receipt_path
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import get_object, read_descriptors, read_table
from pipelines.build import encode as encode_module
from pipelines.build.encode import encode_partition
from pipelines.build.membership import read_stored, segment_object
from pipelines.engine.partition import Partition
from schemas.errors import DamagedError, DeviceError, ModelError
from schemas.manifest import Receipt
from tests.pipelines.build.stand_ins import BAD, NumberEncoder, number_loader, partition


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 4096)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "map"), Settings(threads=1))


def encode(storage: Storage, task: Partition, *, batch_size: int = 1, ticks: list[int] | None = None) -> Receipt:
    counted = [] if ticks is None else ticks
    encoder = NumberEncoder(batch_size)
    return encode_partition(task, storage, encoder, number_loader(encoder), lambda: counted.append(1))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_rows_of_all_tables_belong_to_the_same_photo_with_bad_ones_in_between(storage: Storage, batch_size: int):
    ticks: list[int] = []

    receipt = encode(storage, partition(5, BAD, 3, 4, BAD + 1, 2, BAD + 2), batch_size=batch_size, ticks=ticks)

    assert (receipt.rows, receipt.rejected, len(ticks)) == (4, 3, 7)
    assert receipt.bbox == (13.002, 55.0, 13.005, 55.0)
    images = read_table(storage, segment_object(receipt, "images.parquet").path, kind="images")
    assert images["uri"].to_pylist() == ["5.jpg", "3.jpg", "4.jpg", "2.jpg"]
    assert read_descriptors(storage, segment_object(receipt, "descriptors.parquet")).argmax(axis=1).tolist() == [5, 3, 4, 2]
    features = LocalFeaturesReader(storage, f"segments/{receipt.segment_id}/{receipt.attempt}/local_features.zarr")
    assert [photo.reliability.tolist() for photo in features.read(range(4))] == [[5, 5], [], [4], [2, 2]]
    rejects = read_table(storage, segment_object(receipt, "rejects.parquet").path, kind="rejects")
    assert rejects["photo_key"].to_pylist() == [f"key {BAD}", f"key {BAD + 1}", f"key {BAD + 2}"]
    assert set(rejects["reason"].to_pylist()) == {"truncated"}


def test_the_receipt_names_every_object_of_the_segment_and_no_other(storage: Storage):
    receipt = encode(storage, partition(1, 2))

    assert [ref.path for ref in receipt.objects] == [info.path for info in storage.list("segments")]
    for ref in receipt.objects:
        get_object(storage, ref)  # raises where size or sha256 differ
    assert read_receipts(storage) == {receipt.segment_id: receipt}


def test_a_partition_in_which_no_photo_decodes_is_finished_too(storage: Storage):
    """Otherwise a folder of broken photos would stop every build, each time anew."""
    receipt = encode(storage, partition(BAD, BAD + 1))

    assert (receipt.rows, receipt.rejected, receipt.bbox) == (0, 2, None)
    stored = read_stored(storage, NumberEncoder.fingerprint)[receipt.segment_id]
    assert (stored.photo_keys, stored.rejected_keys) == ([], [f"key {BAD}", f"key {BAD + 1}"])


def test_a_second_attempt_leaves_the_first_one_standing(storage: Storage):
    first = encode(storage, partition(1, 2, 3))

    second = encode(storage, partition(1, 2, 3))

    assert second == first
    assert len({info.path.split("/")[2] for info in storage.list("segments")}) == 2  # the loser's files, which nothing names


def test_two_attempts_write_the_same_bytes_in_batches_of_any_size(storage: Storage):
    encode(storage, partition(1, BAD, 2, 3))
    encode(storage, partition(1, BAD, 2, 3), batch_size=2)

    contents: dict[str, set[bytes]] = {}
    for info in storage.list("segments"):
        contents.setdefault(info.path.split("/", 3)[3], set()).add(storage.get(info.path))

    assert {name: len(versions) for name, versions in contents.items()} == dict.fromkeys(contents, 1)


def test_stored_segments_are_read_back_for_their_own_network_only(storage: Storage):
    receipt = encode(storage, partition(4, BAD, 7))

    (stored,) = read_stored(storage, NumberEncoder.fingerprint).values()

    assert stored.receipt == receipt
    assert (stored.photo_keys, stored.rejected_keys) == (["key 4", "key 7"], [f"key {BAD}"])
    assert read_stored(storage, "another") == {}


def test_what_on_photo_raises_passes_through_and_leaves_no_receipt(storage: Storage):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_partition(partition(1, 2), storage, NumberEncoder(), number_loader(NumberEncoder()), stop)

    assert read_receipts(storage) == {}


class PurgedMeanwhile:
    """Removes a segment, its receipt first, at the moment when its table of images is read."""

    def __init__(self, inner: Storage, receipt: Receipt, *, whole: bool) -> None:
        self.inner, self.receipt, self.whole = inner, receipt, whole

    def get(self, path: str, **span: int) -> bytes:
        if path == segment_object(self.receipt, "images.parquet").path:
            if self.whole:
                self.inner.delete(receipt_path(self.receipt.segment_id))
            self.inner.delete(path)
        return self.inner.get(path, **span)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_a_segment_that_a_purge_removes_while_it_is_read_is_not_there(storage: Storage):
    gone, stays = encode(storage, partition(1, 2)), encode(storage, partition(3))

    assert set(read_stored(PurgedMeanwhile(storage, gone, whole=True), NumberEncoder.fingerprint)) == {stays.segment_id}


def test_a_segment_that_is_damaged_is_said_by_name(storage: Storage):
    damaged = encode(storage, partition(1, 2))

    with pytest.raises(DamagedError, match=rf"{damaged.segment_id}/\w+/images\.parquet: found nothing"):
        read_stored(PurgedMeanwhile(storage, damaged, whole=False), NumberEncoder.fingerprint)


def without_direction(monkeypatch: pytest.MonkeyPatch, number: float, of: set[int], *, times: int = 1_000) -> None:
    """Make the network give a descriptor of one number for these photos, so many times."""
    encode_one, left = NumberEncoder._encode, dict.fromkeys(of, times)

    def broken(self: NumberEncoder, photo: int) -> EncodedPhoto:
        encoded = encode_one(self, photo)
        if left.get(photo, 0) == 0:
            return encoded
        left[photo] -= 1
        return replace(encoded, descriptor=np.full_like(encoded.descriptor, number))

    monkeypatch.setattr(NumberEncoder, "_encode", broken)


@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0, 1e6])
def test_a_photo_for_which_the_network_gives_no_descriptor_is_named_and_the_others_go_on(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, number: float
):
    """FAISS would drop the photo without a word, or stop in the midst of training; 1e6 does not fit into float16."""
    without_direction(monkeypatch, number, {3})

    receipt = encode(storage, partition(1, 3, BAD, 5, 2), batch_size=2)

    assert (receipt.rows, receipt.rejected) == (3, 2)
    rejects = read_table(storage, segment_object(receipt, "rejects.parquet").path, kind="rejects")
    assert sorted(zip(rejects["uri"].to_pylist(), rejects["reason"].to_pylist(), strict=True)) == [
        (f"{BAD}.jpg", "truncated"),
        ("3.jpg", "no-descriptor"),
    ]


def test_a_photo_that_the_network_failed_on_once_is_asked_for_again(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    untroubled = encode(storage, partition(1, 3, 5))
    without_direction(monkeypatch, np.nan, {1, 3, 5}, times=1)

    assert encode(open_storage(storage.url + "-2", Settings(threads=1)), partition(1, 3, 5), batch_size=3).rows == 3
    assert untroubled.rejected == 0


def test_a_network_that_gives_no_descriptor_for_most_photos_is_refused_and_nothing_counts(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    without_direction(monkeypatch, np.nan, {3, 5, 2})

    with pytest.raises(ModelError, match=r"^3\.jpg: .*as for 3 of the 4 photos of its segment.*nothing was published"):
        encode(storage, partition(1, 3, BAD, 5, 2))
    assert read_receipts(storage) == {}


def test_a_gpu_that_does_that_is_to_blame_itself(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    """Another worker, on another GPU, may then do the same segment."""
    without_direction(monkeypatch, np.nan, {3, 5, 2})
    monkeypatch.setattr(NumberEncoder, "is_on_cpu", False)

    with pytest.raises(DeviceError, match="nvidia-smi"):
        encode(storage, partition(1, 3, 5, 2))
    assert read_receipts(storage) == {}


def test_a_gpu_that_is_lost_leaves_no_receipt_and_says_so(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    def lost(self: NumberEncoder, photos: list[np.ndarray]) -> list[EncodedPhoto]:
        raise DeviceLostError("cuda:0: found a GPU that answers no more")

    monkeypatch.setattr(NumberEncoder, "encode_prepared", lost)

    with pytest.raises(DeviceError, match="cuda:0"):
        encode(storage, partition(1, 2))
    assert read_receipts(storage) == {}


def test_the_network_of_one_partition_begins_while_another_that_shares_its_turn_is_written(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
):
    """Each waits for the other: the first to be written for the network of the second, that for the first to leave it."""
    turn, order, second_began = threading.Lock(), queue.SimpleQueue[str](), threading.Event()
    write = encode_module.finish_segment

    class Watched(NumberEncoder):
        def encode_prepared(self, photos: list[np.ndarray]) -> list[EncodedPhoto]:
            number = int(photos[0][0, 0, 0])
            order.put(f"network {number}")
            if number == 4:
                second_began.set()
            return super().encode_prepared(photos)

    def finish(storage: Storage, name: str, *rest: str, **options: Any) -> Receipt:
        if len(options["images"]) == 3:
            assert second_began.wait(20), "the network stood still while the first partition was written"
            order.put("first is written")
        return write(storage, name, *rest, **options)

    monkeypatch.setattr(encode_module, "finish_segment", finish)
    encoder = Watched()

    def run(task: Partition) -> Receipt:
        return encode_partition(task, storage, encoder, number_loader(encoder), lambda: None, turn=turn)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, partition(1, 2, 3))
        while order.empty():
            time.sleep(0.001)
        second = pool.submit(run, partition(4, 5))
        assert (first.result().rows, second.result().rows) == (3, 2)

    said = [order.get() for _ in range(order.qsize())]
    assert said[:4] == ["network 1", "network 2", "network 3", "network 4"], "partitions were mixed"
    assert "first is written" in said[4:]
