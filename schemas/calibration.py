"""What was fitted to a map by holding back some of its own photos. Part of the manifest, with the evidence it rests on."""

from typing import Any, Final, Literal

import msgspec

SIGNALS: Final = ("support", "log_matches", "local_score", "score", "lead", "log_local_score", "log_score", "log_lead")
"""What a probability is made of; see `pipelines.locate.confidence`."""


class PoolFit(msgspec.Struct, frozen=True, kw_only=True):
    """How many candidates are matched: fields of `fol_model.config.PoolConfig` and `RerankConfig`."""

    sure_gap: float
    sure_sigmas: float
    enough: float


class ConfidenceFit(msgspec.Struct, frozen=True, kw_only=True):
    """A logistic model: p = 1 / (1 + exp(-(intercept + sum weight * signal)))."""

    weights: dict[str, float]
    """By signal."""
    intercept: float
    thresholds: dict[str, float]
    """Promised precision, as text with two decimals -> the least probability of an answer that keeps it. A precision that the
    held-back photos could not prove is not there."""
    error_factor: float
    """What expected errors are multiplied by, so that nine of ten right answers lie within."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the held-back photos showed. Shares are of 0 to 1."""

    held_back: Literal["drives", "neighbours"]
    """For each photo asked for, what was left out of the map: its whole drive, or its neighbours in it."""
    queries: int
    with_answer: int
    """Of which another photo of the map shows the place."""
    mean_pool: float
    """Candidates matched, of at most `fixed_pool`."""
    fixed_pool: int
    pool_recall: float
    """Share of the queries with a right candidate in the pool ..."""
    fixed_recall: float
    """... and among the first `fixed_pool`."""
    right: int
    """Best positions within 25 m."""
    first_by_descriptor: float
    """Share of the queries whose best candidate is right by the descriptor alone ..."""
    first_reranked: float
    """... and after re-ranking the pool with the fitted weight."""
    calibration_error: float | None
    """Mean difference of probability and share of right answers over ten groups of equal size; of photos left out of the fit."""
    reliability: list[tuple[float, float, int]]
    """Those groups: mean probability, share of right ones, photos."""
    risk_coverage: list[tuple[float, float, float]]
    """Least probability, share of photos answered, share of right answers among them."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    photos: int
    """Of the map when it was fitted."""
    pool: PoolFit | None
    """None: not fitted."""
    distinct_weight: float | None
    """`fol_model.config.RerankConfig.local_weight` that ranks most held-back photos right; None: too few photos."""
    confidence: ConfidenceFit | None
    evidence: Evidence


def decode_calibration(stored: dict[str, Any] | None) -> Calibration | None:
    """Read what a manifest holds; None also for one of another kind, without which a map is as good as not calibrated."""
    try:
        return None if stored is None else msgspec.convert(stored, Calibration)
    except msgspec.ValidationError:
        return None


def encode_calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    """Make plain values for a manifest."""
    return None if calibration is None else dict(msgspec.to_builtins(calibration))
