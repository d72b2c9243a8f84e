"""What a person decides in the page becomes the geotags: a map, an archive, its review in a real browser, and `--apply`."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.end_to_end.conftest import City, Ran
from tests.pipelines.report.browser import browser, wait_until

CORRECTED = (55.71234, 13.19876)


@pytest.fixture(scope="module")
def geotagged(city: City, folio: Callable[..., Ran], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a name that is HTML, one that is read from right to left, and one of an emoji."""
    archive = tmp_path_factory.mktemp("archive")
    names = ["<!--<script><img src=x onerror=alert(1)>.jpg", "שלום.jpg", "🏙.jpg"]
    for number, photo in enumerate(sorted(city.queries.glob("*.jpg"))):
        (archive / (names[number] if number < len(names) else photo.name)).write_bytes(photo.read_bytes())
    out = tmp_path_factory.mktemp("geotagged") / "out"
    assert folio("geotag", city.map, archive, "--out", out).code == 0
    assert folio("report", out).code == 0
    return out


def geotags_of(out: Path) -> dict[str, dict]:
    return {row["query_id"]: row for row in pq.read_table(out / "geotags.parquet").to_pylist()}


def test_what_is_decided_in_the_page_becomes_the_geotags(geotagged: Path, folio: Callable[..., Ran], tmp_path: Path) -> None:
    before = geotags_of(geotagged)
    current = "document.querySelector('#list [aria-current]')"
    decided = {}

    with browser(tmp_path) as page:
        page.open(geotagged / "review.html")
        kinds = page.text("fieldset")
        doubtful = sum(row["status"] == "unknown" and row["best_lat_deg"] is not None for row in before.values())
        assert doubtful >= 3, "the untrained network is not doubtful enough for this test"
        assert f"doubtful {doubtful}" in kinds
        assert "confident" in kinds or doubtful == len(before)
        assert page.run("document.querySelectorAll('#evidence img').length") >= 2  # the query beside its candidate

        decided["accepted"] = page.run(f"{current}.dataset.id")
        page.press("a")
        decided["corrected"] = page.run(f"{current}.dataset.id")
        page.press("c")
        page.type(", ".join(map(str, CORRECTED)))
        page.press("Enter")
        decided["refused"] = page.run(f"{current}.dataset.id")
        page.press("r")
        assert page.text("#count") == "3 decided, 3 not saved"

        page.open(geotagged / "review.html")  # as after the tab was closed
        assert page.text("#count") == "3 decided, 3 not saved"

        page.click("#save")
        saved = tmp_path / "saved" / "decisions.json"
        page.wait_for("document.getElementById('count').textContent === '3 decided'")
        wait_until(saved.exists)
        assert page.complaints() == []
        assert page.requests() == []

    assert len(set(decided.values())) == 3
    applied = folio("geotag", "--out", geotagged, "--apply", saved, "--json")

    assert applied.code == 0
    assert {name: applied.json()["applied"][name] for name in ("accepted", "corrected", "refused", "skipped")} == {
        "accepted": 1,
        "corrected": 1,
        "refused": 1,
        "skipped": [],
    }
    after = geotags_of(geotagged)
    assert {status: after[query_id]["status"] for status, query_id in decided.items()} == {name: name for name in decided}
    accepted, corrected, refused = (after[decided[name]] for name in ("accepted", "corrected", "refused"))
    assert (accepted["lat_deg"], accepted["expected_error_m"]) == (accepted["best_lat_deg"], accepted["best_error_m"])
    assert (corrected["lat_deg"], corrected["lon_deg"], corrected["expected_error_m"]) == (*CORRECTED, None)
    assert refused["lat_deg"] is None
    assert {key: row for key, row in after.items() if key not in decided.values()} == {
        key: row for key, row in before.items() if key not in decided.values()
    }

    with browser(tmp_path / "again") as page:  # the page was written again, and shows what became of them
        page.open(geotagged / "review.html")
        kinds = page.text("fieldset")
        assert all(f"{kind} 1" in kinds for kind in decided)
        assert f"doubtful {doubtful - 3}" in kinds
        page.choose_file("#load", saved)
        page.wait_for("document.getElementById('said').textContent.startsWith('3 decisions loaded')")
        assert page.text("#count") == "0 decided"  # all of them are applied already

        page.run("document.querySelectorAll('[name=kind]:not([value=corrected])').forEach((box) => box.click())")
        page.click("#list button")
        page.press("u")
        page.click("#save")
        undone = tmp_path / "again" / "saved" / "decisions.json"
        wait_until(undone.exists)

    assert folio("geotag", "--out", geotagged, "--apply", undone, "--json").json()["applied"]["undone"] == 1
    assert geotags_of(geotagged)[decided["corrected"]] == before[decided["corrected"]]


def test_a_later_run_keeps_what_was_decided(geotagged: Path, city: City, folio: Callable[..., Ran], tmp_path: Path) -> None:
    """Its search finds the same again, and the person still knows better."""
    row = next(iter(geotags_of(geotagged).values()))
    said = {"query_id": row["query_id"], "uri": row["uri"], "decision": "correct", "lat_deg": 1.5, "lon_deg": 2.5}
    (tmp_path / "decisions.json").write_text(json.dumps({"format_version": 1, "decisions": [said]}))
    assert folio("geotag", "--out", geotagged, "--apply", tmp_path / "decisions.json").code == 0

    ran = folio("geotag", city.map, Path(row["root"]) / row["uri"].partition("/")[0], "--out", geotagged)

    assert "decided by hand before" in ran.out
    after = geotags_of(geotagged)[row["query_id"]]
    assert (after["status"], after["lat_deg"], after["lon_deg"]) == ("corrected", 1.5, 2.5)


def test_apply_needs_no_map_and_a_search_does(geotagged: Path, folio: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "decisions.json").write_text(json.dumps({"format_version": 1, "decisions": [{"query_id": "x", "uri": "x.jpg"}]}))

    bad = folio("geotag", "--out", geotagged, "--apply", tmp_path / "decisions.json", "--strict")

    assert bad.code == 3
    assert "skipped: entry 1 (x.jpg)" in bad.out
    assert folio("geotag", "--out", geotagged).code == 2
    assert folio("geotag", "map", "photos", "--out", geotagged, "--apply", tmp_path / "decisions.json").code == 2
