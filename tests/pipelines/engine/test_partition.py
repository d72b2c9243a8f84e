"""Cutting photos into segments: nothing is lost or doubled, and a segment's name is its content."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine.partition import Partition, PartitionConfig, cut, segment_id
from schemas import versions


def keyed(keys: list[str]) -> pa.Table:
    return pa.table({"photo_key": pa.array(keys, pa.string())})


def cut_into(keys: list[str], **config: int) -> list[Partition]:
    return list(cut(keyed(keys), "model", photos_per_segment=PartitionConfig(**config).photos_per_segment(len(keys))))


@given(photos=st.integers(0, 80), max_photos=st.integers(1, 60), min_photos=st.integers(1, 60), pieces=st.integers(1, 40))
@settings(max_examples=60)
def test_every_photo_is_in_exactly_one_partition_in_the_order_of_the_catalog(
    photos: int, max_photos: int, min_photos: int, pieces: int
):
    keys = [f"{number:04}" for number in range(photos)]

    partitions = cut_into(keys, max_photos=max_photos, min_photos=min_photos, pieces=pieces)

    assert [key for partition in partitions for key in partition.images["photo_key"].to_pylist()] == keys
    sizes = [len(partition.images) for partition in partitions]
    assert max(sizes, default=0) <= max_photos
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len({partition.segment_id for partition in partitions}) == len(partitions)


@pytest.mark.parametrize(
    ("photos", "segments"),
    [
        (1, 1),
        (64, 1),  # min_photos
        (65, 2),
        (1_024, 16),  # 16 pieces of 64
        (16_000, 16),  # still 16, of 1000
        (40_000, 20),  # of 2000: 16 pieces would be of 2500, more than max_photos
    ],
)
def test_small_jobs_are_cut_fine_enough_to_share_and_large_ones_at_the_most_photos(photos: int, segments: int):
    partitions = cut_into([str(number) for number in range(photos)])

    assert len(partitions) == segments


def test_no_photos_make_no_partition():
    assert cut_into([]) == []


@given(st.sets(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2).map(sorted), st.data())
@settings(max_examples=30)
def test_a_segment_is_named_by_its_photos_whatever_their_order(keys: list[str], data: st.DataObject):
    shuffled = data.draw(st.permutations(keys))

    assert segment_id(shuffled, "model") == segment_id(keys, "model")
    assert segment_id(keys[1:], "model") != segment_id(keys, "model")
    assert segment_id(keys, "other model") != segment_id(keys, "model")


def test_two_keys_are_not_one_key_that_reads_like_both():
    assert segment_id(["a", "b"], "model") != segment_id(["ab"], "model")
    assert segment_id(['a","b'], "model") != segment_id(["a", "b"], "model")


def test_the_name_of_a_segment_does_not_change_between_versions_of_folio():
    """`printf '[["a","b"],"model",[1,1,2,1]]' | sha256sum`, the first 24 digits; the numbers are of formats."""
    assert segment_id(["b", "a"], "model") == "44a9c88a80038c58ccb259e4"


@pytest.mark.parametrize("kind", ["images", "descriptors", "local_features", "rejects"])
def test_a_new_format_of_what_a_segment_holds_makes_new_segments(kind: str, monkeypatch: pytest.MonkeyPatch):
    before = segment_id(["a"], "model")

    monkeypatch.setitem(versions.FORMATS, kind, versions.FORMATS[kind] + 1)

    assert segment_id(["a"], "model") != before
