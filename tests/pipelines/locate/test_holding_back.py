"""Whom to hold back, what to leave out of the map for each, and the smallest pools that lose nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fol_model.config import PoolConfig, RerankConfig
from fol_model.reranking import best_first, fused_scores, matched_size
from fol_model.scheduling import pool_size
from pipelines.locate.holding_back import (
    ENOUGH,
    LEAST_ASKED,
    RADIUS_M,
    BestOf,
    Places,
    choose_held_back,
    drives_of,
    fit_early_exit,
    fit_enough,
    fit_weight,
)
from schemas.images import IMAGES

METRE = 1 / 111_195
START = datetime(2026, 5, 1, 12, tzinfo=UTC)


def images(rows: list[tuple[str | None, float | None]]) -> pa.Table:
    """Photos by sequence and seconds after noon."""
    schema = pa.schema([IMAGES.field("sequence_id"), IMAGES.field("taken_at")])
    moments = [None if seconds is None else START + timedelta(seconds=seconds) for _, seconds in rows]
    return pa.table({"sequence_id": [name for name, _ in rows], "taken_at": moments}, schema=schema)


def street(*drives: np.ndarray) -> Places:
    """Drives along one meridian, photos at these metres."""
    north = np.concatenate(drives)
    numbers = np.concatenate([np.full(len(drive), number) for number, drive in enumerate(drives)])
    return Places(
        lat_deg=55 + north * METRE,
        lon_deg=np.full(len(north), 13.0),
        heading_deg=np.full(len(north), np.nan),
        drive=numbers.astype(np.int64),
    )


def test_drives_are_named_sequences_and_runs_in_time_of_the_others():
    found = drives_of(images([("b", 0), ("a", 5), (None, 10), (None, 100), (None, 5000), (None, None), ("b", 9000)]))

    assert found.tolist() == [1, 0, 2, 2, 3, -1, 1]


def test_photos_of_unknown_drives_are_never_asked():
    places = street(np.arange(100.0))

    assert choose_held_back(replace(places, drive=np.full(100, -1))) is None


def test_a_street_driven_both_ways_was_not_seen_twice():
    places = street(np.arange(0, 500, 5.0), np.arange(500, 0, -5.0))
    both_ways = replace(places, heading_deg=np.where(places.drive == 0, 0.0, 180.0))
    held_back = choose_held_back(both_ways)

    assert held_back is not None
    assert held_back.rule == "neighbours"


def test_where_streets_were_driven_twice_whole_drives_are_left_out():
    places = street(np.arange(0, 1000, 10.0), np.arange(3, 1000, 10.0))
    held_back = choose_held_back(places)

    assert held_back is not None
    assert (held_back.rule, held_back.with_answer.all()) == ("drives", True)
    for number, row in enumerate(held_back.asked.tolist()):
        assert np.array_equal(held_back.left_out(places, number, np.arange(200)), places.drive == places.drive[row])


def test_where_they_were_driven_once_the_neighbours_in_the_drive_are():
    """Photos 5 m apart: itself and one on either side are within 7.5 m."""
    places = street(np.arange(0, 500, 5.0))
    held_back = choose_held_back(places)

    assert held_back is not None
    assert held_back.rule == "neighbours"
    everyone = np.arange(100)
    assert {int(held_back.left_out(places, number, everyone).sum()) for number in range(10, 40)} == {3}
    for number, row in enumerate(held_back.asked.tolist()):  # of some photos, as of all of them
        some = np.array([row - 1, 3, row, 50]) % 100
        assert np.array_equal(held_back.left_out(places, number, some), held_back.left_out(places, number, everyone)[some])


def test_a_map_without_any_place_twice_holds_nothing_back():
    assert choose_held_back(street(np.arange(0, 9000, 90.0))) is None


def test_some_places_that_the_rest_lacks_are_asked_too_but_never_more_than_a_quarter():
    places = street(np.arange(0, 1000, 10.0), np.concatenate([np.arange(3, 1000, 10.0), np.arange(5000, 9000, 90.0)]))
    held_back = choose_held_back(places)

    assert held_back is not None
    assert 0 < (~held_back.with_answer).sum() <= held_back.with_answer.sum() / 4
    far = places.lat_deg[held_back.asked[~held_back.with_answer]]
    assert (far > 55 + (4000 + RADIUS_M) * METRE).all()


@given(seed=st.integers(0, 100), cuts=st.lists(st.integers(0, 40), max_size=4), kept=st.integers(1, 12))
def test_the_best_of_blocks_are_the_best_of_all_however_they_are_cut(seed: int, cuts: list[int], kept: int):
    random = np.random.default_rng(seed)
    queries, rows = random.integers(-2, 3, (3, 4)).astype(np.float32), random.integers(-2, 3, (40, 4)).astype(np.float32)
    skip = random.random((3, 40)) < 0.3
    best = BestOf(queries, kept)
    bounds = sorted({0, *cuts, 40})
    for start, stop in pairwise(bounds):
        best.add(rows[start:stop], np.arange(start, stop), skip[:, start:stop])

    for query, left_out, (cosines, found) in zip(queries, skip, best, strict=True):
        scores = rows @ query
        expected = sorted((row for row in range(40) if not left_out[row]), key=lambda row: (-scores[row], row))[:kept]
        assert found.tolist() == expected
        assert cosines.tolist() == scores[expected].tolist()


def questions(seed: int, count: int = 120) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Half stand out by 0.3 over noise; of the others the right one is among the first few."""
    random = np.random.default_rng(seed)
    cosines, right = [], []
    for number in range(count):
        row = random.normal(0.3, 0.03, 100)
        place = int(random.integers(100))
        row[place] = row.max() + (0.3 if number % 2 else random.normal(0, 0.03))
        order = np.argsort(-row)
        cosines.append(row[order])
        right.append(order == place)
    return cosines, right


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_candidate_is_enough_where_held_back_photos_show_that_its_lead_is_never_wrong(seed: int):
    cosines, right = questions(seed)

    pool = fit_early_exit(cosines, right, PoolConfig())

    alone = [hits for row, hits in zip(cosines, right, strict=True) if pool_size(row, pool) == 1]
    assert len(alone) >= LEAST_ASKED
    assert all(hits[0] for hits in alone)


