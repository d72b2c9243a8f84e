"""Paths through candidate places, on a plane of metres round Lund; small ones are checked against all paths there are."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.locate import path as module
from pipelines.locate.path import WINDOW, Lookalikes, Path, Reach, metres, pace_mps, probabilities, reachable_m

LAT_DEG, LON_DEG = 55.7, 13.19
M_LAT = 1 / 111_195  # degrees a metre on the sphere
M_LON = M_LAT / np.cos(np.radians(LAT_DEG))
LIMIT_MPS = 42.0

Place = tuple[float, float]
"""Metres to the north, and how likely."""


def a_path(photos: Sequence[Sequence[Place]], *, every_s: float = 10.0, sure: Sequence[int] = ()) -> Path:
    most = max(len(places) for places in photos)
    lat, prior = np.full((len(photos), most), LAT_DEG), np.zeros((len(photos), most))
    for row, places in enumerate(photos):
        for number, (north_m, chance) in enumerate(places):
            lat[row, number], prior[row, number] = LAT_DEG + north_m * M_LAT, chance
    return Path(
        seconds=1.7e9 + every_s * np.arange(len(photos)),
        lat_deg=lat,
        lon_deg=np.full(lat.shape, LON_DEG),
        prior=prior,
        match=np.arange(prior.size).reshape(prior.shape),
        sure=np.isin(np.arange(len(photos)), sure),
        track=np.full((len(photos), 3), np.nan),
    )


def large_map() -> Reach:
    """Two thousand photos, 100 m apart."""
    return Reach(LAT_DEG + 100 * M_LAT * np.arange(-1000, 1000), np.full(2000, LON_DEG))


def far_lookalikes(share_near: float = 0.0) -> Lookalikes:
    """Two hundred sure photos, whose next best places are 5 km off, but for a share of them, which are 30 m off."""
    near = round(200 * share_near)
    photos = [[(0.0, 0.9), (30.0 if number < near else 5000.0, 0.05)] for number in range(200)]
    return Lookalikes([a_path(photos, sure=range(200))])


def chances(path: Path, lookalikes: Lookalikes | None = None) -> np.ndarray:
    return probabilities(path, large_map(), lookalikes or far_lookalikes(), max_speed_mps=LIMIT_MPS)


def test_a_photo_alone_is_as_likely_as_it_was():
    assert chances(a_path([[(0, 0.7), (900, 0.1)]])) == pytest.approx(np.array([[0.7, 0.1]]))


def test_a_place_that_fits_the_photos_around_it_is_more_likely_than_alone_and_one_that_does_not_is_less():
    fits = chances(a_path([[(0, 0.9)], [(10, 0.6)], [(20, 0.9)]]))[1, 0]
    stands_apart = chances(a_path([[(0, 0.9)], [(60_000, 0.6)], [(20, 0.9)]]))[1, 0]

    assert fits > 0.95
    assert stands_apart < 1e-3


def test_a_jump_of_100_km_in_a_minute_leaves_neither_photo_likely():
    """Both alone at 19 to 1: one is wrong and nobody knows which, 19 / (1 + 19 + 19)."""
    jump = chances(a_path([[(0, 0.95)], [(100_000, 0.95)]], every_s=60))

    assert jump[:, 0] == pytest.approx([19 / 39, 19 / 39], rel=1e-3)


def test_the_path_chooses_among_the_places_of_a_photo():
    middle = chances(a_path([[(0, 0.95)], [(50_000, 0.3), (10, 0.3)], [(20, 0.95)]]))[1]

    assert middle[1] > 0.7
    assert middle[0] < 0.01


def test_photos_that_say_nothing_in_between_do_not_break_a_path():
    """As many as the window passes over, and one more."""
    nothing = [[(0.0, 0.0)]]
    near = chances(a_path([[(0, 0.9)], *nothing * (WINDOW - 1), [(10, 0.6)]]))
    far = chances(a_path([[(0, 0.9)], *nothing * WINDOW, [(10, 0.6)]]))

    assert near[-1, 0] > 0.8
    assert far[-1, 0] == pytest.approx(0.6)


@pytest.mark.parametrize(("share", "most"), [(0.1, 0.95), (0.5, 0.75), (1.0, 0.61)])
def test_where_wrong_places_fit_too_a_path_proves_little(share: float, most: float):
    """All odds may grow by is 1 / the share of wrong places near the right ones; at 0.6 alone and a share of 1, nothing."""
    middle = chances(a_path([[(0, 0.99)], [(10, 0.6)], [(20, 0.99)]]), far_lookalikes(share))[1, 0]

    assert middle <= most
    assert middle >= 0.6 - 1e-9


def test_photos_of_one_moment_and_of_one_photo_of_the_map_prove_nothing_to_each_other():
    """They would be wrong together; that nobody is in two places at once still holds."""
    street = [[(0.0, 0.6)], [(10.0, 0.6)], [(20.0, 0.6)]]
    one_match = replace(a_path(street), match=np.zeros((3, 1), np.int64))

    assert chances(a_path(street, every_s=4))[:, 0].min() > 0.85
    assert chances(a_path(street, every_s=1))[1, 0] == pytest.approx(0.6)
    assert chances(one_match)[:, 0] == pytest.approx(np.full(3, 0.6))
    assert chances(a_path([[(0, 0.6)], [(90_000, 0.6)]], every_s=1))[:, 0].max() < 0.5


def test_few_sure_photos_prove_nothing():
    few = Lookalikes([a_path([[(0.0, 0.9), (5000.0, 0.05)]] * 19, sure=range(19))])

    assert chances(a_path([[(0, 0.9)], [(10, 0.6)], [(20, 0.9)]]), few)[1, 0] == pytest.approx(0.6)


def test_in_a_small_map_agreement_is_chance():
    """All photos of the map stand within reach of each other: a wrong place would have agreed as well."""
    path = a_path([[(0, 0.9)], [(10, 0.6)], [(20, 0.9)]])
    small = Reach(np.full(50, LAT_DEG), np.full(50, LON_DEG))

    assert probabilities(path, small, far_lookalikes(), max_speed_mps=LIMIT_MPS)[1, 0] == pytest.approx(0.6)


def test_a_pace_is_learnt_from_sure_photos_and_without_them_it_is_the_limit():
    walk = [[(10.0 * number, 0.9)] for number in range(20)]

    assert pace_mps(a_path(walk, every_s=8, sure=range(20)), LIMIT_MPS) == pytest.approx(2 * 10 / (8 + 2), rel=1e-3)
    assert pace_mps(a_path(walk, every_s=8, sure=range(4)), LIMIT_MPS) == LIMIT_MPS


def test_distances_are_those_of_a_sphere_also_over_the_date_line():
    assert metres(*np.array([0.0, 179.5, 0.0, -179.5])) == pytest.approx(111_195, rel=1e-3)
    assert metres(*np.array([-90.0, 12.0, 90.0, -50.0])) == pytest.approx(np.pi * 6_371_000)


paths = st.lists(
    st.lists(st.tuples(st.sampled_from([0.0, 30.0, 400.0, 9e4]), st.floats(0.0, 0.33)), min_size=1, max_size=2),
    min_size=1,
    max_size=WINDOW,
).map(lambda photos: a_path(photos, every_s=15))


@settings(max_examples=40, deadline=None)
@given(paths)
def test_it_is_the_sum_over_all_paths(path: Path):
    """Each photo at one of its places, or at none: what each such path weighs, added up one by one."""
    lookalikes = far_lookalikes(0.02)
    links = module._links(path, large_map(), lookalikes, LIMIT_MPS)
    photos, places = path.prior.shape
    total, at = 0.0, np.zeros(path.prior.shape)
    for states in product(range(places + 1), repeat=photos):  # the last one: at none of them
        weight = 1.0
        known = [row for row, state in enumerate(states) if state < places]
        for row, state in enumerate(states):
            weight *= path.prior[row, state] if state < places else 1 - path.prior[row].sum()
        for one, other in pairwise(known):
            weight *= np.exp(links[other - one - 1][one, states[one], states[other]])
        total += weight
        for row in known:
            at[row, states[row]] += weight
    alone = path.prior / (1 - path.prior)
    bound = alone / lookalikes.share(np.array(module.SLACK_M))

    found = probabilities(path, large_map(), lookalikes, max_speed_mps=LIMIT_MPS)

    assert found == pytest.approx(np.minimum(at / total, bound / (1 + bound)), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(paths)
def test_backwards_it_is_the_same(path: Path):
    turned = Path(
        seconds=-path.seconds[::-1],
        lat_deg=path.lat_deg[::-1],
        lon_deg=path.lon_deg[::-1],
        prior=path.prior[::-1],
        match=path.match[::-1],
        sure=path.sure[::-1],
        track=path.track,
    )

    assert chances(turned)[::-1] == pytest.approx(chances(path), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(paths)
def test_they_are_probabilities(path: Path):
    found = chances(path)

    assert ((found >= 0) & (found < 1)).all()
    assert (found.sum(axis=1) <= 1 + 1e-9).all()


def test_reach_grows_with_time_and_never_is_nothing():
    assert reachable_m(np.array([0.0, 60.0]), 2.0).tolist() == [54.0, 174.0]


def test_a_map_without_photos_is_all_within_reach():
    assert Reach(np.empty(0), np.empty(0)).share(np.zeros(2), np.zeros(2), np.ones(2)).tolist() == [1.0, 1.0]
