"""Recall and position errors on five queries whose candidates are placed by hand.

Each query was taken on the equator, 0.5 east. Candidates stand due east of it: `near` is 10 m away, `far` 500 m.

| query | by descriptor          | re-ranked               |
|-------|------------------------|-------------------------|
| first | near, far, far         | near, far, far          |
| moved | far, far, near         | near, far, far          |
| lost  | near, far              | far, near               |
| none  | far, far               | far, far                |
| empty |                        |                         |
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table_facts, write_table
from pipelines.evaluate.evaluate import add_metrics, metric_row, rank_positives, run_evaluation
from pipelines.locate.position import WGS84
from schemas.errors import CatalogError
from schemas.geotags import GEOTAGS
from schemas.images import IMAGES
from schemas.results import RESULTS
from tests.schemas.samples import FACTS, with_points

SETTINGS = Settings(threads=1)
QUERIES = ["first", "moved", "lost", "none", "empty"]
LON_DEG = 0.5
NEAR, FAR = 10.0, 500.0
CANDIDATES = {
    # query: (metres, rank by descriptor, rank after re-ranking)
    "first": [(NEAR, 1, 1), (FAR, 2, 2), (FAR, 3, 3)],
    "moved": [(FAR, 1, 2), (FAR, 2, 3), (NEAR, 3, 1)],
    "lost": [(NEAR, 1, 2), (FAR, 2, 1)],
    "none": [(FAR, 1, 1), (FAR, 2, 2)],
}


def east(metres: float) -> tuple[float, float]:
    """Latitude and longitude so far east of the queries."""
    lon, lat, _ = WGS84.fwd(LON_DEG, 0.0, 90.0, metres)
    return float(lat), float(lon)


def queries(known: bool = True) -> pa.Table:
    rows = [
        {
            "image_id": name,
            "photo_key": name,
            "uri": name,
            "root": "",
            "size_bytes": 1,
            "checksum": "",
            "lat_deg": 0.0 if known else None,
            "lon_deg": LON_DEG if known else None,
        }
        for name in QUERIES
    ]
    return with_points(rows, IMAGES)


def results(candidates: dict[str, list[tuple[float, int, int]]]) -> pa.Table:
    rows = []
    for query, found in candidates.items():
        for metres, global_rank, rank in found:
            lat, lon = east(metres)
            row = {"query_id": query, "rank": rank, "image_id": f"{query} {rank}", "uri": "", "root": "", "cosine": 0.5}
            rows.append({**row, "lat_deg": lat, "lon_deg": lon, "global_rank": global_rank})
    return pa.Table.from_pylist(rows, RESULTS)


def geotags(off_by_m: dict[str, float], expected_error_m: float = 20.0) -> pa.Table:
    """Answers so far off; the queries that are not named are unknown."""
    rows = []
    for name in QUERIES:
        lat, lon = east(off_by_m[name]) if name in off_by_m else (None, None)
        rows.append(
            {
                "query_id": name,
                "uri": name,
                "root": "",
                "status": "answered" if name in off_by_m else "unknown",
                "lat_deg": lat,
                "lon_deg": lon,
                "expected_error_m": expected_error_m if name in off_by_m else None,
                "support": 1.0,
                "pool_size": 0,
                "known_lat_deg": 0.0,
                "known_lon_deg": LON_DEG,
            }
        )
    return with_points(rows, GEOTAGS)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    """A results folder with errors of 10, 10 and 500 m and two don't-knows."""
    storage = open_storage(str(tmp_path), SETTINGS)
    write_table(storage, "queries.parquet", queries(), kind="images")
    write_table(storage, "results.parquet", results(CANDIDATES), kind="results", facts=FACTS)
    write_table(storage, "geotags.parquet", geotags({"first": NEAR, "moved": NEAR, "lost": FAR}), kind="geotags", facts=FACTS)
    return storage


def evaluated(folder: Storage, radius_m: float = 25.0) -> dict[tuple[str, str, float | None], dict[str, Any]]:
    metrics = run_evaluation(folder.url, radius_m=radius_m, settings=SETTINGS)
    return {(row["metric"], row["stage"], row["at"]): row for row in metrics.to_pylist()}


def test_positives_are_marked_at_their_rank_in_both_orders():
    ranked = rank_positives(queries(), results(CANDIDATES), 25.0)

    assert ranked.by_descriptor.shape == ranked.reranked.shape == (5, 20)
    assert np.argwhere(ranked.by_descriptor).tolist() == [[0, 0], [1, 2], [2, 0]]
    assert np.argwhere(ranked.reranked).tolist() == [[0, 0], [1, 0], [2, 1]]


def test_the_order_of_the_rows_does_not_matter_the_ranks_do():
    backwards = results(dict(reversed({query: found[::-1] for query, found in CANDIDATES.items()}.items())))

    ranked = rank_positives(queries(), backwards, 25.0)

    assert np.argwhere(ranked.reranked).tolist() == [[0, 0], [1, 0], [2, 1]]


def test_a_photo_exactly_at_the_radius_is_a_positive_and_a_millimetre_beyond_is_none():
    """25.0 m east of the query, as the ellipsoid measures it; the last bits of the longitude put it a nanometre off at most."""
    lat, lon = east(25.0)
    distance = WGS84.inv(LON_DEG, 0.0, lon, lat)[2]
    assert distance == pytest.approx(25.0, abs=1e-8)

    at, beyond = (
        rank_positives(queries(), results({"first": [(metres, 1, 1)]}), distance).reranked[0, 0] for metres in (25.0, 25.001)
    )

    assert (at, beyond) == (True, False)


