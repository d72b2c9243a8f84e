"""How many candidates are looked at: the properties the formulas must have, and four cases worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64

from fol_model.config import PoolConfig
from fol_model.scheduling import background, pool_size

Cosines = Float64[np.ndarray, " K"]

DEFAULTS = PoolConfig()


@st.composite
def rankings(draw: st.DrawFn) -> Cosines:
    """Cosines of up to 250 candidates, sorted, on a grid so that ties are common."""
    steps = draw(st.lists(st.integers(-40, 40), min_size=1, max_size=250))
    return np.sort(np.array(steps, np.float64))[::-1] / 40


def test_a_clear_winner_is_looked_at_alone():
    """0.9 against 0.3 and less: a gap of 0.6, and far more than six deviations of a background spread over 0.02."""
    cosines = np.concatenate([[0.9], np.linspace(0.3, 0.28, 99)])

    assert pool_size(cosines, DEFAULTS) == 1


def test_eight_close_candidates_are_all_looked_at():
    """Eight from 0.80 to 0.73; delta reaches down to 0.65, and the others start at 0.4."""
    cosines = np.concatenate([np.linspace(0.80, 0.73, 8), np.linspace(0.40, 0.30, 92)])

    assert pool_size(cosines, DEFAULTS) == 8


def test_an_unstructured_ranking_is_cut_at_delta():
    """Steps of 0.0044: 34 of them fit into delta 0.15, so 35 candidates; the background plus two sigma lies lower."""
    assert pool_size(0.9 - 0.0044 * np.arange(100), DEFAULTS) == 35


def test_all_equal_scores_are_all_looked_at():
    assert pool_size(np.full(100, 0.5), DEFAULTS) == 100
    assert pool_size(np.full(300, 0.5), DEFAULTS) == 100
    assert pool_size(np.full(7, 0.5), DEFAULTS) == 7


def test_at_least_the_least_pool_is_looked_at_where_the_winner_is_not_sure():
    """A lead of 0.14 is less than the 0.15 of a sure winner, and nobody else is within delta but the second."""
    cosines = np.concatenate([[0.9, 0.76], np.linspace(0.3, 0.28, 98)])

    assert pool_size(cosines, DEFAULTS) == 5


def test_the_background_is_the_lower_half_of_those_considered():
    """Of four considered candidates the last two, 0.4 and 0.2: mean 0.3, deviation 0.1. The fifth is not considered."""
    mu, sigma = background(np.array([0.9, 0.8, 0.4, 0.2, -1.0]), max_size=4)

    assert (mu, sigma) == pytest.approx((0.3, 0.1))


@given(rankings())
def test_the_pool_is_a_prefix_that_is_never_empty_and_never_too_long(cosines: Cosines):
    size = pool_size(cosines, DEFAULTS)

    assert 1 <= size <= min(len(cosines), DEFAULTS.max_size)
    assert size == 1 or size >= min(DEFAULTS.min_size, len(cosines))


@given(rankings(), st.floats(0, 0.5), st.floats(0, 0.5))
def test_the_pool_grows_with_delta(cosines: Cosines, one: float, other: float):
    small, large = (pool_size(cosines, replace(DEFAULTS, delta=delta)) for delta in sorted([one, other]))

    assert small <= large


@given(rankings(), st.floats(-2, 6), st.floats(-2, 6))
def test_the_pool_shrinks_with_the_number_of_sigmas(cosines: Cosines, one: float, other: float):
    large, small = (pool_size(cosines, replace(DEFAULTS, sigmas=sigmas)) for sigmas in sorted([one, other]))

    assert small <= large


@given(st.floats(-1, 1), st.integers(1, 250))
def test_equal_scores_give_the_largest_pool(cosine: float, count: int):
    assert pool_size(np.full(count, cosine), DEFAULTS) == min(count, DEFAULTS.max_size)


@given(rankings(), st.integers(1, 5), st.integers(0, 2**32))
def test_the_pool_does_not_depend_on_how_candidates_were_sharded(cosines: Cosines, shards: int, seed: int):
    """Each shard offers its own best K_max; merged and sorted they give the same pool as one big shard."""
    shard_of = np.random.default_rng(seed).integers(0, shards, len(cosines))
    offers = [cosines[shard_of == shard][: DEFAULTS.max_size] for shard in range(shards)]
    merged = np.sort(np.concatenate(offers))[::-1]

    assert pool_size(merged, DEFAULTS) == pool_size(cosines, DEFAULTS)


@given(rankings())
def test_candidates_beyond_the_largest_pool_change_nothing(cosines: Cosines):
    assert pool_size(cosines, DEFAULTS) == pool_size(cosines[: DEFAULTS.max_size], DEFAULTS)


def test_a_fixed_pool_has_its_size_or_what_there_is():
    fixed = replace(DEFAULTS, fixed_size=100)

    assert [pool_size(np.linspace(0.9, 0.1, count), fixed) for count in (0, 1, 99, 100, 250)] == [0, 1, 99, 100, 100]


def test_no_candidates_give_an_empty_pool():
    assert pool_size(np.empty(0), DEFAULTS) == 0


@pytest.mark.parametrize("cosines", [[0.1, 0.2], [np.nan, 0.1], [np.inf, 0.1]])
def test_unsorted_or_undefined_cosines_are_refused(cosines: list[float]):
    with pytest.raises(ValueError, match="finite and sorted"):
        pool_size(np.array(cosines), DEFAULTS)
