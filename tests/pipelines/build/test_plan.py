"""What `--plan` prints: everything that a run would spend and change."""

import msgspec
import pytest

from pipelines.build.plan import SpeedEstimate, name_run
from tests.schemas import samples

SPEED = SpeedEstimate(photos_per_second=0.5)


def test_a_plan_says_what_is_encoded_merged_dropped_and_what_becomes_of_the_quantizer():
    plan = msgspec.structs.replace(
        samples.plan(),
        photos_dropped=7,
        segments_to_merge=5,
        photos_to_copy=1_234,
        quantizer="will be trained: the map has grown from 300 to 1,500 photos, more than 4 times",
    )

    assert plan.lines(SPEED) == [
        "6 photos listed, 1 rejected, 2 known, 7 to be dropped",
        "work    3 photos in 1 segments to encode with tiny (untrained), about 3 s with 2 workers",
        "merge   5 segments with 1,234 photos, without the network",
        "index   quantizer will be trained: the map has grown from 300 to 1,500 photos, more than 4 times",
        "memory  up to 1.8 GB",
        "disk    up to 0.1 MB more in the map's store",
        "nothing was written",
    ]


def test_a_plan_without_merging_does_not_speak_of_it():
    assert not any(line.startswith("merge") for line in samples.plan().lines(SPEED))


@pytest.mark.parametrize(("one", "other", "same"), [(["a", "b"], ["b", "a"], True), (["a"], ["b"], False)])
def test_a_run_is_named_by_its_photos_in_any_order(one: list[str], other: list[str], same: bool):
    assert (name_run("build", "f", one) == name_run("build", "f", other)) == same
    assert name_run("build", "f", one) != name_run("backfill", "f", one)
