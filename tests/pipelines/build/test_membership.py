"""Which stored photos make up the next version of a map, on segments of a few photos written by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import Settings as StoreSettings
from infra.storage import open_storage
from pipelines.build.membership import (
    Selection,
    StoredSegment,
    live_keys,
    live_rows,
    live_selection,
    masked_ranges,
    require_whole,
    segment_object,
    select,
    tried_keys,
)
from schemas.errors import DamagedError
from schemas.manifest import Manifest, ObjectRef, SegmentEntry
from tests.pipelines.build.stored_segments import manifest_of, segment, stored_of

ONE = segment("s1", {"id-a": "a", "id-b": "b", "id-c": "c"})
TWO = segment("s2", {"id-d": "d", "id-b": "b"}, rejected=["r"])
"""Holds photo b once more: two builds ran at the same time."""


def exactly(stored: dict[str, StoredSegment], wanted: set[str]) -> Selection:
    """What a build on an empty map selects."""
    return select(stored, None, wanted=wanted, kept={})


def added(stored: dict[str, StoredSegment], head: Manifest | None, wanted: set[str]) -> Selection:
    """What a backfill selects."""
    return select(stored, head, wanted=wanted, kept=live_selection(head, stored))


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
@settings(max_examples=100)
def test_masking_and_unmasking_gives_the_same_rows_in_as_few_ranges_as_can_be(rows: list[bool]):
    ranges = masked_ranges(np.array(rows, bool))

    assert live_rows(entry(len(rows), ranges)).tolist() == rows
    assert all(start < stop for start, stop in ranges)
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


def test_exactly_the_wanted_photos_are_selected_wherever_they_are_stored():
    assert live(exactly(stored_of(ONE, TWO), {"a", "d", "never stored"})) == {
        "s1": [True, False, False],
        "s2": [True, False],
    }


def test_a_photo_that_is_stored_twice_is_selected_once():
    selection = exactly(stored_of(TWO, ONE), {"a", "b", "c", "d"})

    assert live(selection) == {"s1": [True, True, True], "s2": [True, False]}


def test_segments_without_a_wanted_photo_are_left_out():
    assert live(exactly(stored_of(ONE, TWO), {"c"})) == {"s1": [False, False, True]}
    assert exactly(stored_of(ONE, TWO), {"e"}) == {}
    assert exactly({}, {"a"}) == {}


def test_a_photo_replaced_under_the_same_name_is_selected_in_its_new_state():
    changed = segment("s0", {"id-b": "b, corrected"})

    assert live(exactly(stored_of(changed, ONE), {"a", "b, corrected", "c"})) == {"s0": [True], "s1": [True, False, True]}


def test_the_first_photos_added_are_a_selection_of_them():
    assert live(added(stored_of(ONE, TWO), None, {"a", "d"})) == {"s1": [True, False, False], "s2": [True, False]}


def test_added_photos_stand_beside_those_of_the_version_before():
    stored = stored_of(ONE, TWO)
    head = manifest_of(stored, {"s1": np.array([True, True, False])})

    assert live(added(stored, head, {"d"})) == {"s1": [True, True, False], "s2": [True, False]}


def test_a_photo_of_a_name_that_the_version_holds_is_not_added_whatever_its_state():
    changed = segment("s3", {"id-a": "a, corrected", "id-e": "e"})
    stored = stored_of(ONE, TWO, changed)
    head = manifest_of(stored, {"s1": np.array([True, True, True])})

    selection = added(stored, head, {"a, corrected", "b", "e"})

    assert live(selection) == {"s1": [True, True, True], "s3": [False, True]}


def test_a_photo_that_an_earlier_build_dropped_can_be_added_again():
    """Its key is stored, so it is not encoded anew; it lies in a masked row of a segment that the version has."""
    stored = stored_of(ONE)
    head = manifest_of(stored, {"s1": np.array([True, False, True])})
    assert "b" in tried_keys(stored, ["s1"])

    assert live(added(stored, head, {"b"})) == {"s1": [True, True, True]}


def test_adding_does_not_change_the_selection_of_the_version_before():
    stored = stored_of(ONE, TWO)
    head = manifest_of(stored, {"s1": np.array([True, True, False])})

    added(stored, head, {"c", "d"})

    assert head == manifest_of(stored, {"s1": np.array([True, True, False])})


def test_photos_were_tried_that_are_stored_or_were_rejected():
    assert tried_keys(stored_of(ONE, TWO), ["s2"]) == {"d", "b", "r"}
    assert tried_keys(stored_of(ONE, TWO), ["s1", "gone"]) == {"a", "b", "c"}


def test_of_two_copies_the_one_in_the_version_before_is_kept_and_then_the_one_that_was_planned():
    """Which copies lie in the store depends on which runs were killed when; the map must not."""
    stored = stored_of(ONE, TWO, segment("s3", {"id-b": "b", "id-c": "c"}))
    head = manifest_of(stored, {"s2": np.array([False, True])})

    assert live(select(stored, head, wanted={"b", "c"}, kept={}, planned=["s3"])) == {"s2": [False, True], "s3": [False, True]}
    assert live(select(stored, None, wanted={"b", "c"}, kept={}, planned=["s3"])) == {"s3": [True, True]}
    assert live(select(stored, head, wanted={"b", "c"}, kept={}, planned=["s3"], replaced=["s2"])) == {"s3": [True, True]}
    assert live(select(stored, head, wanted={"d"}, kept={}, replaced=["s2"])) == {"s2": [True, False]}  # copied nowhere else


def test_of_two_copies_in_the_version_before_the_live_one_is_kept():
    stored = stored_of(ONE, TWO)
    head = manifest_of(stored, {"s1": np.array([True, False, True]), "s2": np.array([True, True])})

    assert live(select(stored, head, wanted={"b"}, kept={})) == {"s2": [False, True]}


def test_a_version_whose_receipts_are_not_all_there_is_not_gone_on_from():
    """Its photos would leave the map without a word."""
    stored = stored_of(ONE, TWO)
    head = manifest_of(stored, {"s1": np.ones(3, bool), "s2": np.ones(2, bool)})
    storage = open_storage("memory://whole", StoreSettings(threads=1))

    require_whole(storage, head, "f00d", stored)
    require_whole(storage, head, "another network", {})
    require_whole(storage, None, "f00d", {})
    with pytest.raises(DamagedError, match=r"receipts/s2\.json: found nothing"):
        require_whole(storage, head, "f00d", stored_of(ONE))


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
