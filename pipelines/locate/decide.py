"""Decide on a position or on "don't know": by a probability where the map has proven the promise, else by agreement alone."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from fol_model.config import PoolConfig
from pipelines.locate.confidence import probability, signals_of
from pipelines.locate.position import Group, Location, PositionConfig, Vote, best_group
from schemas.calibration import ConfidenceFit, PoolFit


def locate(votes: Sequence[Vote], config: PositionConfig, confidence: ConfidenceFit | None = None) -> Location:
    """Decide on a position.

    Args:
        votes: the re-ranked candidates, best first; may be empty.
        config: what counts as agreement, and how much is needed.
        confidence: the map's own model; None: the map is not calibrated. A precision that it has not proven is not promised: the
            candidates' agreement decides then, and the probability is told beside it.
    """
    group = best_group(votes, config)
    if group is None:
        return Location(
            lat_deg=None,
            lon_deg=None,
            expected_error_m=None,
            support=0.0,
            probability=None if confidence is None else 0.0,
            reason="no photo of the map has anything in common with it",
        )
    likely = None if confidence is None else probability(confidence, signals_of(votes, group))
    needed = None if confidence is None else needed_probability(confidence, config.precision)
    if confidence is None or likely is None or needed is None:
        return _by_agreement(votes, group, config, likely)
    reason = None
    if likely < needed:
        reason = f"probability {likely:.2f}, and {needed:.2f} is needed for answers of which {config.precision:.0%} are right"
    return _decided(group, likely, reason, factor=confidence.error_factor)


def fitted_pool(base: PoolConfig, fit: PoolFit | None) -> PoolConfig:
    """Put fitted values in the place of the defaults."""
    return base if fit is None else replace(base, **msgspec.structs.asdict(fit))


def needed_probability(confidence: ConfidenceFit, precision: float) -> float | None:
    """Look up the least probability that keeps a promise; None: the photos held back could not prove it."""
    return min((level for promise, level in confidence.thresholds.items() if float(promise) >= precision), default=None)


def _by_agreement(votes: Sequence[Vote], group: Group, config: PositionConfig, likely: float | None) -> Location:
    reason = None
    if group.support < config.min_support:
        needed = f"{config.min_support:.0%} are needed"
        reason = f"candidates disagree: the largest group holds {group.support:.0%} of the evidence, {needed}"
    elif votes[0].matches < config.min_matches:
        reason = f"only {votes[0].matches} local features match, {config.min_matches} are needed"
    return _decided(group, likely, reason, factor=1.0)


def _decided(group: Group, likely: float | None, reason: str | None, *, factor: float) -> Location:
    """The place of a group, given when there is no reason against it."""
    error_m = group.radius_m * factor
    return Location(
        lat_deg=None if reason else group.lat_deg,
        lon_deg=None if reason else group.lon_deg,
        expected_error_m=None if reason else error_m,
        support=group.support,
        probability=likely,
        reason=reason,
        best_lat_deg=group.lat_deg,
        best_lon_deg=group.lon_deg,
        best_error_m=error_m,
    )
