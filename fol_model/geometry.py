"""Which matched patches lie as one plane seen from two places would put them: an optional check after matching.

An affine map from the query's patches to the candidate's is fitted to the pairs of each candidate by OpenCV's USAC; pairs that it
misses are dropped, so that only the others count. Measured in README.md: off by default. Needs the extra `geometry`.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, UInt8

from fol_model.matching import Matches

LEAST_PAIRS: Final = 5
"""An affine map passes through any three pairs; with fewer than two more there is nothing to check, and the pairs stay."""

TOLERANCE_PATCHES: Final = 1.5
"""How far from where the map puts it a patch may lie, in patches: a feature knows its place to half a patch on either side."""


def consistent(
    pairs: Matches, query: UInt8[np.ndarray, "n 2"], candidates: Sequence[UInt8[np.ndarray, "_ 2"]]
) -> Bool[np.ndarray, " p"]:
    """Mark the pairs that agree with the affine map which most pairs of their candidate agree with.

    The same pairs give the same marks: the fit draws from a seeded generator.

    Args:
        pairs: of some candidates.
        query: row and column of each of the query's features.
        candidates: the same of each candidate.

    Raises:
        ModuleNotFoundError: OpenCV is not installed.
    """
    cv2: Any = importlib.import_module("cv2")
    how = cv2.UsacParams()
    how.threshold, how.maxIterations, how.confidence = TOLERANCE_PATCHES, 500, 0.99
    how.sampler, how.score, how.loMethod = cv2.SAMPLING_UNIFORM, cv2.SCORE_METHOD_MSAC, cv2.LOCAL_OPTIM_INNER_LO
    kept = np.ones(len(pairs.place), bool)
    ends = np.cumsum(pairs.counts)
    for start, end, patches in zip(ends - pairs.counts, ends, candidates, strict=True):
        if end - start < LEAST_PAIRS:
            continue
        here = query[pairs.query[start:end]].astype(np.float32)
        there = patches[pairs.candidate[start:end]].astype(np.float32)
        found, inliers = cv2.estimateAffine2D(here, there, how)
        kept[start:end] = inliers.ravel().astype(bool) if found is not None else False
    return kept
