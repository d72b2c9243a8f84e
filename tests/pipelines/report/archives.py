"""An archive to review, in the folder of `results_folders`: three doubtful photos, one that is lost, one that is sure.

At 50° north 0.0001° of latitude is 11.12 m. What was found lies at 50.0001, and by the second candidate at 50.01.

| photo         | status   | probability | known position        |
|---------------|----------|-------------|-----------------------|
| strong.png    | answered | 0.97        | 11.1 m from the found |
| thin.png      | unknown  | 0.40        | 11.1 m                |
| wrong.png     | unknown  | 0.60        | 11.1 m                |
| free.png      | unknown  | 0.20        | none                  |
| lost.png      | unknown, nothing found |  |                   |
| copy.png      | as thin.png, whose exact copy it is |        |
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import open_storage
from infra.tables import read_table, write_table
from pipelines.report.page import write_report
from schemas.geotags import GEOTAGS
from schemas.images import image_id
from tests.pipelines.report.results_folders import CASES, FACTS, SETTINGS, Case, write_results_folder

PROBABILITY = {"strong": 0.97, "thin": 0.4, "wrong": 0.6, "free": 0.2, "lost": 0.0}
FACTS_TRAINED = FACTS | {"trained": True}


def write_archive(
    folder: Path, *, prefix: str = "", redacted: bool = False, at_date_line: bool = False, cases: list[Case] = CASES
) -> None:
    """Write the tables and photos of the archive.

    Args:
        folder: where to.
        prefix: put before the name of each photo.
        redacted: leave out what would name photos of the map.
        at_date_line: put strong.png 36 m west of the date line and the others 36 m east of it, on a map without dots.
        cases: the photos.
    """
    without = ("metrics", "coverage") if at_date_line else ("metrics",)
    write_results_folder(folder, prefix=prefix, trained=True, cases=cases, without=without)
    storage = open_storage(str(folder), SETTINGS)
    table = geotags(folder, prefix, redacted=redacted, cases=cases)
    if at_date_line:
        sure = pc.equal(table["status"], "answered")
        for name, east in (("lon_deg", None), ("best_lon_deg", -179.9995)):
            moved = pc.if_else(sure, pa.scalar(179.9995), pa.scalar(east, pa.float64()))
            table = table.set_column(table.schema.get_field_index(name), name, moved)
    write_table(storage, "geotags.parquet", table, kind="geotags", facts=FACTS_TRAINED)
    if redacted:
        results = read_table(storage, "results.parquet", kind="results")
        write_table(storage, "results.parquet", results.slice(0, 0), kind="results", facts=FACTS_TRAINED)


def write_review(folder: Path, *, review: int = 100, **archive: Any) -> Path:
    """Write the archive and its pages; give the one to decide on."""
    write_archive(folder, **archive)
    write_report(folder, settings=SETTINGS, review=review)
    return folder / "review.html"


def geotags(folder: Path, prefix: str, *, redacted: bool, cases: list[Case]) -> pa.Table:
    rows = [_row(folder, prefix + name, matches, known, redacted) for name, matches, _, _, known in cases]
    thin = [row for row in rows if row["uri"].endswith("thin.png")]
    rows += [{**row, "query_id": "copy", "uri": "copy.png", "duplicate_of": row["query_id"]} for row in thin]
    return pa.Table.from_pylist(rows, GEOTAGS)


def _row(folder: Path, name: str, matches: int, known: bool, redacted: bool) -> dict[str, Any]:
    kind = name.removesuffix(".png").rpartition("/")[2].rpartition(">")[2]
    sure, found = kind == "strong", kind != "lost"
    return {
        "query_id": image_id(name),
        "uri": name,
        "root": str(folder / "photos"),
        "status": "answered" if sure else "unknown",
        "reason": None if sure else "too little agrees",
        "lat_deg": 50.0001 if sure else None,
        "lon_deg": 10.0 if sure else None,
        "expected_error_m": 20.0 if sure else None,
        "support": 0.5,
        "probability": PROBABILITY[kind],
        "best_lat_deg": 50.0001 if found else None,
        "best_lon_deg": 10.0 if found else None,
        "best_error_m": 20.0 if found else None,
        "matched_uri": "map-1.png" if found and not redacted else None,
        "matched_image_id": image_id("map-1.png") if found and not redacted else None,
        "matches": matches,
        "pool_size": 2,
        "known_lat_deg": 50.0 if known else None,
        "known_lon_deg": 10.0 if known else None,
    }
