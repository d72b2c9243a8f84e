"""Decide on a position or on "don't know": by a probability where the map has proven the promise, else by agreement alone."""

from collections.abc import Sequence
from dataclasses import replace

from fol_model.config import RerankConfig
from pipelines.locate.confidence import probability, signals_of
from pipelines.locate.position import Group, Location, PositionConfig, Vote, best_group
from schemas.calibration import Calibration, ConfidenceFit


def locate(votes: Sequence[Vote], config: PositionConfig, confidence: ConfidenceFit | None = None) -> Location:
    """Decide on a position.

    Args:
        votes: the re-ranked candidates, best first; may be empty.
        config: what counts as agreement, and how much is needed.
        confidence: the map's own model; None: the map is not calibrated. A precision that it has not proven is not promised: the
            candidates must agree then, and be as likely as the highest precision it has proven needs.
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
        reason = _disagreement(votes, group, config) or _below_the_proven(likely, confidence)
        return place_of(group, likely, reason, factor=1.0)
    reason = None
    if likely < needed:
        reason = f"probability {likely:.2f}, and {needed:.2f} is needed for answers of which {config.precision:.0%} are right"
    return place_of(group, likely, reason, factor=confidence.error_factor)


def fitted_reranking(base: RerankConfig, fit: Calibration) -> RerankConfig:
    """Put what was fitted to a map in the place of the defaults."""
    fitted = base if fit.distinct_weight is None else replace(base, local_weight=fit.distinct_weight)
    if fit.pool is None:
        return fitted
    pool = replace(base.pool, sure_gap=fit.pool.sure_gap, sure_sigmas=fit.pool.sure_sigmas)
    return replace(fitted, pool=pool, enough=fit.pool.enough)


def needed_probability(confidence: ConfidenceFit, precision: float) -> float | None:
    """Look up the least probability that keeps a promise; None: the photos held back could not prove it."""
    return min((level for promise, level in confidence.thresholds.items() if float(promise) >= precision), default=None)


def strictest_promise(confidence: ConfidenceFit) -> tuple[float, float] | None:
    """Look up the highest precision that the photos held back could prove, and the least probability that keeps it."""
    return max(((float(promise), level) for promise, level in confidence.thresholds.items()), default=None)


def place_of(group: Group, likely: float | None, reason: str | None, *, factor: float) -> Location:
    """Make the place of a group a location: given when there is no reason against it.

    Args:
        group: the candidates that agree.
        likely: how likely it is right; None: the map is not calibrated.
        reason: against giving it.
        factor: of its radius.
    """
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


def _disagreement(votes: Sequence[Vote], group: Group, config: PositionConfig) -> str | None:
    if group.support < config.min_support:
        needed = f"{config.min_support:.0%} are needed"
        return f"candidates disagree: the largest group holds {group.support:.0%} of the evidence, {needed}"
    if votes[0].matches < config.min_matches:
        return f"only {votes[0].matches} local features match, {config.min_matches} are needed"
    if votes[0].local_score < config.min_local_score:
        found = f"its local features match by {votes[0].local_score:.3f} of 1, {config.min_local_score:g} is needed"
        return f"{found}: it most likely shows another place altogether"
    return None


def _below_the_proven(likely: float | None, confidence: ConfidenceFit | None) -> str | None:
    """Ask for what a lesser promise needs, so that who asks for more is never given more answers."""
    proven = None if confidence is None else strictest_promise(confidence)
    if proven is None or likely is None or likely >= proven[1]:
        return None
    return (
        f"probability {likely:.2f}, and {proven[1]:.2f} is needed already for {proven[0]:.0%}, the most that the map has proven"
    )
