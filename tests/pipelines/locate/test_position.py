"""Where a photo was taken, from candidates whose distances are set by hand, anywhere on Earth."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pipelines.locate.decide import locate
from pipelines.locate.position import WGS84, Location, PositionConfig, Vote, distances_m

CONFIG = PositionConfig()
LUND = (55.7, 13.19)
ANYWHERE = [LUND, (-33.9, 151.2), (0.0, 0.001), (-16.5, 180.0), (-16.5, -179.99999), (89.9999, 40.0), (-90.0, 0.0), (90.0, 0.0)]
"""Lund; the southern hemisphere; the equator; both sides of the antimeridian; near a pole, and both poles."""


def vote(origin: tuple[float, float], east_m: float, north_m: float, score: float = 1.0, matches: int = 30) -> Vote:
    """A candidate so many metres east and north of a place."""
    azimuth = np.degrees(np.arctan2(east_m, north_m))
    lon, lat, _ = WGS84.fwd(origin[1], origin[0], azimuth, np.hypot(east_m, north_m))
    return Vote(lat_deg=float(lat), lon_deg=float(lon), score=score, matches=matches)


def off_by_m(location: Location, origin: tuple[float, float], east_m: float, north_m: float) -> float:
    """How far an answer is from a place so many metres east and north of another."""
    expected = vote(origin, east_m, north_m)
    assert location.lat_deg is not None
    assert location.lon_deg is not None
    columns = (location.lat_deg, location.lon_deg, expected.lat_deg, expected.lon_deg)
    return float(distances_m(*(np.array([value]) for value in columns))[0])


@pytest.mark.parametrize("origin", ANYWHERE)
def test_two_candidates_that_agree_outweigh_a_distant_one_and_the_answer_lies_between_them(origin: tuple[float, float]):
    votes = [vote(origin, 0, 0), vote(origin, 10, 0), vote(origin, 5000, 0)]

    location = locate(votes, CONFIG)

    assert location.reason is None
    assert location.support == pytest.approx(2 / 3)
    assert off_by_m(location, origin, 5, 0) < 0.01
    assert -180 <= location.lon_deg <= 180
    # The two spread by 5 m about their middle, the map's photos by 5 m in each direction: sqrt(25 + 50) = 8.66 m.
    assert location.expected_error_m == pytest.approx(1.52 * 75**0.5 / (2 / 3), rel=1e-3)


@pytest.mark.parametrize("origin", ANYWHERE)
def test_one_candidate_alone_gives_its_own_position(origin: tuple[float, float]):
    location = locate([vote(origin, 0, 0)], CONFIG)

    assert off_by_m(location, origin, 0, 0) < 1e-3
    assert location.support == 1
    assert location.expected_error_m == pytest.approx(1.52 * 50**0.5)


def test_two_agreeing_candidates_across_the_antimeridian_do_not_average_to_greenwich():
    east, west = (
        Vote(lat_deg=-16.5, lon_deg=179.99995, score=1.0, matches=30),
        Vote(lat_deg=-16.5, lon_deg=-179.99995, score=1.0, matches=30),
    )

    location = locate([east, west], CONFIG)

    assert location.lat_deg == pytest.approx(-16.5, abs=1e-6)
    assert abs(location.lon_deg) == pytest.approx(180, abs=1e-6)


def test_a_better_candidate_pulls_the_answer_to_itself():
    """Half the score weighs a sixteenth at sharpness 4: the mean of 0 m (16 parts) and 17 m (1 part) is 1 m."""
    votes = [vote(LUND, 0, 0, score=0.8), vote(LUND, 0, 17, score=0.4)]

    location = locate(votes, replace(CONFIG, sharpness=4.0))

    assert off_by_m(location, LUND, 0, 1) < 0.01
    assert location.support == 1


def test_a_lower_group_wins_when_it_holds_more_of_the_evidence():
    """The best candidate stands alone; three at 0.95 of its score weigh 0.815 each at sharpness 4: 2.44 of 3.44 is 71 %."""
    votes = [vote(LUND, 0, 0), *(vote(LUND, 2000, north, score=0.95) for north in (0, 3, 6))]

    location = locate(votes, replace(CONFIG, sharpness=4.0))

    assert off_by_m(location, LUND, 2000, 3) < 0.1
    assert location.support == pytest.approx(3 * 0.95**4 / (1 + 3 * 0.95**4))


@pytest.mark.parametrize(("apart_m", "support"), [(24.9, 1.0), (25.1, 0.5)])
def test_candidates_agree_within_25_metres(apart_m: float, support: float):
    location = locate([vote(LUND, 0, 0), vote(LUND, apart_m, 0)], CONFIG)

    assert location.support == pytest.approx(support)


def test_only_the_first_voters_are_asked():
    votes = [vote(LUND, 0, 0), *(vote(LUND, 5000, 0) for _ in range(20))]

    assert locate(votes, replace(CONFIG, voters=1)).support == 1
    assert locate(votes, CONFIG).support == pytest.approx(0.9)  # nine of the ten asked stand 5 km away


def test_the_expected_error_grows_with_the_spread_and_with_doubt():
    errors = [locate([vote(LUND, 0, 0), vote(LUND, apart, 0)], CONFIG).expected_error_m for apart in (0, 5, 10, 20)]
    doubts = [
        locate([*(vote(LUND, 0, 0) for _ in range(agreeing)), vote(LUND, 900, 0)], CONFIG).expected_error_m
        for agreeing in (8, 4, 2)
    ]
    worse_gps = locate([vote(LUND, 0, 0)], replace(CONFIG, gps_error_m=10.0)).expected_error_m

    assert errors == sorted(set(errors))
    assert doubts == sorted(set(doubts))
    assert worse_gps == pytest.approx(2 * errors[0])


def disagreeing() -> list[Vote]:
    return [vote(LUND, 0, 0), vote(LUND, 5000, 0)]


@pytest.mark.parametrize(
    ("votes", "support", "reason"),
    [
        ([], 0.0, "no photo of the map has anything in common with it"),
        ([vote(LUND, 0, 0, score=0.0)], 0.0, "no photo of the map has anything in common with it"),
        (disagreeing(), 0.5, "candidates disagree: the largest group holds 50% of the evidence, 60% are needed"),
        ([vote(LUND, 0, 0, matches=3)], 1.0, "only 3 local features match, 4 are needed"),
    ],
)
def test_what_is_not_known_says_why_and_gives_no_position(votes: Sequence[Vote], support: float, reason: str):
    location = locate(votes, CONFIG)

    assert (location.lat_deg, location.lon_deg, location.expected_error_m) == (None, None, None)
    assert (location.support, location.probability, location.reason) == (support, None, reason)


def test_the_best_supported_place_is_told_also_where_it_is_not_given():
    location = locate(disagreeing(), CONFIG)

    assert location.lat_deg is None
    assert (location.best_lat_deg, location.best_lon_deg) == pytest.approx(LUND)
    assert location.best_error_m is not None


@pytest.mark.parametrize(("local_score", "known"), [(0.079, False), (0.08, True)])
def test_a_photo_that_matches_too_little_for_its_network_shows_another_place(local_score: float, known: bool):
    location = locate([replace(vote(LUND, 0, 0), local_score=local_score)], replace(CONFIG, min_local_score=0.08))

    assert (location.reason is None) == known
    assert known or "0.079 of 1, 0.08 is needed: it most likely shows another place" in str(location.reason)


def test_just_enough_matches_are_enough():
    assert locate([vote(LUND, 0, 0, matches=4)], CONFIG).reason is None


def test_a_negative_score_weighs_nothing():
    location = locate([vote(LUND, 0, 0), vote(LUND, 5000, 0, score=-0.9)], CONFIG)

    assert location.support == 1


def test_distances_are_in_metres_on_the_ellipsoid():
    """A degree of latitude: 110.574 km at the equator; of longitude 111.320 km there and half of it at 60 degrees north."""
    from_lat, from_lon, to_lat, to_lon = np.array(
        [(0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0), (60.0, 0.0, 60.0, 1.0), (0.0, 179.5, 0.0, -179.5)]
    ).T

    assert distances_m(from_lat, from_lon, to_lat, to_lon) == pytest.approx([110_574, 111_320, 55_800, 111_320], abs=3)
