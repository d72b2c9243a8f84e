"""results + truth ▶ metrics: recall@k and position errors, from what a results folder stores. Nothing is searched here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64

from fol_model.recall import recall_at
from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table, read_table_facts, write_table
from pipelines.locate.position import distances_m
from schemas.errors import CatalogError
from schemas.geotags import GeotagStatus
from schemas.metrics import METRICS

RECALL_AT = (1, 5, 10, 20)
PERCENTILES = (50, 75, 90, 95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """For every query, whether the candidate at each rank is a positive, in the two orders."""

    by_descriptor: Bool[np.ndarray, "queries ranks"]
    reranked: Bool[np.ndarray, "queries ranks"]


def run_evaluation(directory: str, *, radius_m: float, settings: Settings) -> pa.Table:
    """Score a results folder and write its metrics.parquet.

    Args:
        directory: what `geotag` wrote for photos whose positions are known.
        radius_m: a photo of the map this near to where the query was taken is a positive; the radius itself counts.
        settings: of this process.

    Returns:
        The metrics, in the schema of metrics.

    Raises:
        CatalogError: no query has a known position.
    """
    storage = open_storage(directory, settings)
    queries = read_table(storage, "queries.parquet", kind="images")
    results, facts = read_table_facts(storage, "results.parquet", kind="results")
    geotags = read_table(storage, "geotags.parquet", kind="geotags")
    known = queries.filter(pc.is_valid(queries["lat_deg"]))
    if not len(known):
        raise CatalogError(
            f"{directory}: none of {len(queries)} query photos has a known position, and an evaluation needs the truth. "
            "No metrics were written. Give photos with GPS, or a table with lat_deg and lon_deg."
        )
    rows = [*_recall_rows(known, results, radius_m), *_first_candidate_rows(known, results), *_error_rows(geotags)]
    metrics = pa.Table.from_pylist(rows, METRICS)
    write_table(storage, "metrics.parquet", metrics, kind="metrics", facts={**facts, "radius_m": radius_m})
    return metrics


def rank_positives(queries: pa.Table, results: pa.Table, radius_m: float) -> Ranked:
    """Mark which candidates are positives.

    Args:
        queries: photos with known positions, in the schema of images.
        results: their candidates, in the schema of results.
        radius_m: how near a candidate must be to where the query was taken.
    """
    row_of = {name: row for row, name in enumerate(queries["image_id"].to_pylist())}
    ours = results.filter(pc.is_in(results["query_id"], queries["image_id"]))
    query = np.array([row_of[name] for name in ours["query_id"].to_pylist()], np.int64)
    lat_deg, lon_deg = (queries[name].to_numpy()[query] for name in ("lat_deg", "lon_deg"))
    near = distances_m(lat_deg, lon_deg, ours["lat_deg"].to_numpy(), ours["lon_deg"].to_numpy()) <= radius_m
    marked = {}
    for order in ("global_rank", "rank"):
        marked[order] = np.zeros((len(queries), max(RECALL_AT)), bool)
        rank = ours[order].to_numpy() - 1
        seen = rank < max(RECALL_AT)
        marked[order][query[seen], rank[seen]] = near[seen]
    return Ranked(by_descriptor=marked["global_rank"], reranked=marked["rank"])


def _recall_rows(queries: pa.Table, results: pa.Table, radius_m: float) -> Iterator[dict[str, Any]]:
    ranked = rank_positives(queries, results, radius_m)
    for stage, hits in (("global", ranked.by_descriptor), ("reranked", ranked.reranked)):
        for k, value in zip(RECALL_AT, recall_at(hits, RECALL_AT).tolist(), strict=True):
            yield metric_row("recall", stage, value, "fraction", len(queries), at=k)


def _first_candidate_rows(queries: pa.Table, results: pa.Table) -> Iterator[dict[str, Any]]:
    """How far the first candidate stands from where each query was taken: defined for every query, answered or not."""
    first = results.filter(pc.equal(results["rank"], 1)).select(["query_id", "lat_deg", "lon_deg"])
    truth = queries.select(["image_id", "lat_deg", "lon_deg"]).rename_columns(["query_id", "true_lat_deg", "true_lon_deg"])
    both = first.join(truth, keys="query_id", join_type="inner")
    lat_deg, lon_deg, true_lat_deg, true_lon_deg = (
        both[name].to_numpy() for name in ("lat_deg", "lon_deg", "true_lat_deg", "true_lon_deg")
    )
    errors = distances_m(lat_deg, lon_deg, true_lat_deg, true_lon_deg)
    for percentile in PERCENTILES:
        value = float(np.percentile(errors, percentile))
        yield metric_row("position_error", "reranked", value, "m", len(errors), at=percentile)


def _error_rows(geotags: pa.Table) -> Iterator[dict[str, Any]]:
    """Position errors of the answered photos whose position is known."""
    known = geotags.filter(pc.is_valid(geotags["known_lat_deg"]))
    answered = known.filter(pc.equal(known["status"], GeotagStatus.ANSWERED.value))
    yield metric_row("answered", "geotag", len(answered) / len(known), "fraction", len(known))
    if len(answered):
        errors = position_errors_m(answered)
        for percentile in PERCENTILES:
            yield metric_row(
                "position_error", "geotag", float(np.percentile(errors, percentile)), "m", len(answered), at=percentile
            )
        within = float((errors <= answered["expected_error_m"].to_numpy()).mean())
        yield metric_row("within_expected_error", "geotag", within, "fraction", len(answered))


def position_errors_m(answered: pa.Table) -> Float64[np.ndarray, " n"]:
    """Measure how far answered geotags are from the known positions, in metres."""
    lat_deg, lon_deg, known_lat_deg, known_lon_deg = (
        answered[name].to_numpy() for name in ("lat_deg", "lon_deg", "known_lat_deg", "known_lon_deg")
    )
    return distances_m(lat_deg, lon_deg, known_lat_deg, known_lon_deg)


def add_metrics(storage: Storage, rows: list[dict[str, Any]]) -> None:
    """Add numbers that another verb measured (speed, size) to a folder's metrics."""
    metrics, facts = read_table_facts(storage, "metrics.parquet", kind="metrics")
    plain = metrics.replace_schema_metadata(None)
    write_table(
        storage, "metrics.parquet", pa.concat_tables([plain, pa.Table.from_pylist(rows, METRICS)]), kind="metrics", facts=facts
    )


def metric_row(metric: str, stage: str, value: float, unit: str, queries: int, *, at: float | None = None) -> dict[str, Any]:
    """Make a row of metrics; `at` is the k of a recall or the percentile of an error."""
    return {
        "metric": metric,
        "stage": stage,
        "at": None if at is None else float(at),
        "value": value,
        "unit": unit,
        "queries": queries,
    }
