"""A results folder with one query of each kind, in which every number can be checked by hand.

At 50° north 0.0001° of latitude is 11.12 m. Each query was taken at 50.0 north, 10.0 east.

| query       | matches | answer       | error   | expected |
|-------------|---------|--------------|---------|----------|
| strong.png  | 80      | 0.0001° off  | 11.1 m  | 20 m     |
| thin.png    | 16      | 0.0002° off  | 22.2 m  | 20 m     |
| wrong.png   | 30      | 0.01° off    | 1.1 km  | 40 m     |
| lost.png    | 4       | none         |         |          |
| free.png    | 50      | 0.0001° off  | the truth is not known | 20 m |
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from infra.settings import Settings
from infra.storage import open_storage
from infra.tables import write_table
from schemas.coverage import COVERAGE
from schemas.geoparquet import point_columns
from schemas.geotags import GEOTAGS
from schemas.images import IMAGES, image_id
from schemas.metrics import METRICS
from schemas.rejects import REJECTS
from schemas.results import RESULTS

SETTINGS = Settings(threads=1)
GRID_SIDE = 4
FACTS = {"map_version": 7, "model": "folio-small", "trained": False, "grid_side": GRID_SIDE, "mode": "weighted"}

Case = tuple[str, int, float | None, float | None, bool]
"""Name, matches, degrees of latitude between truth and answer (None: no answer), expected error, whether the truth is known."""

CASES: list[Case] = [
    ("strong.png", 80, 0.0001, 20.0, True),
    ("thin.png", 16, 0.0002, 20.0, True),
    ("wrong.png", 30, 0.01, 40.0, True),
    ("lost.png", 4, None, None, True),
    ("free.png", 50, 0.0001, 20.0, False),
]
MATCHED = [0, 0, 0, 1, 3, 3, 3, 2]
"""The top left patch of the query with the one right of it in the candidate; the bottom right one with its left neighbour."""


def write_results_folder(
    folder: Path, *, without: tuple[str, ...] = (), prefix: str = "", trained: bool = False, cases: list[Case] = CASES
) -> None:
    """Write the tables, and photos of 80 x 60 pixels below `folder/photos`.

    Args:
        folder: where to.
        without: tables to leave out.
        prefix: put before the name of each query.
        trained: as the facts say it.
        cases: the queries.
    """
    cases = [(prefix + name, *rest) for name, *rest in cases]
    storage = open_storage(str(folder), SETTINGS)
    facts = FACTS | {"trained": trained}
    tables = {
        "queries": (queries(folder, cases), "images", {}),
        "results": (results(folder, cases), "results", facts),
        "geotags": (geotags(folder, cases), "geotags", facts),
        "metrics": (metrics(), "metrics", facts | {"radius_m": 25.0}),
        "rejects": (rejects(), "rejects", {}),
        "coverage": (coverage(), "coverage", {"photos": 3}),
    }
    for name, (table, kind, its_facts) in tables.items():
        if name not in without:
            write_table(storage, f"{name}.parquet", table, kind=kind, facts=its_facts)
    (folder / "photos").mkdir(exist_ok=True)
    for number, name in enumerate([case[0] for case in CASES] + ["map-1.png", "map-2.png"]):
        Image.new("RGB", (80, 60), (40 * number, 120, 200)).save(folder / "photos" / name)


def queries(folder: Path, cases: list[Case] = CASES) -> pa.Table:
    """The query photos. The known position is the truth."""
    return _table(
        [
            {
                "image_id": image_id(name),
                "photo_key": "0" * 32,
                "uri": name,
                "root": str(folder / "photos"),
                "size_bytes": 1,
                "checksum": "sha256:0",
                "lat_deg": 50.0 if known else None,
                "lon_deg": 10.0 if known else None,
            }
            for name, _, _, _, known in cases
        ],
        IMAGES,
    )


def results(folder: Path, cases: list[Case] = CASES) -> pa.Table:
    """Two candidates of each query: map-1, 0.0001° north of the truth, and map-2, 0.01°. By descriptor map-2 is the first."""
    return _table(
        [
            {
                "query_id": image_id(name),
                "rank": rank,
                "image_id": image_id(f"map-{rank}.png"),
                "uri": f"map-{rank}.png",
                "root": str(folder / "photos"),
                "lat_deg": 50.0 + (0.0001 if rank == 1 else 0.01),
                "lon_deg": 10.0,
                "global_rank": 3 - rank,
                "cosine": 0.9,
                "matches": matches if rank == 1 else 1,
                "local_score": 1.0,
                "score": 1.0 / rank,
                "matched_patches": MATCHED if rank == 1 else None,
            }
            for name, matches, _, _, _ in cases
            for rank in (1, 2)
        ],
        RESULTS,
    )


def geotags(folder: Path, cases: list[Case] = CASES) -> pa.Table:
    """The answers of the table above, in another order than the queries."""
    rows = [
        {
            "query_id": image_id(name),
            "uri": name,
            "root": str(folder / "photos"),
            "status": "unknown" if off is None else "answered",
            "reason": "4 matches, 15 needed" if off is None else None,
            "lat_deg": None if off is None else 50.0 + off,
            "lon_deg": None if off is None else 10.0,
            "expected_error_m": expected,
            "support": 0.5,
            "matches": matches,
            "pool_size": 2,
        }
        for name, matches, off, expected, _ in cases
    ]
    return _table(rows[::-1], GEOTAGS)


def metrics() -> pa.Table:
    """Recall of two stages, and one number of each other unit."""
    recall = [("recall", "global", 1.0, 0.5, "fraction"), ("recall", "reranked", 1.0, 0.75, "fraction")]
    others = [
        ("answered", "geotag", None, 0.8, "fraction"),
        ("position_error", "geotag", 50.0, 22.2, "m"),
        ("photos_per_second", "query", None, 12.3, "photos/s"),
        ("bytes_per_photo", "build", None, 48_200.0, "bytes/photo"),
    ]
    names = ("metric", "stage", "at", "value", "unit")
    return _table([dict(zip(names, row, strict=True)) | {"queries": 4} for row in recall + others], METRICS)


def rejects() -> pa.Table:
    """Three photos for two reasons."""
    reasons = ["truncated", "damaged", "damaged"]
    return _table(
        [
            {"uri": f"bad-{number}.jpg", "root": "", "stage": "query", "reason": reason, "detail": f"at byte {number}"}
            for number, reason in enumerate(reasons)
        ],
        REJECTS,
    )


def coverage() -> pa.Table:
    """Three photos of the map."""
    rows = [{"uri": f"map-{number}.png", "lat_deg": 50.0 + number / 1000, "lon_deg": 10.0} for number in range(3)]
    return _table(rows, COVERAGE)


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    columns: dict[str, Any] = {field.name: [row.get(field.name) for row in rows] for field in schema}
    if "geometry" in columns:
        degrees = [np.array(columns[name], dtype=float) for name in ("lon_deg", "lat_deg")]
        columns["geometry"], columns["bbox"] = point_columns(*degrees)
    return pa.table(columns, schema=schema)
