"""What `--plan` prints: everything that a run would spend and change."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pipelines.build.plan import name_run, require_memory, training_memory
from pipelines.ivfpq import IndexConfig
from schemas.errors import PlanError
from tests.schemas import samples


def test_a_plan_says_what_is_encoded_merged_dropped_and_what_becomes_of_the_quantizer():
    plan = msgspec.structs.replace(
        samples.plan(),
        photos_dropped=7,
        segments_to_merge=5,
        photos_to_copy=1_234,
        quantizer="will be trained: the map has grown from 300 to 1,500 photos, more than 4 times",
    )

    assert plan.lines() == [
        "6 photos listed, 1 rejected, 2 known, 7 to be dropped",
        "work    3 photos in 1 segments to encode with tiny (untrained), 2 at once",
        "merge   5 segments with 1,234 photos, without the network",
        "index   quantizer will be trained: the map has grown from 300 to 1,500 photos, more than 4 times",
        "memory  up to 1.8 GB",
        "disk    up to 0.1 MB more in the map's store",
    ]


def test_a_plan_without_merging_does_not_speak_of_it():
    assert not any(line.startswith("merge") for line in samples.plan().lines())


def test_a_build_that_memory_has_no_room_for_is_refused_with_the_workers_that_would_fit():
    plan = msgspec.structs.replace(samples.plan(), workers=8, memory_bytes=9_000_000_000)

    with pytest.raises(PlanError, match=r"9\.0 GB of memory with 8 workers.*has 4\.0 GB\. Nothing was written\. FOLIO_THREADS=3"):
        require_memory(plan, 4_000_000_000, lambda workers: (1 + workers) * 1_000_000_000)
    with pytest.raises(PlanError, match=r"One worker takes 5\.0 GB: use a larger machine"):
        require_memory(plan, 4_000_000_000, lambda workers: (4 + workers) * 1_000_000_000)


def test_a_build_whose_index_memory_has_no_room_to_train_is_not_told_to_use_fewer_workers():
    plan = msgspec.structs.replace(samples.plan(), memory_bytes=4_600_000_000, training_bytes=4_600_000_000)

    with pytest.raises(PlanError, match=r"Training the index takes 4\.6 GB, however many workers there are"):
        require_memory(plan, 4_000_000_000, lambda workers: workers * 1_000_000_000)


@pytest.mark.parametrize(("photos", "measured"), [(1_000, 0.118e9), (10_000, 0.773e9), (100_000, 1.887e9), (3_000_000, 1.887e9)])
def test_what_training_takes_is_stated_as_it_was_measured_and_does_not_grow_with_the_largest_maps(photos: int, measured: float):
    """pipelines/README.md, "What a map costs as it grows": beyond what the process takes anyway, of 8,448 numbers."""
    encoder: Any = SimpleNamespace(descriptor_dim=8_448, weight_bytes=0)
    stated = training_memory(encoder, photos, IndexConfig()) - (900 << 20)

    assert measured < stated < 1.4 * measured


def test_a_map_too_small_for_a_quantizer_needs_no_memory_to_train_one():
    encoder: Any = SimpleNamespace(descriptor_dim=8_448, weight_bytes=0)

    assert training_memory(encoder, 200, IndexConfig()) == 0


def test_memory_that_is_enough_or_unknown_and_a_build_of_nothing_are_not_refused():
    plan = msgspec.structs.replace(samples.plan(), memory_bytes=9_000_000_000)

    require_memory(plan, 9_000_000_000, lambda workers: 0)
    require_memory(plan, None, lambda workers: 0)
    require_memory(msgspec.structs.replace(plan, photos_to_encode=0), 1, lambda workers: 0)


@pytest.mark.parametrize(("one", "other", "same"), [(["a", "b"], ["b", "a"], True), (["a"], ["b"], False)])
def test_a_run_is_named_by_its_photos_in_any_order(one: list[str], other: list[str], same: bool):
    assert (name_run("build", "f", one) == name_run("build", "f", other)) == same
    assert name_run("build", "f", one) != name_run("backfill", "f", one)
