from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fol_model.inference import Encoder, open_encoder
from pipelines.locate import holding_back
from pipelines.locate.position import distances_m
from tests.benchmarks.calibrated import (
    ALONE,
    CALIBRATED,
    DEFAULT,
    FIXED,
    MADE_UP_PLACES,
    PLACES,
    BuiltMap,
    Placed,
    Row,
    Way,
    measure,
    tables,
    verdict,
)
from tests.benchmarks.recall_sets import RecallSet, load_set, set_names
from tests.benchmarks.test_recall_bench import scene


def drive(folder: Path, frames: int) -> list[Placed]:
    """Photos taken 7.5 m apart; each shows half of what the one before it shows."""
    street = cv2.hconcat([scene(seed, 64, 48) for seed in range(frames + 1)])
    placed = []
    for frame in range(frames):
        path = folder / f"{frame:03}.png"
        cv2.imwrite(str(path), street[:, frame * 48 : frame * 48 + 96])
        placed.append(Placed(str(path), 54.7 + frame * 7.5 / 111_195, 2.7, "there"))
    return placed


def ask(placed: list[Placed], encoder: Encoder, folder: Path, queries: range) -> Row:
    """Build a map of the even frames of a drive and ask it for some of the odd ones."""
    database = placed[::2]
    found = RecallSet(
        name="street",
        database=[Path(photo.uri) for photo in database],
        queries=[Path(placed[frame].uri) for frame in queries],
        positives=np.array([[abs(2 * other - frame) == 1 for other in range(len(database))] for frame in queries]),
    )
    encoded = encoder.encode([cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in found.queries])
    return measure(found, BuiltMap(database, encoder, folder), encoded, made_up_places=True)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return open_encoder("tiny", weights=None, device="cpu")


# ------------------------------------------------------------------------------------------------------- measuring


def test_a_map_is_calibrated_by_its_build_and_asked_in_each_way(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(holding_back, "LEAST_ASKED", 5)
    row = ask(drive(tmp_path, 24), encoder, tmp_path, range(1, 6, 2))

    assert (row.photos, row.queries) == (12, 3)
    assert list(row.ways) == [ALONE, FIXED, DEFAULT, CALIBRATED]
    assert row.ways[ALONE].mean_pool == 0
    assert row.ways[FIXED].mean_pool == 12
    assert row.ways[CALIBRATED].mean_pool <= row.ways[FIXED].mean_pool
    assert row.calibration is not None
    assert row.calibration["evidence"]["held_back"] == "neighbours"
    assert row.calibration["evidence"]["queries"] == 6
    assert "| street\\* | 12 | 6 (6), without their neighbours | " in tables([row])


def test_a_map_too_small_to_hold_photos_back_is_asked_with_the_defaults(encoder: Encoder, tmp_path: Path):
    row = ask(drive(tmp_path, 6), encoder, tmp_path, range(1, 4, 2))

    assert (row.photos, row.calibration, row.gained, row.lost) == (3, None, 0, 0)
    assert row.ways[CALIBRATED].recall == row.ways[DEFAULT].recall
    assert row.ways[CALIBRATED].mean_pool == row.ways[DEFAULT].mean_pool
    assert tables([row]).count("not calibrated: defaults") == 2


# ---------------------------------------------------------------------------------------------------------- places


def metres(here: Placed, there: Placed) -> float:
    lat, lon = (np.array([[getattr(one, name)] for one in (here, there)]) for name in ("lat_deg", "lon_deg"))
    return float(distances_m(lat[0], lon[0], lat[1], lon[1])[0])


def test_frames_of_a_drive_are_15_m_apart_and_drives_far_apart():
    first, second, fourth, other = PLACES["mapillary"]([Path(f"seq/{name}.jpg") for name in ("a/000", "a/001", "a/003", "b/000")])

    assert metres(first, second) == pytest.approx(15, abs=0.1)
    assert metres(second, fourth) == pytest.approx(30, abs=0.1)
    assert metres(first, other) > 5_000
    assert (first.sequence_id, other.sequence_id) == ("a", "b")


def test_made_up_places_are_near_where_the_truth_says_the_same_place(shared_data: Path, tmp_path: Path):
    found = load_set("ie-tower", data=shared_data, work=tmp_path)
    placed = PLACES["ie-tower"](found.database)
    lat, lon = (np.array([getattr(photo, name) for photo in placed]) for name in ("lat_deg", "lon_deg"))

    for right in found.positives[::50]:
        here = int(right.argmax())
        near = distances_m(np.full(len(lat), lat[here]), np.full(len(lon), lon[here]), lat, lon)
        np.testing.assert_array_equal(near <= 25, right)
        assert near[~right].min() > 190


def test_every_set_has_places_and_only_some_are_made_up():
    assert list(PLACES) == set_names()
    assert {name for name, places in PLACES.items() if places not in MADE_UP_PLACES} == {"street-lund", "sample-city"}


# ------------------------------------------------------------------------------------------------------- reporting


def way(pool: float, at_1: float) -> Way:
    return Way(mean_pool=pool, recall=(at_1, 1.0), cpu_ms=1.25)


def test_a_verdict_says_how_much_is_saved_and_what_it_costs():
    ways = {ALONE: way(0.0, 0.5), FIXED: way(100.0, 0.75), DEFAULT: way(20.0, 0.75), CALIBRATED: way(8.0, 0.75)}
    row = Row(set="street", made_up_places=False, photos=300, queries=4, ways=ways, gained=1, lost=1, calibration=None)

    assert verdict(row) == (
        "street: 100 / 8.0 = 12.5 times fewer candidates; recall@1 0.750, fixed 0.750: no lower (1 gained, 1 lost)"
    )
    worse = replace(row, ways={**ways, CALIBRATED: way(8.0, 0.25)}, gained=0, lost=2)
    assert verdict(worse).endswith("recall@1 0.250, fixed 0.750: LOWER (0 gained, 2 lost); LOWER than 0.500 by descriptor alone")
    assert tables([row]).splitlines()[-1] == "| street | 4 | calibrated (not calibrated: defaults) | 8.0 | 0.750 | 1.000 | 1.2 |"
