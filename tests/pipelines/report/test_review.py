"""What the page on which positions are decided is given to show. How it behaves is seen in `test_review_in_chromium`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.report.page import write_report, write_report_again
from pipelines.report.review import Kind, distinct_places, gather_rows, kind_of
from schemas.errors import FormatError
from schemas.geotags import GEOTAGS
from schemas.images import image_id
from tests.pipelines.report.archives import geotags, write_archive, write_review
from tests.pipelines.report.results_folders import CASES, SETTINGS, write_results_folder


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def rows_of(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["uri"]: row for values in data["rows"] for row in [dict(zip(data["fields"], values, strict=True))]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def data(page: Path) -> dict[str, Any]:
    return data_of(page)


@pytest.mark.parametrize(
    ("status", "found", "kind"),
    [
        ("answered", True, Kind.CONFIDENT),
        ("unknown", True, Kind.DOUBTFUL),
        ("unknown", False, Kind.UNKNOWN),
        ("interpolated", False, Kind.INTERPOLATED),
        ("accepted", True, Kind.ACCEPTED),
        ("corrected", False, Kind.CORRECTED),
        ("refused", True, Kind.REFUSED),
    ],
)
def test_a_photo_is_of_the_kind_that_its_geotag_says(status: str, found: bool, kind: Kind):
    assert kind_of(status, found=found) == kind


def test_every_photo_has_a_row_and_a_copy_follows_its_photo(data: dict[str, Any]):
    rows = rows_of(data)

    assert {name: row["kind"] for name, row in rows.items()} == {
        "strong.png": "confident",
        "thin.png": "doubtful",
        "wrong.png": "doubtful",
        "lost.png": "unknown",
        "free.png": "doubtful",
    }
    assert [rows[name]["copies"] for name in ("thin.png", "wrong.png")] == [1, 0]
    assert data["map_version"] == 7


def test_a_known_position_is_compared_with_what_was_found(data: dict[str, Any]):
    rows = rows_of(data)

    assert rows["strong.png"]["known_off_m"] == pytest.approx(11.1, abs=0.1)
    assert (rows["strong.png"]["known_lat"], rows["strong.png"]["lat"]) == (50.0, 50.0001)  # both, none overwritten
    assert rows["free.png"]["known_off_m"] is None


def test_a_photo_is_shown_beside_its_candidate_with_matched_regions_and_other_places(data: dict[str, Any]):
    shown = data["evidence"][image_id("wrong.png")]

    assert shown["query"]["uri"].startswith("data:image/jpeg;base64,")
    assert shown["candidate_uri"] == "map-1.png"
    assert shown["candidate"]["width"] == 80
    assert len(shown["query_regions"]) == len(shown["candidate_regions"]) == 2
    assert [(other["uri"], round(other["away_m"])) for other in shown["alternatives"]] == [("map-2.png", 1101)]


def test_photos_come_in_the_order_of_what_a_look_is_worth_and_the_first_have_pictures(tmp_path: Path):
    """The doubtful from the surest on, then what is given, then what was not found."""
    page = write_review(tmp_path, review=2)

    assert list(rows_of(data_of(page))) == ["wrong.png", "thin.png", "free.png", "strong.png", "lost.png"]
    assert list(data_of(page)["evidence"]) == [image_id("wrong.png"), image_id("thin.png")]
    assert "--review 4" in page.read_text(encoding="utf-8")  # how to get more


def test_pages_are_written_again_as_they_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The photos have moved since, and `--apply` is called from another folder than `report` was."""
    out = tmp_path / "out"
    write_archive(out)
    (out / "photos").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    write_report(out, settings=SETTINGS, photos="moved", review=2)
    monkeypatch.chdir(out)
    decisions = {
        "format_version": 1,
        "decisions": [{"query_id": image_id("wrong.png"), "uri": "wrong.png", "decision": "refuse"}],
    }
    (tmp_path / "decisions.json").write_text(json.dumps(decisions))

    done = CliRunner().invoke(main, ["geotag", "--out", str(out), "--apply", str(tmp_path / "decisions.json")])

    assert done.exit_code == 0, done.output
    evidence = data_of(out / "review.html")["evidence"]
    assert list(evidence) == [image_id("thin.png"), image_id("free.png")]
    assert all(shown["query"] for shown in evidence.values())

    write_report(out, settings=SETTINGS)

    assert not (out / "report.json").exists()
    assert len(data_of(out / "review.html")["evidence"]) == 5


