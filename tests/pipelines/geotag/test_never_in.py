"""Photos that may have been taken where no answer may be given; the region is from 100 m to 200 m north."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import shapely

from pipelines.geotag.regions import WITHHELD, Region
from pipelines.geotag.together import Around, Decision, decide_together
from pipelines.geotag.tracks import Tracks
from pipelines.locate.between import Fix
from pipelines.locate.position import PositionConfig
from tests.pipelines.geotag.archives import LON_DEG, START, Shot, answers_of, north, walk

REGION = Region(area=bytes(shapely.to_wkb(shapely.box(13.0, north(100), 13.5, north(200)))))


def decided(shots: Sequence[Shot], **around: object) -> dict[str, Decision]:
    decisions, _ = decide_together(answers_of(shots), PositionConfig(), Around(never_in=REGION, **around))
    return {each.row["uri"]: each for each in decisions}


def withheld(shots: Sequence[Shot], **around: object) -> list[str]:
    return [name for name, each in decided(shots, **around).items() if each.location.reason == WITHHELD]


def test_photos_there_are_withheld_and_the_others_answered():
    found = decided(walk(30))

    assert [name for name in found if found[name].withheld] == [f"walk/{number:03}.jpg" for number in range(9, 17)]
    assert {each.status.value for each in found.values() if not each.withheld} == {"answered"}


@pytest.mark.parametrize(
    "shot",
    [
        Shot(name="a.jpg", seconds=None, north_m=150.0, chance=0.97),
        Shot(name="a.jpg", seconds=None, north_m=150.0, chance=0.1),
        Shot(name="a.jpg", seconds=None, north_m=9000.0, chance=0.97, known_m=150.0),
        Shot(name="a.jpg", seconds=None, north_m=150.0, chance=0.6, others=[(9000.0, 0.99), (9001.0, 0.99)]),
        Shot(name="a.jpg", seconds=90.0, north_m=9000.0, chance=0.1),
    ],
    ids=["answer", "best place of a photo that is not known", "its own position", "its best candidate", "a track"],
)
def test_whatever_says_that_a_photo_was_taken_there_is_enough(shot: Shot):
    base = START.timestamp()
    through = Tracks(
        runs=(
            tuple(
                Fix(seconds=base + after, lat_deg=north(1.5 * after), lon_deg=LON_DEG, error_m=11.0) for after in range(0, 200, 5)
            ),
        )
    )

    assert withheld([shot], tracks=through) == ["a.jpg"]


def test_no_position_between_two_answers_lies_there():
    shots = [replace(shot, chance=0.0 if 8 < number < 17 else 0.97) for number, shot in enumerate(walk(30))]
    found = decided(shots)

    assert [each.location.reason for each in found.values() if each.location.reason] == [WITHHELD] * 8


def test_nothing_is_interpolated_where_the_way_went_through_the_region():
    """From 90 m to 40 m by way of 150 m: the straight line between the two would be wrong, and misses the region."""
    metres = [0.0, 30.0, 60.0, 90.0, 150.0, 90.0, 40.0, 20.0, 10.0, 0.0]
    shots = [Shot(name=f"walk/{n}.jpg", seconds=30.0 * n, north_m=to, chance=0.97) for n, to in enumerate(metres)]
    shots[5] = replace(shots[5], chance=0.0)

    through, around = decided(shots), decided([*shots[:4], *shots[5:]])

    assert through["walk/4.jpg"].withheld
    assert (through["walk/5.jpg"].status, around["walk/5.jpg"].status) == ("unknown", "interpolated")


def test_a_photo_that_contradicts_one_there_does_not_name_it():
    """Two photos, 100 km and ten seconds apart: the one that may be told of is answered as if the other did not exist."""
    home, away = (
        Shot(name="a/home.jpg", seconds=0.0, north_m=150.0, chance=0.97),
        Shot(name="a/away.jpg", seconds=10.0, north_m=90_000.0, chance=0.97),
    )
    found = decided([home, away])

    assert found["a/home.jpg"].withheld
    assert found["a/away.jpg"].status == "answered"


def test_another_place_of_a_photo_that_lies_there_is_not_told_either():
    shots = [*walk(8), Shot(name="walk/999.jpg", seconds=80.0, north_m=9000.0, chance=0.5, others=[(120.0, 0.99)])]
    found = decided(shots)["walk/999.jpg"]

    assert found.location.best_lat_deg is None or not REGION.holds_any((found.location.best_lat_deg, found.location.best_lon_deg))
    assert found.location.lat_deg is None


def test_edges_belong_to_a_region_and_what_is_not_known_lies_nowhere():
    assert REGION.holds(np.array([north(100), north(99.9), np.nan]), np.full(3, 13.2)).tolist() == [True, False, False]
    assert not REGION.holds_any((None, None), (None, 13.2))
