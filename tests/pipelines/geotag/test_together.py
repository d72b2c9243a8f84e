"""Photos that were taken one after the other, decided on together; where they were taken is set by hand."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from pipelines.geotag import together
from pipelines.geotag.together import ALONE, Around, Decision, decide_together
from pipelines.geotag.tracks import Tracks
from pipelines.locate.between import Fix
from pipelines.locate.position import PositionConfig
from tests.pipelines.geotag.archives import LON_DEG, START, Shot, answers_of, north, walk

CONFIG = PositionConfig(precision=0.95)


def decided(shots: Sequence[Shot], around: Around | None = None, **options: object) -> dict[str, Decision]:
    decisions, _ = decide_together(answers_of(shots, **options), CONFIG, around or Around())
    return {each.row["uri"]: each for each in decisions}


def notes(shots: Sequence[Shot], around: Around | None = None) -> list[str]:
    return decide_together(answers_of(shots), CONFIG, around or Around())[1]


def statuses(decisions: dict[str, Decision]) -> set[str]:
    return {each.status.value for each in decisions.values()}


def with_one(shots: list[Shot], number: int, **changes: object) -> list[Shot]:
    return [*shots[:number], replace(shots[number], **changes), *shots[number + 1 :]]


def a_track(*, begins_s: float = -60.0, ends_s: float = 600.0, off_m: float = 0.0) -> Tracks:
    """Along the walk, a point every five seconds."""
    base = START.timestamp()
    points = [
        Fix(seconds=base + after, lat_deg=north(1.2 * after + off_m), lon_deg=LON_DEG, error_m=11.0)
        for after in np.arange(begins_s, ends_s, 5.0).tolist()
    ]
    return Tracks(runs=(tuple(points),))


# ------------------------------------------------------------------------------------------------------------- paths


def test_a_photo_that_is_not_sure_alone_is_answered_where_the_path_proves_it():
    shots = with_one(walk(30), 10, chance=0.7)

    alone, together = decided(shots, ALONE)["walk/010.jpg"], decided(shots)["walk/010.jpg"]

    assert (alone.status, together.status) == ("unknown", "answered")
    assert alone.location.probability == pytest.approx(0.7)
    assert together.location.probability is not None
    assert together.location.probability > 0.95
    assert together.location.lat_deg == pytest.approx(north(120), abs=1e-6)
    assert together.sequence == "walk@2026-06-01T08:00:00+00:00"


def test_each_answer_that_a_path_adds_is_as_likely_as_was_promised():
    chances = np.linspace(0.05, 0.94, 30)
    shots = [replace(shot, chance=float(chances[row // 2]) if row % 2 else 0.97) for row, shot in enumerate(walk(60))]

    found = decided(shots)
    added = [found[shot.name] for shot in shots if shot.chance < 0.95 and found[shot.name].status == "answered"]

    assert 3 <= len(added) < 30
    assert all(each.location.probability >= 0.95 for each in added)


def test_a_path_chooses_another_place_and_names_the_candidate_that_stands_there():
    shots = with_one(walk(30), 10, north_m=40_000, chance=0.5, others=[(120.0, 0.99)])

    found = decided(shots)["walk/010.jpg"]

    assert found.candidates[found.matched].uri == "map/walk/010.jpg 2"
    assert found.location.best_lat_deg == pytest.approx(north(120), abs=1e-6)


def test_a_sure_answer_that_nobody_could_have_got_to_is_refused_with_the_photo_it_contradicts():
    """100 km in ten seconds."""
    found = decided(with_one(walk(30), 10, north_m=100_000))

    assert found["walk/010.jpg"].status == "unknown"
    assert found["walk/010.jpg"].location.lat_deg is None
    assert re.fullmatch(
        r"99,\d{3} m from where walk/009.jpg was taken 10 s before: quicker than 150 km/h", found["walk/010.jpg"].location.reason
    )
    assert sum(each.status == "answered" for each in found.values()) == 29


def test_a_sure_answer_off_the_pace_of_a_walk_is_refused_where_the_path_makes_it_unlikely():
    """400 m in ten seconds is a quick drive, and all others walk."""
    found = decided(with_one(walk(30), 10, north_m=520, chance=0.96))["walk/010.jpg"]

    assert found.status == "unknown"
    assert found.location.reason == "the photos taken before and after it speak against its place"
    assert found.location.probability is not None
    assert found.location.probability < 0.91


def test_copies_of_a_photo_prove_nothing_to_each_other():
    copies = [Shot(name=f"copies/{number}.jpg", seconds=number % 3, north_m=120.0, chance=0.7) for number in range(12)]

    assert {each.status for each in decided([*walk(30), *copies]).values() if each.row["uri"].startswith("copies")} == {"unknown"}


def test_of_two_photos_that_contradict_each_other_neither_is_answered():
    """100 km in a minute."""
    shots = [walk(2)[0], replace(walk(2)[1], seconds=60.0, north_m=90_000)]

    assert statuses(decided(shots)) == {"unknown"}
    assert statuses(decided(shots, ALONE)) == {"answered"}


def test_a_drive_is_no_contradiction_and_neither_is_a_flight_that_takes_its_time():
    drive = walk(30, every_s=10, step_m=300)
    flight = [
        *walk(5),
        *(
            replace(shot, seconds=500 + shot.seconds, name=f"walk/b{number}.jpg", north_m=15_000 + shot.north_m)
            for number, shot in enumerate(walk(5))
        ),
    ]

    assert statuses(decided(drive)) == {"answered"}
    assert statuses(decided(flight)) == {"answered"}


def test_who_says_how_quick_they_were_is_believed():
    shots = with_one(walk(30), 10, north_m=1200)

    assert decided(with_one(walk(3), 1, north_m=400), Around(max_speed_mps=42.0))["walk/001.jpg"].status == "answered"
    assert decided(shots, Around(max_speed_mps=2.0))["walk/010.jpg"].status == "unknown"


def test_a_map_that_is_not_calibrated_adds_no_answers_but_refuses_impossible_ones():
    shots = with_one(with_one(walk(30), 10, north_m=100_000), 20, others=[(-9000.0, 1.0), (-19_000.0, 1.0)])

    alone = decided(shots, ALONE, calibrated=False)
    found = decided(shots, calibrated=False)

    assert {name for name in found if alone[name].status == "answered"} == {name for name in found if name != "walk/020.jpg"}
    assert {name for name in found if found[name].status == "answered"} == {
        name for name in found if name not in ("walk/010.jpg", "walk/020.jpg")
    }
    assert all(each.location.probability is None for each in found.values())


def test_a_promise_that_was_not_proven_is_not_kept_by_paths_either():
    """The map has proven 80 %: answers need what was asked for each, 0.95, if they are not sure alone."""
    shots = with_one(walk(30), 10, chance=0.2)

    found = decided(shots, promises={"0.80": 0.75})["walk/010.jpg"]

    assert found.status != "answered"
    assert found.location.probability is not None
    assert found.location.probability < 0.95


# ------------------------------------------------------------------------------------------------------------ clocks


def scattered(count: int = 12) -> list[Shot]:
    """Sure photos kilometres apart."""
    return [replace(shot, north_m=7000.0 * (number * 5 % count)) for number, shot in enumerate(walk(count))]


@pytest.mark.parametrize("every_s", [0.0, 0.01, 1.0])
def test_times_that_make_most_sure_answers_impossible_are_not_believed(every_s: float):
    shots = [replace(shot, seconds=every_s * number) for number, shot in enumerate(scattered())]

    assert statuses(decided(shots)) == {"answered"}


def test_it_is_said_that_times_were_not_believed():
    assert notes(scattered()) == [
        "the times of 12 photos cannot be right, since most of their answers would contradict them: each stands alone"
    ]
    assert notes(walk(12)) == []


def test_a_clock_that_starts_anew_for_every_photo_costs_no_answer():
    since = (datetime(1980, 1, 1, tzinfo=UTC) - START).total_seconds()
    shots = [replace(shot, seconds=since + number % 4) for number, shot in enumerate(scattered())]

    assert statuses(decided(shots)) == {"answered"}


def test_times_that_run_backwards_are_a_walk_the_other_way():
    shots = [
        replace(shot, seconds=1000 - (shot.seconds or 0), chance=0.7 if number == 10 else 0.97)
        for number, shot in enumerate(walk(30))
    ]

    assert statuses(decided(shots)) == {"answered"}


def test_photos_without_a_time_are_decided_on_alone():
    shots = [replace(shot, seconds=None) for shot in with_one(walk(30), 10, chance=0.7)]
    found = decided(shots)

    assert found["walk/010.jpg"].status == "unknown"
    assert {each.sequence for each in found.values()} == {None}


# ----------------------------------------------------------------------------------------------------- interpolation


def test_an_unknown_photo_between_two_answers_is_interpolated_and_says_between_which():
    found = decided(with_one(walk(30), 10, chance=0.0))["walk/010.jpg"]

    assert found.status == "interpolated"
    assert found.location.lat_deg == pytest.approx(north(120), abs=1e-6)
    assert found.location.expected_error_m is not None
    assert 11 < found.location.expected_error_m < 60
    assert found.location.reason == (
        "between walk/009.jpg, 10 s before, and walk/011.jpg, 10 s later; not sure by its own pixels"
    )


def test_nothing_is_extrapolated():
    shots = [replace(shot, chance=0.0 if number in (0, 1, 28, 29) else 0.97) for number, shot in enumerate(walk(30))]
    found = decided(shots)

    assert [found[f"walk/{number:03}.jpg"].status for number in (0, 1, 28, 29)] == ["unknown"] * 4


@pytest.mark.parametrize("until_s", [60.0, 200.0])
def test_a_long_pause_is_not_filled(until_s: float):
    shots = [
        *walk(20),
        *(
            replace(shot, name=f"walk/b{shot.name[-7:]}", seconds=190 + until_s + (shot.seconds or 0), north_m=240 + shot.north_m)
            for shot in walk(20)
        ),
    ]
    lost = Shot(name="walk/a.jpg", seconds=190 + until_s / 2, north_m=0.0, chance=0.0)

    assert decided([*shots, lost])["walk/a.jpg"].status == ("interpolated" if until_s <= 120 else "unknown")


def test_a_refused_answer_is_not_interpolated_over():
    assert decided(with_one(walk(30), 10, north_m=100_000))["walk/010.jpg"].status == "unknown"


# ------------------------------------------------------------------------------------------------------------ tracks


def test_a_track_confirms_a_photo_that_is_not_sure_alone():
    shots = [*walk(30), Shot(name="other/1.jpg", seconds=100.0, north_m=120.0, chance=0.7)]

    assert decided(shots)["other/1.jpg"].status == "unknown"
    assert decided(shots, Around(tracks=a_track()))["other/1.jpg"].status == "answered"


@pytest.mark.parametrize(
    ("sure", "calibrated", "said"), [(19, True, "and 19 were found"), (20, True, None), (30, False, "the map is not calibrated")]
)
def test_it_is_said_when_a_track_can_add_no_answer(sure: int, calibrated: bool, said: str | None):
    """By tracks of which nobody could say what they prove, every photo would be right."""
    shots = [*walk(sure), *[replace(shot, chance=0.7) for shot in walk(sure + 1)[sure:]]]
    answers = answers_of(shots, calibrated=calibrated)

    decisions, notes = decide_together(answers, CONFIG, Around(sequences=False, tracks=a_track()))

    assert [said in note for note in notes] == [True] * (said is not None)
    assert decide_together(answers, CONFIG, Around(sequences=False, tracks=a_track(), use_track=True))[1] == []
    if calibrated:
        assert (decisions[-1].status == "answered") == (said is None)


def test_a_track_refuses_a_sure_photo_far_from_it_and_the_track_is_not_the_answer():
    shots = [*walk(30), Shot(name="other/1.jpg", seconds=100.0, north_m=3000.0, chance=0.97)]

    found = decided(shots, Around(tracks=a_track(), use_track=True))["other/1.jpg"]

    assert found.status == "unknown"
    assert found.location.reason == "a track was 2,876 m away when it was taken"


def test_where_the_pixels_say_nothing_a_track_is_an_answer_only_when_asked():
    shots = [*walk(30), Shot(name="other/1.jpg", seconds=102.5, north_m=0.0, chance=0.0)]

    silent, asked = (decided(shots, Around(tracks=a_track(), use_track=use))["other/1.jpg"] for use in (False, True))

    assert silent.status == "unknown"
    assert asked.status == "interpolated"
    assert asked.location.lat_deg == pytest.approx(north(123), abs=1e-5)
    assert asked.location.reason == "where the track was at its time; not sure by its own pixels"


def test_a_track_of_another_year_is_an_error_and_changes_nothing():
    year = 365 * 86_400.0
    old = a_track(begins_s=-60 - year, ends_s=600 - year)
    shots = with_one(walk(30), 10, chance=0.7)

    found, plain = decided(shots, Around(tracks=old, use_track=True)), decided(shots)
    said = notes(shots, Around(tracks=old))

    assert {name: (each.status, each.location) for name, each in found.items()} == {
        name: (each.status, each.location) for name, each in plain.items()
    }
    assert len(said) == 1
    assert said[0].startswith(
        "error: the tracks go from 2025-06-01 07:59:00 to 2025-06-01 08:09:55, the photos were taken from 2026-06-01"
    )


def test_a_camera_on_summer_time_needs_its_offset():
    late = [replace(shot, seconds=(shot.seconds or 0) + 7200) for shot in walk(30)]
    shots = [*late, Shot(name="other/1.jpg", seconds=7300.0, north_m=120.0, chance=0.7)]

    assert decided(shots, Around(tracks=a_track(), time_offset_s=7200.0))["other/1.jpg"].status == "answered"
    assert notes(shots, Around(tracks=a_track()))[0].startswith("error: ")


@pytest.mark.parametrize("off_m", [9000.0, 100.0])
def test_a_track_that_contradicts_most_photos_is_not_used(off_m: float):
    """The second is that of a clock a minute wrong."""
    shots = walk(30)
    away = Around(tracks=a_track(off_m=off_m), use_track=True)

    assert statuses(decided(shots, away)) == {"answered"}
    assert notes(shots, away)[0].startswith("error: 30 of 30 photos that are sure of their place were taken elsewhere than")


# -------------------------------------------------------------------------------------------------------- impossible


def test_an_answer_outside_of_the_map_is_refused():
    """The map ends 100 km north; its candidate claims to stand 300 km north."""
    found = decided([Shot(name="a/1.jpg", seconds=None, north_m=300_000, chance=0.99)])["a/1.jpg"]

    assert found.status == "unknown"
    assert found.location.reason == "the position found lies more than 1 km outside of the box round the map's photos"


def test_what_a_large_map_says_of_a_remote_corner_is_no_impossible_answer(monkeypatch: pytest.MonkeyPatch):
    """Of a large map only every so many photos are kept as coverage."""
    monkeypatch.setattr(together, "COVERAGE_POINTS", 1000)

    assert decided([Shot(name="a/1.jpg", seconds=None, north_m=300_000, chance=0.99)])["a/1.jpg"].status == "answered"


def test_the_same_archive_in_another_order_is_decided_the_same():
    shots = with_one(with_one(walk(30), 10, chance=0.7), 20, chance=0.0)
    one, other = decided(shots), decided(shots[::-1])

    assert {name: each.location for name, each in one.items()} == {name: each.location for name, each in other.items()}


# ------------------------------------------------------------------------------------------------------------- copies


def test_copies_have_the_answer_of_their_original_wherever_they_lie():
    """One stands in a walk that proves it, the other one alone in a folder of its own."""
    shots = [*with_one(walk(30), 10, chance=0.7), replace(walk(30)[10], name="elsewhere/copy.jpg", chance=0.7)]
    answers = answers_of(shots)
    of = dict(zip(answers.queries["uri"].to_pylist(), answers.queries["image_id"].to_pylist(), strict=True))

    decisions, _ = decide_together(replace(answers, duplicates={of["elsewhere/copy.jpg"]: of["walk/010.jpg"]}), CONFIG, Around())
    by_name = {each.row["uri"]: each for each in decisions}

    copy, original = by_name["elsewhere/copy.jpg"], by_name["walk/010.jpg"]
    assert original.status == "answered"
    assert (copy.location, copy.status, copy.matched) == (original.location, original.status, original.matched)
    assert (copy.duplicate_of, original.duplicate_of) == (of["walk/010.jpg"], None)
