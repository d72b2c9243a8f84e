"""A results folder says for every usable query what became of it, and its tables carry the facts that their schemas promise."""

from pathlib import Path

import pytest

from infra.settings import Settings
from infra.storage import Storage, open_storage
from infra.tables import read_table_facts
from pipelines.geotag.geotag import make_geotags, write_results
from pipelines.locate.position import PositionConfig
from pipelines.query.answering import Answers
from schemas.geotags import GEOTAGS
from schemas.results import RESULTS
from tests.schemas.samples import FACTS, URIS, coverage, images, rejects, results


@pytest.fixture
def answers() -> Answers:
    """Three queries, of which only the first has candidates: one re-ranked with 31 matches, one not re-ranked."""
    return Answers(queries=images(), results=results(), rejects=rejects(), coverage=coverage(), versions=[42], facts=FACTS)


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path), Settings(threads=1))


def test_every_query_gets_a_row_in_the_order_of_the_catalog(answers: Answers):
    geotags = make_geotags(answers, PositionConfig())

    assert geotags.schema.equals(GEOTAGS)
    assert geotags["uri"].to_pylist() == URIS
    assert geotags["status"].to_pylist() == ["answered", "unknown", "unknown"]
    assert geotags["known_lat_deg"].to_pylist() == [55.7, 55.701, None]


def test_only_reranked_candidates_vote_and_the_best_of_them_is_named(answers: Answers):
    answer = make_geotags(answers, PositionConfig()).slice(0, 1).to_pylist()[0]

    assert (answer["pool_size"], answer["matched_uri"], answer["matches"], answer["cosine"]) == (1, URIS[2], 31, 0.5)
    assert answer["support"] == 1
    assert (answer["lat_deg"], answer["lon_deg"]) == pytest.approx((55.7, 13.19))
    assert answer["bbox"]["xmin"] == answer["lon_deg"]


def test_a_query_without_candidates_is_unknown_and_has_no_geometry(answers: Answers):
    unknown = make_geotags(answers, PositionConfig()).slice(1, 1).to_pylist()[0]

    assert unknown["reason"] == "no photo of the map has anything in common with it"
    assert [unknown[name] for name in ("lat_deg", "geometry", "bbox", "matched_uri", "matches")] == [None] * 5
    assert unknown["pool_size"] == 0


def test_no_queries_make_an_empty_table(answers: Answers):
    none = Answers(
        queries=images().slice(0, 0),
        results=RESULTS.empty_table(),
        rejects=answers.rejects,
        coverage=answers.coverage,
        versions=[],
        facts=FACTS,
    )

    assert make_geotags(none, PositionConfig()).equals(GEOTAGS.empty_table())


def test_the_geotags_are_written_last_so_that_a_folder_with_them_is_complete(answers: Answers, folder: Storage):
    written: list[str] = []

    class Recording:
        url = folder.url

        def put(self, path: str, data: bytes) -> None:
            written.append(path)

    write_results(Recording(), answers, make_geotags(answers, PositionConfig()))

    assert written[-1] == "geotags.parquet"
    assert sorted(written) == [
        "coverage.parquet",
        "geotags.geojson",
        "geotags.parquet",
        "queries.parquet",
        "rejects.parquet",
        "results.parquet",
    ]


@pytest.mark.parametrize(
    ("kind", "promised"),
    [
        ("results", {"map_version", "model", "trained", "grid_side", "mode"}),
        ("geotags", {"map_version", "model", "trained"}),
    ],
)
def test_each_table_carries_the_facts_that_its_schema_promises(answers: Answers, folder: Storage, kind: str, promised: set[str]):
    write_results(folder, answers, make_geotags(answers, PositionConfig()))

    _, facts = read_table_facts(folder, f"{kind}.parquet", kind=kind)

    assert promised <= set(facts)
