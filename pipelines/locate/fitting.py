"""Fit a map's model of how likely an answer is right, and take its measure on photos that it has not seen.

Letters: n photos held back.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from schemas.calibration import SIGNALS, ConfidenceFit

PROMISES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Precisions that thresholds are looked for."""

LEAST_PHOTOS = 60
"""Fewer held-back photos fit nothing."""

LEAST_OF_A_KIND = 8
"""Likewise fewer right ones, or fewer wrong ones."""

SURENESS = 1.2816
"""Standard errors that a share of right answers is lowered by before it is promised: nine promises in ten are kept."""

STRENGTH = 3.0
"""Of the fit against keeping weights small; chosen, as the logarithms, on three made-up towns, where 10 does as well."""

FOLDS = 5
GROUPS = 10


def fit_confidence(
    signals: Sequence[Mapping[str, float]],
    right: Bool[np.ndarray, " n"],
    drives: Int64[np.ndarray, " n"],
    *,
    error_factor: float,
) -> tuple[ConfidenceFit, Float64[np.ndarray, " n"]] | None:
    """Fit a map's model.

    Args:
        signals: of each photo held back.
        right: whether its position was.
        drives: photos of one number never serve to judge one another.
        error_factor: see `ConfidenceFit`.

    Returns:
        The model, and for each photo the probability by a model that has seen no photo of its drive: what thresholds and
        calibration error are taken from. None: too few photos, or nearly all right or wrong.
    """
    enough = min(int(right.sum()), int((~right).sum())) >= LEAST_OF_A_KIND
    if len(right) < LEAST_PHOTOS or not enough or len(np.unique(drives)) < 2:
        return None
    values = np.array([[one[name] for name in SIGNALS] for one in signals])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH))
    folds = GroupKFold(min(FOLDS, len(np.unique(drives))))
    try:
        judged = cross_val_predict(model, values, right, groups=drives, cv=folds, method="predict_proba")[:, 1]
    except ValueError:  # all that is left for a fold is of one kind
        return None
    model.fit(values, right)
    scaler, logistic = model[0], model[1]
    weights = logistic.coef_[0] / scaler.scale_
    fit = ConfidenceFit(
        weights={name: _short(weight) for name, weight in zip(SIGNALS, weights, strict=True)},
        intercept=_short(float(logistic.intercept_[0] - (weights * scaler.mean_).sum())),
        thresholds=thresholds_for(judged, right),
        error_factor=_short(error_factor),
    )
    return fit, judged


def thresholds_for(judged: Float64[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """Find, for each promise, the least probability from which on enough answers are right.

    The share of right ones is taken at the lower end of its error (Wilson's score interval, one-sided, nine in ten), so that few
    photos promise less than many.
    """
    order = np.argsort(-judged, kind="stable")
    answered = np.arange(1, len(order) + 1)
    share = np.cumsum(right[order]) / answered
    spread = SURENESS * np.sqrt(share * (1 - share) / answered + SURENESS**2 / (4 * answered**2))
    least = (share + SURENESS**2 / (2 * answered) - spread) / (1 + SURENESS**2 / answered)
    found = {}
    for promise in PROMISES:
        kept = np.flatnonzero(least >= promise)
        if len(kept):
            found[f"{promise:.2f}"] = _short(float(judged[order][kept[-1]]))
    return found


def reliability_groups(judged: Float64[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> list[tuple[float, float, int]]:
    """Cut photos by probability into groups of equal size: mean probability, share of right ones, photos."""
    order = np.argsort(judged, kind="stable")
    parts = [part for part in np.array_split(order, min(GROUPS, len(order))) if len(part)]
    return [(_short(float(judged[part].mean())), _short(float(right[part].mean())), len(part)) for part in parts]


def calibration_error(groups: Sequence[tuple[float, float, int]]) -> float:
    """Average the difference of probability and share of right ones over photos."""
    return _short(sum(abs(mean - share) * photos for mean, share, photos in groups) / sum(photos for _, _, photos in groups))


def risk_coverage(judged: Float64[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> list[tuple[float, float, float]]:
    """Say at twenty levels: least probability, share answered, share of right ones among the answered."""
    order = np.argsort(-judged, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.unique(np.linspace(0, len(order) - 1, 21).astype(int)[1:])
    return [(_short(float(judged[order][i])), _short((i + 1) / len(order)), _short(float(share[i]))) for i in last.tolist()]


def _short(value: float) -> float:
    """Six digits: enough, and the same wherever it is computed."""
    return float(f"{value:.6g}")
