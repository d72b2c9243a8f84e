"""The whole page, as text. Writing one takes about a second, so tests that only read share it."""

import html
import re
from pathlib import Path

import pytest

from pipelines.report.page import write_report
from schemas.errors import FormatError, ObjectMissing
from tests.pipelines.report.results_folders import SETTINGS, write_results_folder

GREY_BOX = "This photo cannot be read any more"
PHOTO = '<img src="data:image/jpeg;base64,'
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def without_scripts(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("full")
    write_results_folder(folder)
    assert write_report(folder, settings=SETTINGS) == folder / "report.html"
    return without_scripts((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bare_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Only queries and results, made with trained weights; one example."""
    folder = tmp_path_factory.mktemp("bare")
    write_results_folder(folder, without=("metrics", "geotags", "rejects", "coverage"), trained=True)
    return without_scripts(write_report(folder, settings=SETTINGS, examples=1).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The names of the queries are HTML, and lead to no photo."""
    folder = tmp_path_factory.mktemp("hostile")
    write_results_folder(folder, prefix=HOSTILE)
    return write_report(folder, settings=SETTINGS).read_text(encoding="utf-8")


@pytest.mark.parametrize("said", ["map version 7", "recall@1", "75.0 %", "1.1 km", "±20 m", "4 matches, 15 needed"])
def test_the_page_says_what_the_folder_holds(full_page: str, said: str):
    assert said in full_page


def test_untrained_weights_cannot_be_missed_and_trained_ones_need_no_word(full_page: str, bare_page: str):
    assert "<strong>Untrained weights.</strong>" in full_page
    assert "ntrained" not in bare_page


def test_each_query_is_shown_with_its_candidates_and_matched_regions(full_page: str):
    assert full_page.count("<article") == 5
    assert full_page.count(PHOTO) == 5 * 3  # each query with two candidates
    assert full_page.count("<rect") == 5 * 2 * 2  # two pairs on two photos
    assert GREY_BOX not in full_page


def test_rejects_are_counted_by_reason(full_page: str):
    assert re.search(r"damaged</th><td class=\"number\">2</td><td>bad-1.jpg", full_page)


def test_tables_that_are_not_there_are_said_or_left_out(bare_page: str):
    assert "No <code>metrics.parquet</code>" in bare_page
    assert "No <code>geotags.parquet</code>" in bare_page
    assert "Photos left out" not in bare_page


def test_as_many_examples_are_shown_as_asked_for(bare_page: str):
    assert bare_page.count("<article") == 1


def test_the_page_refers_to_nothing_outside_itself(full_page: str):
    assert "http://" not in full_page
    assert "https://" not in full_page
    assert set(re.findall(r"(?:src|href)=\"(\w+:)", full_page)) == {"data:"}
    assert "default-src 'none'; img-src data:;" in html.unescape(full_page)


def test_a_name_that_looks_like_html_stays_text(hostile_page: str):
    assert "alert(1)" in hostile_page
    assert "<script>alert" not in hostile_page
    assert "<img src=x" not in hostile_page
    assert hostile_page.count("<script") == hostile_page.count("</script>") == 2


def test_a_photo_that_cannot_be_read_is_a_grey_box_that_says_what_to_do(hostile_page: str):
    """The five queries; their candidates are there."""
    assert hostile_page.count(GREY_BOX) == 5
    assert hostile_page.count("<code>--photos</code>") == 5
    assert hostile_page.count(PHOTO) == 5 * 2


def test_a_report_about_no_photo_is_still_a_page(tmp_path: Path):
    write_results_folder(tmp_path, cases=[])

    page = write_report(tmp_path, settings=SETTINGS).read_text(encoding="utf-8")

    assert "No photo was asked about." in page
    assert "There is no query to show." in page


@pytest.mark.parametrize("table", ["queries", "results"])
def test_a_report_without_its_main_tables_is_refused_and_nothing_is_written(tmp_path: Path, table: str):
    write_results_folder(tmp_path, without=(table,))

    with pytest.raises(ObjectMissing, match=rf"{table}\.parquet: not there.*Nothing was written.*folio evaluate"):
        write_report(tmp_path, settings=SETTINGS)
    assert not (tmp_path / "report.html").exists()


def test_a_table_of_another_kind_is_refused(tmp_path: Path):
    write_results_folder(tmp_path)
    (tmp_path / "geotags.parquet").write_bytes((tmp_path / "metrics.parquet").read_bytes())

    with pytest.raises(FormatError, match="expected a Folio table of kind geotags, found metrics"):
        write_report(tmp_path, settings=SETTINGS)
