"""How likely an answer is right: from what the candidates say, by a logistic model that `fitting` fits to each map."""

from collections.abc import Mapping, Sequence
from math import exp, log, log1p
from typing import Final

from pipelines.locate.position import Group, Vote
from schemas.calibration import ConfidenceFit

LEAST: Final = 0.01
"""Added to scores before their logarithm is taken: twice nothing is nothing."""


def signals_of(votes: Sequence[Vote], group: Group) -> dict[str, float]:
    """Say what speaks for an answer.

    Returns:
        support: share of the weight that agrees; log_matches: of the best candidate; local_score: its S'_l; score: what it is
        ranked by; lead: by how much it beats the best that stands elsewhere; and the logarithms of these three, as twice the
        score says much where scores are small, and little where they are large.
    """
    best = votes[0]
    elsewhere = [vote.score for vote, agrees in zip(votes, group.agrees, strict=False) if not agrees]
    scores = {"local_score": best.local_score, "score": best.score, "lead": best.score - max([*elsewhere, 0.0])}
    logs = {f"log_{name}": log(max(score, 0.0) + LEAST) for name, score in scores.items()}
    return {"support": group.support, "log_matches": log1p(best.matches), **scores, **logs}


def probability(fit: ConfidenceFit, signals: Mapping[str, float]) -> float:
    """Compute how likely a position is within 25 m of the truth."""
    total = fit.intercept + sum(weight * signals[name] for name, weight in fit.weights.items())
    return 1 / (1 + exp(-min(max(total, -50.0), 50.0)))
