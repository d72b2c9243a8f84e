"""What was answered to each query photo, and how far off it was. One column a fact, one row a query.

`page` passes the tables of a results folder in; `map_plot` draws and `examples` chooses from what is made here.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64

from pipelines.locate.position import distances_m

BY_DESCRIPTOR: Final = "first by descriptor"
RERANKED: Final = "first after re-ranking"
GIVEN: Final = "position given"
"""Names of the error curves."""


class Verdict(StrEnum):
    """What an answer was worth."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "don't know"
    UNCHECKED = "not checked"  # answered, but nobody knows where the photo was taken


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """The answer to each query, in the order of the query photos. Positions are rows of lat_deg, lon_deg; NaN: not known."""

    query_id: list[str]
    uri: list[str]
    root: list[str]
    verdict: list[Verdict]
    truth: Float64[np.ndarray, "n 2"]
    position: Float64[np.ndarray, "n 2"]
    error_m: Float64[np.ndarray, " n"]
    expected_error_m: Float64[np.ndarray, " n"]
    matches: Float64[np.ndarray, " n"]
    """With the best candidate; NaN where nothing was re-ranked."""
    probability: Float64[np.ndarray, " n"]
    """That the best position, given or not, is right; NaN where the map is not calibrated."""
    best_error_m: Float64[np.ndarray, " n"]
    """How far off the best candidate is, answer or not."""
    reason: list[str | None]
    """Why there is no position, for a person."""

    def __len__(self) -> int:
        return len(self.query_id)

    def count(self, verdict: Verdict) -> int:
        """How many answers were worth this."""
        return self.verdict.count(verdict)


def gather_answers(queries: pa.Table, results: pa.Table, geotags: pa.Table | None, *, radius_m: float) -> Answers:
    """Bring together what the tables say of each query.

    Args:
        queries: in the schema of images; their positions are the truth.
        results: candidates of these queries.
        geotags: the positions that were given. None: the best candidate's position counts as the answer.
        radius_m: an answer is right up to this far from the truth.
    """
    best = _rows_of(results.filter(pc.equal(results["rank"], 1)), "query_id", queries["image_id"])
    given = best if geotags is None else _rows_of(geotags, "query_id", queries["image_id"])
    truth, position = positions(queries), positions(given)
    error_m = distance_m(truth, position)
    return Answers(
        query_id=queries["image_id"].to_pylist(),
        uri=queries["uri"].to_pylist(),
        root=queries["root"].to_pylist(),
        verdict=[_verdict(known, error, radius_m) for known, error in zip(is_known(position), error_m, strict=True)],
        truth=truth,
        position=position,
        error_m=error_m,
        expected_error_m=np.full(len(queries), np.nan) if geotags is None else _floats(given["expected_error_m"]),
        matches=_floats(best["matches"]),
        probability=_probabilities(given),
        best_error_m=distance_m(truth, positions(best)),
        reason=[None] * len(queries) if geotags is None else given["reason"].to_pylist(),
    )


def error_curves(
    queries: pa.Table, results: pa.Table, answers: Answers, *, given_as: str
) -> dict[str, Float64[np.ndarray, " e"]]:
    """The errors of each stage in metres, ascending, of the queries whose true position is known.

    A query without an answer has no error: its curve ends below the others. A stage is left out where results do not hold
    its first candidate for every query they answer.

    Args:
        queries: in the schema of images.
        results: candidates of these queries.
        answers: what was made of them.
        given_as: name of the curve of `answers`, the last one.
    """
    curves = {}
    searched = pc.count_distinct(results["query_id"]).as_py()
    for name, column in ((BY_DESCRIPTOR, "global_rank"), (RERANKED, "rank")):
        first = results.filter(pc.equal(results[column], 1))
        if len(first) == searched:
            found = positions(_rows_of(first, "query_id", queries["image_id"]))
            curves[name] = _known_sorted(distance_m(answers.truth, found))
    return {**curves, given_as: _known_sorted(answers.error_m)}


def distance_m(a: Float64[np.ndarray, "n 2"], b: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Measure between rows of lat_deg, lon_deg. NaN where either is not known."""
    metres = np.full(len(a), np.nan)
    known = is_known(a) & is_known(b)
    metres[known] = distances_m(*a[known].T, *b[known].T)
    return metres


def is_known(positions: Float64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Which rows have both coordinates."""
    known: Bool[np.ndarray, " n"] = np.isfinite(positions).all(axis=1)
    return known


def positions(table: pa.Table) -> Float64[np.ndarray, "n 2"]:
    """Rows of lat_deg, lon_deg of a table that has these columns; null becomes NaN."""
    return np.stack([_floats(table["lat_deg"]), _floats(table["lon_deg"])], axis=1)


def _probabilities(given: pa.Table) -> Float64[np.ndarray, " n"]:
    """Geotags of format 1 and results have none."""
    return _floats(given["probability"]) if "probability" in given.column_names else np.full(len(given), np.nan)


def _verdict(answered: bool, error_m: float, radius_m: float) -> Verdict:
    if not answered:
        return Verdict.UNKNOWN
    if np.isnan(error_m):
        return Verdict.UNCHECKED
    return Verdict.RIGHT if error_m <= radius_m else Verdict.WRONG


def _rows_of(table: pa.Table, key: str, wanted: pa.ChunkedArray) -> pa.Table:
    """The row of each wanted key, in that order; a row of nulls where there is none."""
    return table.take(pc.index_in(wanted, value_set=table[key].combine_chunks()))


def _floats(column: pa.ChunkedArray) -> Float64[np.ndarray, " n"]:
    values: Float64[np.ndarray, " n"] = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _known_sorted(metres: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " e"]:
    return np.sort(metres[np.isfinite(metres)])
