"""From metrics to what the page says: a row of figures, the recall table, and every other number."""

from dataclasses import dataclass
from typing import Any, Final

from pipelines.report.wording import amount, metres, percent, size

Metric = dict[str, Any]
"""A row of the metrics table."""

STAGES: Final = {
    "global": "by descriptor alone",
    "reranked": "after re-ranking",
    "geotag": "position given",
    "build": "building the map",
    "query": "answering",
}
"""What the page calls a stage."""

HEADLINES: Final = (
    ("answered", None, "got a position"),
    ("position_error", 50.0, "median position error"),
    ("position_error", 90.0, "90th percentile error"),
    ("photos_per_second", None, "photos per second"),
    ("bytes_per_photo", None, "of map per photo"),
)
"""Metric, at, and what to call it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One figure of the row."""

    value: str
    label: str
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallRow:
    """One stage of the recall table."""

    stage: str
    cells: list[float | None]
    """Recall at each k; None where it was not measured."""


def headlines(metrics: list[Metric]) -> list[Headline]:
    """The figures a reader looks for first, of those that were measured: recall at the first three k, then `HEADLINES`."""
    figures = [_recall_headline(metrics, k) for k in recall_ks(metrics)[:3]]
    for name, at, label in HEADLINES:
        found = [row for row in metrics if (row["metric"], row["at"]) == (name, at)]
        figures += [Headline(value=_without_rate(row), label=label, note=stage_name(row["stage"])) for row in found]
    return figures


def recall_ks(metrics: list[Metric]) -> list[int]:
    """Each k that recall was measured at, ascending."""
    return sorted({int(row["at"]) for row in metrics if row["metric"] == "recall"})


def recall_rows(metrics: list[Metric]) -> list[RecallRow]:
    """The recall table, a row a stage in the order of the metrics, a cell for each of `recall_ks`."""
    recall = {(row["stage"], int(row["at"])): row["value"] for row in metrics if row["metric"] == "recall"}
    stages = list(dict.fromkeys(stage for stage, _ in recall))
    return [RecallRow(stage=stage_name(of), cells=[recall.get((of, k)) for k in recall_ks(metrics)]) for of in stages]


def stage_name(stage: str) -> str:
    """What the page calls a stage; a stage without a name of its own is called as it is."""
    return STAGES.get(stage, stage)


def say(metric: Metric) -> str:
    """The value with its unit, as a person says it."""
    value, unit = metric["value"], metric["unit"]
    if unit == "fraction":
        return percent(value)
    if unit == "m":
        return metres(value)
    if unit in ("bytes", "bytes/photo"):
        return size(value)
    return f"{amount(value)} {unit}"


def _recall_headline(metrics: list[Metric], k: int) -> Headline:
    """The last stage is what a user gets; the first beside it shows what re-ranking gained."""
    found = [row for row in metrics if row["metric"] == "recall" and row["at"] == k]
    note = f"{percent(found[0]['value'])} {stage_name(found[0]['stage'])}" if len(found) > 1 else stage_name(found[0]["stage"])
    return Headline(value=percent(found[-1]["value"]), label=f"recall@{k}", note=note)


def _without_rate(metric: Metric) -> str:
    """The value as `say` has it, without a unit that its label already says."""
    return amount(metric["value"]) if metric["unit"] == "photos/s" else say(metric)
