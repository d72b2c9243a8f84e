"""A probability means what it says on photos that the model has not seen, and a promise is kept."""

import numpy as np
import pytest

from pipelines.locate.confidence import probability
from pipelines.locate.decide import locate, needed_probability
from pipelines.locate.fitting import calibration_error, fit_confidence, reliability_groups, risk_coverage, thresholds_for
from pipelines.locate.position import PositionConfig, Vote
from schemas.calibration import SIGNALS, ConfidenceFit


def photos(seed: int, count: int) -> tuple[list[dict[str, float]], np.ndarray, np.ndarray]:
    """Signals of which two say something, whether each photo is right, and its drive."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, len(SIGNALS)))
    right = random.random(count) < 1 / (1 + np.exp(-(2.5 * values[:, 0] + 3 * values[:, 4] + 0.5)))
    return [dict(zip(SIGNALS, row.tolist(), strict=True)) for row in values], right, random.integers(0, 12, count)


def fit(seed: int, count: int) -> ConfidenceFit:
    fitted = fit_confidence(*photos(seed, count), error_factor=1.0)
    assert fitted is not None
    return fitted[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_promised_precision_is_kept_on_other_photos(seed: int):
    model = fit(seed, 800)
    signals, right, _ = photos(1000 + seed, 4000)
    judged = np.array([probability(model, one) for one in signals])

    for promise in (0.8, 0.9, 0.95):
        needed = needed_probability(model, promise)
        assert needed is not None
        answered = judged >= needed
        assert answered.mean() > 0.05
        assert right[answered].mean() >= promise - 0.02  # 800 photos tell it to about this


@pytest.mark.parametrize("seed", range(3))
def test_a_probability_is_the_share_of_right_answers(seed: int):
    model = fit(seed, 2000)
    signals, right, _ = photos(2000 + seed, 4000)
    judged = np.array([probability(model, one) for one in signals])

    assert calibration_error(reliability_groups(judged, right)) <= 0.03


def test_the_error_of_calibration_is_what_it_is_called():
    groups = reliability_groups(np.array([0.5] * 10), np.array([True] * 9 + [False]))

    assert sum(photos for _, _, photos in groups) == 10
    assert calibration_error([(0.5, 0.9, 10)]) == pytest.approx(0.4)
    assert calibration_error([(0.5, 0.9, 10), (0.2, 0.2, 30)]) == pytest.approx(0.1)


def test_too_few_photos_or_only_right_ones_fit_nothing():
    signals, right, drives = photos(0, 59)
    assert fit_confidence(signals, right, drives, error_factor=1.0) is None
    signals, right, drives = photos(0, 200)
    assert fit_confidence(signals, np.ones_like(right), drives, error_factor=1.0) is None
    assert fit_confidence(signals, right, np.zeros_like(drives), error_factor=1.0) is None


def test_few_photos_promise_less_than_many():
    judged = np.linspace(1, 0, 10)

    assert "0.80" in thresholds_for(judged, np.ones(10, bool))
    assert "0.95" not in thresholds_for(judged, np.ones(10, bool))
    assert "0.95" in thresholds_for(np.linspace(1, 0, 40), np.ones(40, bool))


def test_a_promise_is_kept_by_the_next_higher_one_that_was_proven_and_else_by_none():
    model = ConfidenceFit(weights={}, intercept=0.0, thresholds={"0.80": 0.6, "0.90": 0.7}, error_factor=1.0)

    assert needed_probability(model, 0.85) == 0.7
    assert needed_probability(model, 0.95) is None


def test_where_a_promise_was_not_proven_agreement_decides_and_the_probability_is_told():
    votes = [Vote(lat_deg=55.0, lon_deg=13.0, score=1.0, matches=30, local_score=0.5)]
    model = ConfidenceFit(weights={"support": 1.0}, intercept=0.0, thresholds={"0.80": 0.7}, error_factor=2.0)

    answer, plain = locate(votes, PositionConfig(), model), locate(votes, PositionConfig())

    assert (answer.lat_deg, answer.expected_error_m) == (plain.lat_deg, plain.expected_error_m)
    assert answer.probability == pytest.approx(0.7311, abs=1e-4)


def test_who_asks_for_more_than_was_proven_is_given_no_more_answers_than_who_asks_for_less():
    votes = [Vote(lat_deg=55.0, lon_deg=13.0, score=1.0, matches=30, local_score=0.5)]
    model = ConfidenceFit(weights={"support": 1.0}, intercept=0.0, thresholds={"0.50": 0.1, "0.80": 0.9}, error_factor=2.0)

    answer = locate(votes, PositionConfig(), model)

    assert answer.lat_deg is None
    assert answer.reason == "probability 0.73, and 0.90 is needed already for 80%, the most that the map has proven"


def test_coverage_rises_as_the_level_falls():
    levels, coverage, share = zip(*risk_coverage(np.linspace(0, 1, 40), np.arange(40) >= 10), strict=True)

    assert list(levels) == sorted(levels, reverse=True)
    assert list(coverage) == sorted(coverage)
    assert (coverage[-1], share[0], share[-1]) == (1, 1, 0.75)


def test_below_the_level_the_answer_is_that_we_do_not_know_and_the_probability_is_told():
    votes = [Vote(lat_deg=55.0, lon_deg=13.0, score=1.0, matches=30, local_score=0.5)]
    sure = ConfidenceFit(weights={"support": 5.0}, intercept=0.0, thresholds={"0.95": 0.9}, error_factor=2.0)
    unsure = ConfidenceFit(weights={"support": 1.0}, intercept=0.0, thresholds={"0.95": 0.9}, error_factor=2.0)

    answer, unknown, plain = (locate(votes, PositionConfig(), model) for model in (sure, unsure, None))

    assert (answer.lat_deg, answer.probability) == (pytest.approx(55), pytest.approx(0.9933, abs=1e-4))
    assert (unknown.lat_deg, unknown.probability) == (None, pytest.approx(0.7311, abs=1e-4))
    assert unknown.reason == "probability 0.73, and 0.90 is needed for answers of which 95% are right"
    assert plain.probability is None
    assert answer.expected_error_m == pytest.approx(2 * (plain.expected_error_m or 0))
    assert locate([], PositionConfig(), sure).probability == 0
