"""Which stored photos make up the next version of a map, on segments of a few photos written by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.build.membership import (
    Selection,
    live_keys,
    live_rows,
    masked_ranges,
    segment_object,
    select_added,
    select_exactly,
    still_to_encode,
)
from schemas.manifest import ObjectRef, SegmentEntry
from tests.pipelines.build.stored_segments import manifest_of, segment, stored_of

ONE = segment("s1", {"id-a": "a", "id-b": "b", "id-c": "c"})
TWO = segment("s2", {"id-d": "d", "id-b": "b"}, rejected=["r"])
"""Holds photo b once more: two builds ran at the same time."""


def entry(rows: int, masked: list[tuple[int, int]]) -> SegmentEntry:
    return SegmentEntry(segment_id="s", attempt="a", rows=rows, masked_rows=masked, bbox=(0, 0, 0, 0), receipt_sha256="")


def live(selection: Selection) -> dict[str, list[bool]]:
    return {name: rows.tolist() for name, rows in selection.items()}


@pytest.mark.parametrize(
    ("rows", "ranges"),
    [
        ([], []),
        ([True, True], []),
        ([False, False], [(0, 2)]),
        ([False, True, True, False, False, True], [(0, 1), (3, 5)]),
        ([True, False], [(1, 2)]),
    ],
)
def test_masked_rows_are_ranges_without_their_ends(rows: list[bool], ranges: list[tuple[int, int]]):
    assert masked_ranges(np.array(rows, bool)) == ranges
    assert live_rows(entry(len(rows), ranges)).tolist() == rows


@given(st.lists(st.booleans(), max_size=60))
@settings(max_examples=100, deadline=None)
def test_masking_and_unmasking_gives_the_same_rows_in_as_few_ranges_as_can_be(rows: list[bool]):
    ranges = masked_ranges(np.array(rows, bool))

    assert live_rows(entry(len(rows), ranges)).tolist() == rows
    assert all(start < stop for start, stop in ranges)
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


def test_exactly_the_wanted_photos_are_selected_wherever_they_are_stored():
    assert live(select_exactly(stored_of(ONE, TWO), {"a", "d", "never stored"})) == {
        "s1": [True, False, False],
        "s2": [True, False],
    }


def test_a_photo_that_is_stored_twice_is_selected_once():
    selection = select_exactly(stored_of(TWO, ONE), {"a", "b", "c", "d"})

    assert live(selection) == {"s1": [True, True, True], "s2": [True, False]}


def test_segments_without_a_wanted_photo_are_left_out():
    assert live(select_exactly(stored_of(ONE, TWO), {"c"})) == {"s1": [False, False, True]}
    assert select_exactly(stored_of(ONE, TWO), {"e"}) == {}
    assert select_exactly({}, {"a"}) == {}


def test_a_photo_replaced_under_the_same_name_is_selected_in_its_new_state():
    changed = segment("s0", {"id-b": "b, corrected"})

    assert live(select_exactly(stored_of(changed, ONE), {"a", "b, corrected", "c"})) == {"s0": [True], "s1": [True, False, True]}


def test_the_first_photos_added_are_a_selection_of_them():
    assert live(select_added(stored_of(ONE, TWO), None, {"a", "d"})) == {"s1": [True, False, False], "s2": [True, False]}


def test_added_photos_stand_beside_those_of_the_version_before():
    stored = stored_of(ONE, TWO)
    head = manifest_of(stored, {"s1": np.array([True, True, False])})

    assert live(select_added(stored, head, {"d"})) == {"s1": [True, True, False], "s2": [True, False]}


def test_a_photo_of_a_name_that_the_version_holds_is_not_added_whatever_its_state():
    changed = segment("s3", {"id-a": "a, corrected", "id-e": "e"})
    stored = stored_of(ONE, TWO, changed)
    head = manifest_of(stored, {"s1": np.array([True, True, True])})

    selection = select_added(stored, head, {"a, corrected", "b", "e"})

    assert live(selection) == {"s1": [True, True, True], "s3": [False, True]}


def test_a_photo_that_an_earlier_build_dropped_can_be_added_again():
    """Its key is stored, so it is not encoded anew; it lies in a masked row of a segment that the version has."""
    stored = stored_of(ONE)
    head = manifest_of(stored, {"s1": np.array([True, False, True])})
    assert not still_to_encode(stored, ["b"]).any()

    assert live(select_added(stored, head, {"b"})) == {"s1": [True, True, True]}


def test_adding_does_not_change_the_selection_of_the_version_before():
    stored = stored_of(ONE, TWO)
    head = manifest_of(stored, {"s1": np.array([True, True, False])})

    select_added(stored, head, {"c", "d"})

    assert head == manifest_of(stored, {"s1": np.array([True, True, False])})


def test_only_photos_neither_stored_nor_rejected_before_are_encoded():
    assert still_to_encode(stored_of(ONE, TWO), ["a", "new", "r", "d", "b, corrected"]).tolist() == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert still_to_encode({}, ["a"]).tolist() == [True]
    assert still_to_encode(stored_of(ONE), []).tolist() == []


def test_the_keys_of_a_version_are_those_of_its_live_rows_under_this_network():
    stored = stored_of(ONE, TWO)
    head = manifest_of(stored, {"s1": np.array([True, False, False]), "s2": np.array([False, True])})

    assert live_keys(head, stored) == {"a", "b"}
    assert live_keys(head, stored_of(ONE)) == {"a"}  # s2 was encoded by another network


def test_a_file_of_a_segment_is_found_in_its_receipt():
    paths = ["segments/s1/a/rejects.parquet", "segments/s1/a/images.parquet"]
    receipt = type(ONE.receipt)(
        segment_id="s1",
        attempt="a",
        model_fingerprint="f",
        rows=1,
        rejected=0,
        bbox=None,
        objects=[ObjectRef(path=path, size_bytes=1, sha256="") for path in paths],
    )

    assert segment_object(receipt, "images.parquet").path == paths[1]