def test_candidates_of_others_and_beyond_rank_twenty_do_not_count():
    many = {"stranger": [(NEAR, 1, 1)], "first": [(FAR, n, n) for n in range(1, 21)] + [(NEAR, 21, 21)]}

    assert not rank_positives(queries(), results(many), 25.0).reranked.any()


def test_without_any_candidate_nothing_is_positive():
    assert not rank_positives(queries(), RESULTS.empty_table(), 25.0).by_descriptor.any()


def test_recall_is_over_all_queries_also_those_without_a_positive(folder: Storage):
    """Of five: by descriptor first and lost at once, moved at rank 3; re-ranked first and moved at once, lost at rank 2."""
    found = evaluated(folder)

    recalls = {stage: [found["recall", stage, float(k)]["value"] for k in (1, 5, 10, 20)] for stage in ("global", "reranked")}
    assert recalls == {"global": pytest.approx([0.4, 0.6, 0.6, 0.6]), "reranked": pytest.approx([0.4, 0.6, 0.6, 0.6])}
    assert found["recall", "global", 1.0]["queries"] == 5
    assert {row["unit"] for key, row in found.items() if key[0] == "recall"} == {"fraction"}


def test_a_wider_radius_finds_more(folder: Storage):
    found = evaluated(folder, radius_m=600.0)

    assert found["recall", "global", 1.0]["value"] == pytest.approx(0.8)  # every candidate counts; `empty` has none


def test_errors_are_those_of_the_answers_and_the_share_of_answers_is_of_all(folder: Storage):
    found = evaluated(folder)

    assert (found["answered", "geotag", None]["value"], found["answered", "geotag", None]["queries"]) == (0.6, 5)
    errors = {p: found["position_error", "geotag", float(p)] for p in (50, 75, 95)}
    assert errors[50]["value"] == pytest.approx(10, abs=1e-6)
    assert errors[75]["value"] == pytest.approx(255, abs=1e-6)  # half way from 10 to 500
    assert errors[95]["value"] == pytest.approx(451, abs=1e-6)  # 0.9 of the way
    assert (errors[50]["unit"], errors[50]["queries"]) == ("m", 3)
    assert found["within_expected_error", "geotag", None]["value"] == pytest.approx(2 / 3)  # 10 m is within 20 m, 500 m is not


def test_when_nothing_was_answered_there_are_no_errors_to_report(folder: Storage):
    write_table(folder, "geotags.parquet", geotags({}), kind="geotags", facts=FACTS)

    found = evaluated(folder)

    assert found["answered", "geotag", None]["value"] == 0
    assert not [key for key in found if key[:2] in (("position_error", "geotag"), ("within_expected_error", "geotag"))]


def test_queries_whose_position_is_not_known_are_left_out_of_the_recall(folder: Storage):
    table = queries()
    without_lost = table.set_column(
        table.column_names.index("lat_deg"), table.schema.field("lat_deg"), [[0.0, 0.0, None, 0.0, 0.0]]
    )
    write_table(folder, "queries.parquet", without_lost, kind="images")

    found = evaluated(folder)

    assert found["recall", "global", 1.0]["queries"] == 4
    assert found["recall", "global", 1.0]["value"] == pytest.approx(1 / 4)
    assert found["recall", "reranked", 1.0]["value"] == pytest.approx(2 / 4)


def test_without_any_known_position_an_evaluation_is_refused_and_writes_nothing(folder: Storage):
    write_table(folder, "queries.parquet", queries(known=False), kind="images")

    with pytest.raises(CatalogError, match=r"none of 5 query photos has a known position.*No metrics were written"):
        evaluated(folder)

    assert "metrics.parquet" not in [info.path for info in folder.list()]


def test_the_metrics_carry_the_facts_that_their_schema_promises(folder: Storage):
    evaluated(folder)

    _, facts = read_table_facts(folder, "metrics.parquet", kind="metrics")

    assert facts["radius_m"] == 25.0
    assert {"map_version", "model", "trained", "radius_m"} <= set(facts)


def test_numbers_of_another_verb_are_added_and_the_facts_kept(folder: Storage):
    before = run_evaluation(folder.url, radius_m=25.0, settings=SETTINGS)

    add_metrics(folder, [metric_row("photos_per_second", "query", 12.5, "photos/s", 5)])

    metrics, facts = read_table_facts(folder, "metrics.parquet", kind="metrics")
    assert metrics.slice(0, len(before)).replace_schema_metadata(None).equals(before.replace_schema_metadata(None))
    assert metrics.slice(len(before)).to_pylist() == [
        {"metric": "photos_per_second", "stage": "query", "at": None, "value": 12.5, "unit": "photos/s", "queries": 5}
    ]
    assert facts["radius_m"] == 25.0


def test_the_first_candidate_of_every_query_has_an_error_answered_or_not(folder: Storage):
    """First candidates lie 10, 10, 500 and 500 m off; the query without candidates has none."""
    row = evaluated(folder)["position_error", "reranked", 50.0]

    assert row["queries"] == 4
    assert row["value"] == pytest.approx(255.0, abs=1e-3)