def test_a_lead_that_is_often_wrong_ends_nothing():
    """Every second photo that stands out is another place."""
    cosines, right = questions(4)
    wrong = [np.roll(hits, 1) if number % 4 == 1 else hits for number, hits in enumerate(right)]

    pool = fit_early_exit(cosines, wrong, PoolConfig())

    assert all(pool_size(row, pool) > 1 for row in cosines)


def local_scores(right: list[np.ndarray], seed: int, lift: float) -> list[np.ndarray]:
    """Local features that tell right candidates from others by `lift`, in the noise of 0.1."""
    rng = np.random.default_rng([seed, 1])
    return [rng.normal(0.1, 0.1, len(hits)) + lift * hits for hits in right]


@pytest.mark.parametrize("seed", range(10))
def test_a_weight_that_wins_by_chance_alone_is_not_taken(seed: int):
    """Local scores that say nothing, little enough of them to change an order now and then."""
    cosines, right = questions(seed)
    config = RerankConfig(local_weight=0.05)
    noise = [scores * 0.02 for scores in local_scores(right, seed, lift=0)]

    assert fit_weight(cosines, noise, right, config) == 0.05


def test_a_weight_that_surely_wins_is_taken():
    """Without any weight where local features mislead, with more where they tell what cosines do not."""
    cosines, right = questions(1)

    assert fit_weight(cosines, local_scores(right, 1, lift=-1), right, RerankConfig()) == 0
    assert fit_weight(cosines, local_scores(right, 1, lift=2), right, RerankConfig(local_weight=0.0)) > 0


@pytest.mark.parametrize("seed", range(5))
def test_matching_ends_sooner_and_loses_nobody_held_back(seed: int):
    """Half of the photos stand out by their local features among the first twenty; of the others none does."""
    cosines, right = questions(seed)
    local = local_scores(right, seed, lift=0.5)

    fitted = replace(RerankConfig(), enough=fit_enough(cosines, local, right, RerankConfig()))
    sizes = [matched_size(scores, row, fitted) for scores, row in zip(local, cosines, strict=True)]

    def firsts(pools: list[np.ndarray]) -> int:
        orders = [best_first(fused_scores(fitted, row, scores), fitted) for row, scores in zip(cosines, pools, strict=True)]
        return sum(int(hits[order[0]]) for order, hits in zip(orders, right, strict=True))

    assert firsts([scores[:size] for scores, size in zip(local, sizes, strict=True)]) >= firsts(local)
    assert np.mean(sizes) < 100


def test_matching_goes_on_to_the_end_where_ending_it_would_lose_someone():
    """The first twenty hold one that leads by far, and the right candidate is the last of a hundred."""
    cosines = [np.sort(np.random.default_rng(seed).normal(0.3, 0.03, 100))[::-1].copy() for seed in range(40)]
    right = [np.arange(100) == 99 for _ in range(40)]
    local = [0.3 * (np.arange(100) == 3) + 0.9 * hits for hits in right]

    enough = fit_enough(cosines, local, right, RerankConfig())

    assert matched_size(local[0], cosines[0], RerankConfig()) == 20
    assert enough > ENOUGH[-1]
    assert matched_size(local[0], cosines[0], replace(RerankConfig(), enough=enough)) == 100
