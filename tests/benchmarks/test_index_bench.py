"""What `index` measures is what it says: exact search finds everything, refining more loses nothing, sums are sums."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipelines import ivfpq
from pipelines.ivfpq import IndexConfig
from tests.benchmarks import index
from tests.benchmarks.index import (
    AUTOFAISS,
    EXACT,
    FOLIO,
    PLAIN,
    Plan,
    Row,
    draw,
    filtered_table,
    fit_line,
    full_table,
    growth,
    growth_table,
    make_queries,
    measure,
    recall_of,
    table,
    write,
    write_photos,
)
from tests.benchmarks.made_up_descriptors import SEGMENT_PHOTOS, Fit, MadeUpDescriptors

SMALL = Fit(dim=32, mean=0.27, street=0.22, place=0.28)
SIZES = (600, 2_500)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "WORK", tmp_path_factory.mktemp("work"))
        patch.setattr(index, "in_process", lambda work, *arguments: work(*arguments))
        patch.setattr(ivfpq, "use_threads", lambda count: None)  # this process is pytest's
        patch.setattr(index, "PART_PHOTOS", 1_000)
        config = IndexConfig(pca_photos=256, train_photos=1_024, shard_photos=1_100)
        plan = Plan(photos=SIZES, queries=16, refined=(100, 200, 400), nprobes=(2,), probed_refined=400, config=config)
        measured, filtered = measure("small", SMALL, replace(plan, against=(EXACT, PLAIN, FOLIO)), lambda what: None)
    assert [one.photos for one in filtered] == list(SIZES)
    assert filtered_table(filtered).count("\n") == 3
    return measured


def test_files_hold_the_photos_of_the_generator_wherever_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "PART_PHOTOS", 700)
    stored = write_photos(tmp_path, SMALL, [1_000, 2_500])
    city = MadeUpDescriptors(SMALL, seed=index.SEED)
    made = np.concatenate([city.segment(0), city.segment(1)])[:2_500].astype(np.float16)

    assert stored.parts == (700, 300, 400, 700, 400)
    np.testing.assert_array_equal(np.concatenate(list(stored.blocks(650, 2_500, 300))), made[650:])
    np.testing.assert_array_equal(stored.rows(np.array([2_499, 0, 700, 699])), made[[2_499, 0, 700, 699]])
    cosines = (stored.codes(2_500).astype(float) * made).sum(axis=1) / np.linalg.norm(stored.codes(2_500).astype(float), axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_queries_are_most_alike_the_photos_that_they_were_taken_beside():
    queries, beside = make_queries(SMALL, 3_000, 8)
    city = MadeUpDescriptors(SMALL, seed=index.SEED)
    photos = np.concatenate([city.segment(0), city.segment(1)])

    assert (beside < 3_000).all()
    assert (beside >= SEGMENT_PHOTOS).any()
    assert np.median([(photos @ query > photos[own] @ query).sum() for query, own in zip(queries, beside, strict=True)]) < 10


def test_exact_search_finds_everything(rows: list[Row]):
    exact = [row for row in rows if row.method == EXACT]

    assert [row.parameters for row in exact] == ["one at a time", "batch"] * 2
    assert all(row.first == 1 and row.recall == (1, 1, 1) for row in exact)
    assert exact[0].times_less == 1


def test_refining_more_loses_nothing(rows: list[Row]):
    for photos in SIZES:
        own = [row for row in rows if row.method == FOLIO and row.photos == photos]
        recalls = [row.recall for row in own if row.nprobe != 2]
        assert len(recalls) == 3
        assert all(np.all(np.array(more) >= np.array(fewer) - 0.01) for fewer, more in pairwise(recalls))
        assert recalls[-1][0] > 0.9


def test_every_method_says_what_it_took(rows: list[Row]):
    for row in rows:
        assert row.cpu_ms > 0
        assert row.queries_per_s > 0
        if row.method != EXACT:
            assert row.bytes_per_photo > 16
            assert row.train_cpu_s >= 0
    assert {(row.method, row.refined) for row in rows if row.method == PLAIN} == {(PLAIN, 0), (PLAIN, 200), (PLAIN, 400)}


def test_the_page_and_the_tables_show_every_row(rows: list[Row], tmp_path: Path):
    assert table(rows).count("\n") == len(rows) + 1
    assert all(line.count("|") == 19 for line in table(rows).splitlines())
    assert "| one at a time |" in full_table(rows[:1])
    write(tmp_path / "new" / "index.json", {"rows": [1]}, draw(rows))
    assert json.loads((tmp_path / "new" / "index.json").read_text()) == {"rows": [1]}
    assert FOLIO in (tmp_path / "new" / "index.html").read_text()


def test_growth_is_the_line_through_what_was_measured(rows: list[Row]):
    line = fit_line([1, 2, 4], [12.0, 14.0, 18.0])

    assert (line.a, line.b, line.largest_error) == pytest.approx((10, 2, 0))
    assert line.at(100) == pytest.approx(210)
    assert growth_table(growth(rows)).count("\n") == 5
    assert growth([row for row in rows if row.photos == SIZES[0]]) == {}


def test_recall_counts_those_of_the_exact_best_that_were_found():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[2, 9, 1, -1], [8, 7, 9, -1]])

    assert [recall_of(found, truth, rank) for rank in (1, 2, 4)] == [0.5, 0.5, 0.5]


def test_autofaiss_is_left_out_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []

    def refuse() -> Path:
        raise index.NotMeasuredError("autofaiss cannot be installed: no network")

    monkeypatch.setattr(index, "autofaiss_python", refuse)
    monkeypatch.setattr(index, "WORK", tmp_path)
    monkeypatch.setattr(index, "in_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(ivfpq, "use_threads", lambda count: None)
    measured, _ = measure("small", SMALL, Plan(photos=(256,), against=(AUTOFAISS,), queries=2), said.append)

    assert measured == []
    assert said[-1] == "small, 256 photos: not measured: autofaiss cannot be installed: no network"