@pytest.mark.parametrize("kept", ['{"format_version": 2, "photos": null}', '{"review": "many"}', "\xff", "[]"])
def test_options_that_cannot_be_read_are_named_and_the_pages_stay(tmp_path: Path, kept: str):
    page = write_review(tmp_path, review=1)
    before = page.read_bytes()
    (tmp_path / "report.json").write_text(kept, encoding="latin-1")

    with pytest.raises(
        FormatError, match=r"report.json: expected the options of a report in format 1, found .*No page was written"
    ):
        write_report_again(tmp_path, settings=SETTINGS)

    assert page.read_bytes() == before


def test_what_the_photo_itself_contradicts_comes_before_what_is_merely_less_sure():
    """0.0003° of latitude is 33.4 m, more than the 20 m that were expected and the 25 m that count as the same place."""
    table = geotags(Path("/nowhere"), "", redacted=False, cases=CASES)
    given = table.filter(pc.equal(table["uri"], "strong.png")).to_pylist()[0]
    rows = [
        given | {"query_id": name, "probability": sure, "known_lat_deg": given["lat_deg"] + off}
        for name, sure, off in [("sure", 0.99, 0.0), ("far", 0.99, 0.0004), ("farther", 0.99, -0.0005), ("less", 0.7, 0.0002)]
    ]

    assert [row.id for row in gather_rows(pa.Table.from_pylist(rows, GEOTAGS))] == ["farther", "far", "less", "sure"]


def test_no_pictures_make_a_small_page_that_still_holds_every_photo(tmp_path: Path):
    page = write_review(tmp_path, review=0)

    assert data_of(page)["evidence"] == {}
    assert len(data_of(page)["rows"]) == 5
    assert "data:image/jpeg" not in page.read_text(encoding="utf-8")


def test_without_probabilities_the_share_that_agrees_says_how_sure():
    table = geotags(Path("/nowhere"), "", redacted=False, cases=CASES)
    doubtful = table.filter(pc.equal(table["reason"], "too little agrees")).to_pylist()[:2]
    rows = [
        row | {"query_id": name, "probability": None, "support": support}
        for row, name, support in zip(doubtful, "ab", (0.3, 0.4), strict=True)
    ]

    assert [row.id for row in gather_rows(pa.Table.from_pylist(rows, GEOTAGS))] == ["b", "a"]


def test_of_a_photo_that_was_not_found_only_the_photo_is_shown(data: dict[str, Any]):
    """So that a person who knows the place can say it. Its candidates had nothing in common with it, yet are what was nearest."""
    shown = data["evidence"][image_id("lost.png")]

    assert shown["query"] is not None
    assert {other["away_m"] for other in shown["alternatives"]} == {None}


def test_results_whose_names_were_left_out_show_the_photo_alone(tmp_path: Path):
    shown = data_of(write_review(tmp_path, redacted=True))["evidence"][image_id("wrong.png")]

    assert shown["query"] is not None
    assert (shown["candidate"], shown["candidate_uri"], shown["alternatives"]) == (None, "", [])


def test_nothing_in_a_name_can_end_the_data(tmp_path: Path):
    hostile = "<!--<script></script><script>alert(1)</script>"
    page = write_review(tmp_path, prefix=hostile)

    assert hostile + "thin.png" in rows_of(data_of(page))
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 4


def test_a_folder_without_geotags_has_nothing_to_decide_on(tmp_path: Path):
    write_results_folder(tmp_path, without=("geotags",))
    report = write_report(tmp_path, settings=SETTINGS)

    assert not (tmp_path / "review.html").exists()
    assert "review.html" not in report.read_text(encoding="utf-8")


def test_other_places_are_distinct_from_the_best_and_from_each_other():
    """0.0001° of latitude is 11.12 m: the second and the fourth are within 25 m of one before them. Three are enough."""
    north = [0.0, 0.0002, 0.0004, 0.0005, 0.001, 0.002, 0.003]

    assert distinct_places(np.array([[50 + lat, 10.0] for lat in north])) == [1, 3, 4]
