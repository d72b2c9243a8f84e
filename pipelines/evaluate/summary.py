"""What an evaluation found, in a few lines."""

from typing import Any

import msgspec
import pyarrow as pa

from pipelines.engine.model import untrained_note
from pipelines.evaluate.evaluate import PERCENTILES, RECALL_AT
from pipelines.geotag.geotag import GeotagSummary


class EvaluationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of `metrics.parquet` that people ask for first. `folio evaluate --json` prints it."""

    out: str
    radius_m: float
    queries: int
    recall_global: dict[int, float]
    recall_reranked: dict[int, float]
    answered: float
    """Share of the queries that got a position."""
    position_error_m: dict[int, float]
    """By percentile of the answered queries; empty when none was answered."""
    first_candidate_error_m: dict[int, float]
    """By percentile of all queries: how far the first candidate stands from where the query was taken."""
    within_expected_error: float | None
    photos_per_second: float
    recipe: str
    trained: bool

    @staticmethod
    def of(metrics: pa.Table, geotagged: GeotagSummary, *, radius_m: float) -> "EvaluationSummary":
        """Pick the numbers from a table of metrics."""
        values = {(row["metric"], row["stage"], row["at"]): row for row in metrics.to_pylist()}
        errors = {p: values.get(("position_error", "geotag", float(p))) for p in PERCENTILES}
        within = values.get(("within_expected_error", "geotag", None))
        return EvaluationSummary(
            out=geotagged.out,
            radius_m=radius_m,
            queries=values["recall", "global", 1.0]["queries"],
            recall_global={k: values["recall", "global", float(k)]["value"] for k in RECALL_AT},
            recall_reranked={k: values["recall", "reranked", float(k)]["value"] for k in RECALL_AT},
            answered=values["answered", "geotag", None]["value"],
            position_error_m={p: row["value"] for p, row in errors.items() if row},
            first_candidate_error_m={p: values["position_error", "reranked", float(p)]["value"] for p in PERCENTILES},
            within_expected_error=within["value"] if within else None,
            photos_per_second=geotagged.photos_per_second,
            recipe=geotagged.recipe,
            trained=geotagged.trained,
        )

    def lines(self) -> list[str]:
        """Say it to a person, as benchmark tables do: percentages with one decimal."""
        lines = [
            f"{self.queries} queries, radius {self.radius_m:g} m",
            f"global     {_recalls(self.recall_global)}",
            f"re-ranked  {_recalls(self.recall_reranked)}",
        ]
        lines.append(f"position error of the first candidate: {_errors(self.first_candidate_error_m)}")
        if self.position_error_m:
            lines.append(f"answered {self.answered:.1%}; position error of the answers: {_errors(self.position_error_m)}")
        else:
            lines.append("answered 0.0%: every photo is below the threshold")
        if self.within_expected_error is not None:
            lines.append(f"within the expected error: {self.within_expected_error:.1%} of the answers")
        speed = f"{self.photos_per_second:.1f} photos/s" if self.photos_per_second else "all were answered before"
        lines.append(f"{speed}; results and metrics in {self.out}")
        if not self.trained:
            lines.append(untrained_note(self.recipe))
        return lines


def _errors(errors: dict[int, float]) -> str:
    median = f"median {errors[50]:.1f} m"
    return ", ".join([median, *(f"{p} % below {error:.1f} m" for p, error in errors.items() if p != 50)])


def _recalls(recall: dict[int, Any]) -> str:
    return ", ".join(f"R@{k}: {value:.1%}".replace("%", "") for k, value in recall.items())
