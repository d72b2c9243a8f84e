"""Copying small and mostly masked segments: the bytes of an encoding without the network, and then never again."""

from collections.abc import Container
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from infra import arrays
from infra.commits import read_receipts
from infra.settings import Settings
from infra.storage import Storage, open_storage
from pipelines.build.compact import NOTHING, Rewriting, copy_partition, plan_rewriting
from pipelines.build.encode import encode_partition
from pipelines.build.membership import Selection, StoredSegment, read_stored, segment_object
from pipelines.engine.partition import PartitionConfig
from schemas.errors import DamagedError
from schemas.manifest import Receipt
from tests.pipelines.build.stand_ins import BAD, NumberEncoder, number_loader, partition, photos
from tests.pipelines.build.stored_segments import FINGERPRINT, all_of, segment, stored_of

SIXTEEN = PartitionConfig(max_photos=16, min_photos=16)
"""Segments of 16; below 4 they are small."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays, "SHARD_BYTES", 4096)


@pytest.fixture
def storage() -> Storage:
    return open_storage(f"memory://{uuid4().hex}", Settings(threads=1))


def encode(storage: Storage, *numbers: int, away: Container[int] = ()) -> Receipt:
    loader = number_loader(NumberEncoder(), away)
    return encode_partition(partition(*numbers), storage, NumberEncoder(), loader, lambda: None)


def plan(storage: Storage, selection: Selection | None = None, *, asked: pa.Table, purged: set[str] | None = None) -> Rewriting:
    stored = read_stored(storage, FINGERPRINT)
    chosen = {name: live for name, live in all_of(stored).items() if live.any()} if selection is None else selection
    return plan_rewriting(stored, chosen, asked, purged=purged or set(), model_fingerprint=FINGERPRINT, config=SIXTEEN)


def copy(storage: Storage, rewriting: Rewriting) -> list[Receipt]:
    stored = read_stored(storage, FINGERPRINT)
    return [copy_partition(task, storage, stored, rewriting, NumberEncoder(), lambda: None) for task in rewriting.partitions]


def contents(storage: Storage, receipt: Receipt) -> dict[str, bytes]:
    return {ref.path.split("/", 3)[3]: storage.get(ref.path) for ref in receipt.objects}


def test_a_copied_segment_has_the_name_and_the_bytes_of_one_that_is_encoded_afresh(storage: Storage):
    """Four segments, their photos mixed along the curve; one is partly masked, two hold photos that do not decode."""
    for numbers in ((1, 5, BAD), (2, 6, 8), (3, 7), (BAD + 1, 4)):
        encode(storage, *numbers)
    stored = read_stored(storage, FINGERPRINT)
    selection = {name: np.array([key != "key 8" for key in each.photo_keys]) for name, each in stored.items()}
    asked = (BAD, 1, 2, 3, 4, BAD + 1, 5, 6, 7)

    rewriting = plan(storage, selection, asked=photos(*asked))
    (copied,) = copy(storage, rewriting)

    elsewhere = open_storage(f"memory://{uuid4().hex}", Settings(threads=1))
    afresh = encode(elsewhere, *asked)
    assert rewriting.replaced == set(stored)
    assert (copied.segment_id, copied.rows, copied.rejected, copied.bbox) == (afresh.segment_id, 7, 2, afresh.bbox)
    assert contents(storage, copied) == contents(elsewhere, afresh)
    assert read_receipts(storage)[copied.segment_id] == copied


def test_many_photos_are_copied_into_several_segments_in_the_order_of_the_curve(storage: Storage):
    for first in range(20):
        encode(storage, *range(1 + first, 61, 20))  # each photo beside photos of other segments

    rewriting = plan(storage, asked=photos(*range(1, 61)))
    copied = copy(storage, rewriting)

    assert len(rewriting.replaced) == 20
    assert [(receipt.rows, receipt.bbox) for receipt in copied] == [
        (15, (13 + first / 1000, 55.0, 13 + (first + 14) / 1000, 55.0)) for first in (1, 16, 31, 46)
    ]
    stored = read_stored(storage, FINGERPRINT)
    assert plan(storage, {receipt.segment_id: np.ones(15, bool) for receipt in copied}, asked=photos(*range(1, 61))) == NOTHING
    assert [key for receipt in copied for key in stored[receipt.segment_id].photo_keys] == [f"key {n}" for n in range(1, 61)]


def test_a_rejected_photo_that_is_not_asked_for_any_more_is_not_carried_on(storage: Storage):
    for numbers in ((1, BAD), (2,), (3,), (4, BAD + 1)):
        encode(storage, *numbers)

    (copied,) = copy(storage, plan(storage, asked=photos(1, 2, 3, 4, BAD + 1)))

    assert read_stored(storage, FINGERPRINT)[copied.segment_id].rejected_keys == [f"key {BAD + 1}"]


def test_photos_that_were_away_once_are_copied_though_a_segment_of_the_same_photos_is_there(storage: Storage):
    """The first segment lacks three of its photos, each of which has since got one of its own."""
    first = encode(storage, 1, 2, 3, 4, away=(2, 3, 4))
    for number in (2, 3, 4):
        encode(storage, number)

    rewriting = plan(storage, asked=photos(1, 2, 3, 4))
    (copied,) = copy(storage, rewriting)

    assert len(rewriting.replaced) == 4
    assert copied.segment_id != first.segment_id
    stored = read_stored(storage, FINGERPRINT)
    assert stored[copied.segment_id].photo_keys == ["key 1", "key 2", "key 3", "key 4"]
    assert plan(storage, all_of({copied.segment_id: stored[copied.segment_id]}), asked=photos(1, 2, 3, 4)) == NOTHING


def test_a_copy_that_is_killed_and_done_again_leaves_one_receipt(storage: Storage):
    for number in range(1, 5):
        encode(storage, number)
    rewriting = plan(storage, asked=photos(1, 2, 3, 4))

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_partition(rewriting.partitions[0], storage, read_stored(storage, FINGERPRINT), rewriting, NumberEncoder(), die)
    assert rewriting.partitions[0].segment_id not in read_receipts(storage)
    first, second = copy(storage, rewriting), copy(storage, rewriting)

    assert first == second


def test_damage_is_not_copied(storage: Storage):
    for number in range(1, 5):
        encode(storage, number)
    rewriting = plan(storage, asked=photos(1, 2, 3, 4))
    name = sorted(rewriting.replaced)[2]
    ref = segment_object(read_receipts(storage)[name], "local_features.zarr/c/0/0/0")
    flipped = bytearray(storage.get(ref.path))
    flipped[10] ^= 1
    storage.put(ref.path, bytes(flipped))

    with pytest.raises(DamagedError, match=name):
        copy(storage, rewriting)

    assert rewriting.partitions[0].segment_id not in read_receipts(storage)


def of_sizes(*sizes: tuple[int, int]) -> tuple[dict[str, StoredSegment], Selection, pa.Table]:
    """Segments with so many live rows and so many masked ones."""
    segments, selection, keys = [], {}, []
    for number, (live, masked) in enumerate(sizes):
        names = {f"id {number}-{row}": f"key {number}-{row}" for row in range(live + masked)}
        segments.append(segment(f"s{number}", names))
        selection[f"s{number}"] = np.arange(live + masked) < live
        keys += list(names.values())[:live]
    return stored_of(*segments), selection, pa.table({"photo_key": pa.array(keys, pa.string())})


def replaced(*sizes: tuple[int, int], purged: set[str] | None = None) -> set[str]:
    stored, selection, images = of_sizes(*sizes)
    found = plan_rewriting(stored, selection, images, purged=purged or set(), model_fingerprint=FINGERPRINT, config=SIXTEEN)
    return set(found.replaced)


def test_small_segments_are_merged_once_there_are_a_few():
    assert replaced((16, 0), (3, 0), (3, 0), (3, 0)) == set()
    assert replaced((16, 0), (3, 0), (3, 0), (3, 0), (1, 0)) == {"s1", "s2", "s3", "s4"}
    assert replaced((4, 0), (4, 0), (4, 0), (4, 0)) == set()  # a quarter of 16 is not small


def test_a_mostly_masked_segment_is_copied_alone_and_takes_small_ones_with_it():
    assert replaced((16, 0), (8, 8)) == set()
    assert replaced((16, 0), (7, 9)) == {"s1"}
    assert replaced((16, 0), (7, 9), (3, 0)) == {"s1", "s2"}


def test_a_segment_that_holds_a_photo_taken_down_is_copied_however_large_it_is():
    assert replaced((16, 0), (15, 1), purged={"s1"}) == {"s1"}


def test_pieces_of_one_small_job_are_not_small():
    """A job of 300 photos is cut into five segments of 60: what a map of this size is to have."""
    stored, selection, images = of_sizes(*[(60, 0)] * 5)

    assert (
        plan_rewriting(stored, selection, images, purged=set(), model_fingerprint=FINGERPRINT, config=PartitionConfig())
        == NOTHING
    )


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=30), st.sets(st.integers(0, 29)))
@examples(max_examples=80)
def test_what_was_merged_is_not_merged_again(sizes: list[tuple[int, int]], purged: set[int]):
    stored, selection, images = of_sizes(*sizes)
    names = {f"s{number}" for number in purged}

    first = plan_rewriting(stored, selection, images, purged=names, model_fingerprint=FINGERPRINT, config=SIXTEEN)

    made = [
        segment(task.segment_id, {f"id {key}": key for key in task.images["photo_key"].to_pylist()}) for task in first.partitions
    ]
    after = stored_of(*made, *(stored[name] for name in selection if name not in first.replaced))
    kept = {name: live for name, live in selection.items() if name not in first.replaced}
    then = {**kept, **{each.receipt.segment_id: np.ones(each.receipt.rows, bool) for each in made}}
    assert sum(int(live.sum()) for live in then.values()) == len(images)
    assert plan_rewriting(after, then, images, purged=set(), model_fingerprint=FINGERPRINT, config=SIXTEEN) == NOTHING
