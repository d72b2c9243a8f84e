"""The tables of a results folder, as the report needs them. Used by `page`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table_facts
from pipelines.geotag.decisions import newest_format
from schemas.errors import ObjectMissing

RADIUS_M: Final = 25.0
"""An answer is right up to this far from the truth, where there are no metrics to say it."""

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsFolder:
    """What lies in a results folder. None: that table is not there."""

    queries: pa.Table
    results: pa.Table
    geotags: pa.Table | None
    metrics: pa.Table | None
    rejects: pa.Table | None
    coverage: pa.Table | None
    facts: Facts
    """Of results: map_version, model, trained, grid_side, mode."""
    radius_m: float
    """An answer is right up to this far from the truth."""


def read_folder(directory: Path, settings: Settings) -> ResultsFolder:
    """Read every table there is.

    Raises:
        ObjectMissing: queries or results are not there.
        FormatError: a table is of a kind or format that this Folio does not read.
        DamagedError: a table is not what was written.
    """
    storage = open_storage(str(directory), settings)
    queries, _ = _needed(storage, "queries", kind="images")
    results, facts = _needed(storage, "results", kind="results")
    geotags, _ = _optional(storage, "geotags")
    metrics, metrics_facts = _optional(storage, "metrics")
    return ResultsFolder(
        queries=queries,
        results=results,
        geotags=None if geotags is None else newest_format(geotags),
        metrics=metrics,
        rejects=_optional(storage, "rejects")[0],
        coverage=_optional(storage, "coverage")[0],
        facts=facts,
        radius_m=RADIUS_M if metrics is None else float(metrics_facts["radius_m"]),
    )


def _needed(storage: Storage, name: str, *, kind: str) -> tuple[pa.Table, Facts]:
    try:
        return read_table_facts(storage, f"{name}.parquet", kind=kind)
    except ObjectMissing as error:
        raise ObjectMissing(
            f"{storage.url}/{name}.parquet: not there, and a report cannot be written without it. Nothing was written. "
            "Give the folder that `folio evaluate` or `folio geotag` wrote."
        ) from error


def _optional(storage: Storage, name: str) -> tuple[pa.Table | None, Facts]:
    try:
        return read_table_facts(storage, f"{name}.parquet", kind=name)
    except ObjectMissing:
        return None, {}
