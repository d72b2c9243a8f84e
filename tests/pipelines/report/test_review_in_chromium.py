"""The page on which positions are decided, in a real browser: by mouse, by keys alone, on a narrow screen, with hostile names."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.decisions import decode_decisions
from schemas.images import image_id
from tests.pipelines.report.archives import write_review
from tests.pipelines.report.browser import Page, browser, wait_until

CURRENT = "document.querySelector('#list [aria-current]').dataset.id"
ORDER = ["wrong.png", "thin.png", "free.png", "strong.png", "lost.png"]
"""Most worth a look first: doubtful ones, surest first, then the rest."""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def review(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def page(tab: Page, review: Path) -> Iterator[Page]:
    """The page as it is opened for the first time."""
    open_new(tab, review)
    yield tab
    tab.run("localStorage.clear()")


def open_new(tab: Page, review: Path) -> None:
    tab.resize(1200, 900)
    tab.events.clear()
    tab.open(review)
    tab.wait_for("Bokeh.documents[0]?.get_model_by_name('confident').data.x.length")


def decided(page: Page) -> dict[str, dict[str, Any]]:
    """What the page keeps, by the name of the photo."""
    names = {image_id(name): name for name in ORDER}
    return {names[key]: said for key, said in json.loads(page.run("Object.values(localStorage)[0] ?? '[]'"))}


def test_photos_come_in_the_order_of_what_a_look_is_worth_and_keys_go_through_them(page: Page):
    seen = []
    for _ in ORDER:
        seen.append(page.text("#name"))
        page.press("j")

    assert seen == ORDER
    assert page.text("#name") == "lost.png"  # the last stays
    page.press("k")
    assert page.text("#name") == "strong.png"


def test_each_kind_can_be_left_out_of_list_and_map(page: Page):
    drawn = "Bokeh.documents[0].get_model_by_name('doubtful').data.x.length"
    assert page.run(drawn) == 3

    page.click("[name=kind][value=doubtful]")

    assert page.run("[...document.querySelectorAll('#list .name')].map((name) => name.innerText)") == ["strong.png", "lost.png"]
    assert page.run(drawn) == 0


def test_accept_is_kept_at_once_and_the_next_doubtful_photo_is_shown(page: Page):
    page.click("#accept")

    assert decided(page)["wrong.png"] == {"decision": "accept", "lat": 50.0001, "lon": 10, "note": "", "saved": False}
    assert page.text("#name") == "thin.png"
    assert page.text("#count") == "1 decided, 1 not saved"


def test_undo_takes_a_decision_back(page: Page):
    for key in "akuj":
        page.press(key)

    assert decided(page) == {}
    assert page.text("#count") == "0 decided"


def test_what_was_not_found_cannot_be_accepted_but_corrected(page: Page):
    for _ in ORDER:
        page.press("j")
    page.press("a")
    assert decided(page) == {}
    assert page.run("document.getElementById('accept').disabled")

    page.press("c")
    page.type("-33.85, 179.5")
    page.press("Enter")

    assert decided(page)["lost.png"] == {"decision": "correct", "lat": -33.85, "lon": 179.5, "note": "", "saved": False}


@pytest.mark.parametrize("typed", ["", "somewhere", "91, 10", "50, 181", "0, 0", "50"])
def test_what_is_no_position_is_not_taken_and_the_page_says_why(page: Page, typed: str):
    page.press("c")
    page.run("document.getElementById('typed').value = ''")
    page.type(typed)
    page.press("Enter")

    assert decided(page) == {}
    assert page.run("document.getElementById('typed').getAttribute('aria-invalid')") == "true"
    assert "needed" in page.text("#how") or "cannot be a position" in page.text("#how")


def test_a_click_on_the_map_says_where_it_was(page: Page):
    """In the middle of the map lies what is in the middle of the archive: it was fitted to the whole."""
    page.click("#whole")
    page.press("c")
    page.click(".panel", right=0.3, down=0.3)
    page.wait_for("document.getElementById('how').textContent.startsWith('From the map')")
    upper = page.run("document.getElementById('typed').value")
    time.sleep(0.5)  # two clicks, not a double click
    page.click(".panel", right=0.5, down=0.6)
    page.wait_for(f"document.getElementById('typed').value !== {json.dumps(upper)}")
    assert "★" in page.run("Bokeh.documents[0].get_model_by_name('places').data.label")
    page.press("Enter")

    said = decided(page)["wrong.png"]
    (north, west), (south, east) = map(float, upper.split(", ")), (said["lat"], said["lon"])
    assert 49.98 < south < north < 50.03
    assert 9.97 < west < east < 10.03


def test_a_click_on_a_mark_shows_its_photo(page: Page):
    page.click("[name=kind][value=doubtful]")
    page.click("#list li:last-child button")  # lost.png; strong.png is the only one on the map that was found
    page.run("document.getElementById('whole').click()")
    right, down = page.run(
        "(() => { const plot = Bokeh.documents[0].get_model_by_name('review-map');"
        "const frame = Bokeh.index.get_by_id(plot.id).frame.bbox;"
        "const {x, y} = plot.document.get_model_by_name('confident').data, {x_range, y_range} = plot;"
        "return [frame.left + (x[0] - x_range.start) / (x_range.end - x_range.start) * frame.width,"
        "frame.top + (y_range.end - y[0]) / (y_range.end - y_range.start) * frame.height]; })()"
    )
    page.click_at(".panel .bk-Figure", right, down)

    page.wait_for("document.getElementById('name').textContent === 'strong.png'")


def test_an_archive_at_the_date_line_is_one_place(tab: Page, tmp_path: Path):
    """71 m lie between the photos, and a click between them is near the line."""
    open_new(tab, write_review(tmp_path, at_date_line=True))
    tab.click("[name=kind][value=unknown]")
    tab.click("#whole")
    width = "(({start, end}) => end - start)(Bokeh.documents[0].get_model_by_name('review-map').x_range)"
    assert 71 < tab.run(width) < 1000

    tab.press("c")
    tab.click(".panel")
    tab.wait_for("document.getElementById('how').textContent.startsWith('From the map')")
    assert abs(float(tab.run("document.getElementById('typed').value").split(", ")[1])) > 179.99


def test_an_archive_without_photos_is_still_a_page(tab: Page, tmp_path: Path):
    tab.events.clear()
    tab.open(write_review(tmp_path, cases=[]))
    for key in "jacru":
        tab.press(key)

    assert tab.text("#page") == "no photo is of these kinds"
    assert tab.complaints() == []


def test_another_place_is_taken_with_one_click(page: Page):
    page.click(".alternatives button")

    assert decided(page)["wrong.png"]["lat"] == 50.01


def test_what_is_saved_is_what_apply_reads_and_can_be_loaded_again(page: Page, tab: Page, tmp_path: Path):
    page.press("a")
    page.run("document.getElementById('note').focus()")
    page.type('a "note" — שלום')
    page.run("document.getElementById('note').blur()")
    page.press("r")
    page.run("document.getElementById('save').click()")
    saved = page.saved / "decisions.json"
    wait_until(saved.exists)
    file = saved.rename(tmp_path / "decisions.json")

    decisions, bad = decode_decisions(file.read_bytes(), where="here")
    assert bad == []
    assert decisions.map_version == 7
    assert [(said.uri, said.decision, said.lat_deg, said.note) for said in decisions.decisions] == [
        ("wrong.png", "accept", 50.0001, ""),
        ("thin.png", "refuse", None, 'a "note" — שלום'),
    ]
    assert page.text("#count") == "2 decided"

    page.run("localStorage.clear()")
    page.reload()
    page.wait_for("document.readyState === 'complete' && document.getElementById('count').textContent === '0 decided'")
    page.choose_file("#load", file)
    page.wait_for("document.getElementById('count').textContent === '2 decided'")
    assert decided(page)["thin.png"]["decision"] == "refuse"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not JSON", "holds no decisions"),
        ('{"format_version": 2, "decisions": []}', "holds no decisions"),
        ('{"format_version": 1, "decisions": [null, {"query_id": "x", "decision": "refuse"}]}', "0 decisions loaded; 2 left out"),
    ],
)
def test_a_file_that_holds_no_decisions_changes_nothing_and_the_page_says_so(page: Page, tmp_path: Path, content: str, said: str):
    (tmp_path / "decisions.json").write_text(content)
    page.choose_file("#load", tmp_path / "decisions.json")

    page.wait_for(f"document.getElementById('said').textContent.includes({json.dumps(said)})")
    assert decided(page) == {}


def test_in_the_list_arrows_go_from_photo_to_photo(page: Page):
    page.run("document.querySelector('#list [aria-current]').focus()")
    page.press("ArrowDown")

    assert page.run("document.activeElement.innerText").startswith("▲\nthin.png")
    assert page.text("#name") == "thin.png"


def test_keys_that_are_typed_into_a_field_or_switched_off_decide_nothing(page: Page):
    page.run("document.getElementById('note').focus()")
    page.press("r")
    assert page.run("document.getElementById('note').value") == "r"

    page.click("#keys")
    page.run("document.activeElement.blur()")
    page.press("r")
    assert decided(page) == {}


def test_everything_can_be_done_with_the_keyboard_alone(page: Page):
    """Without the single keys: Tab reaches every control, in the order in which they stand, and each has a name."""
    for key in "rk":  # there is something to save and to undo
        page.press(key)
    wanted = ["save", "load", "whole", "kind", "folder", "order"]
    wanted += ["accept", "correct", "refuse", "undo", "next", "previous", "note", "regions", "keys"]
    reached = []
    while "keys" not in reached and len(reached) < 60:
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.name || document.activeElement.tagName"))

    assert [name for name in dict.fromkeys(reached) if name in wanted] == wanted
    nameless = "[...document.querySelectorAll('button, input, select')].filter((each) => !(each.innerText?.trim() || "
    nameless += "each.getAttribute('aria-label') || each.labels?.[0]?.innerText.trim())).length"
    assert page.run(nameless) == 0


@pytest.mark.parametrize("width", [320, 700, 1600])
def test_it_fits_the_screen(page: Page, width: int):
    page.resize(width, 700)
    page.wait_for(f"innerWidth === {width}")
    page.press("c")

    assert page.run("document.documentElement.scrollWidth") <= width
    for control in ("#typed", "#use", "#cancel", "#save", "#list button"):
        left, right = page.run(
            f"(({{left, right}}) => [left, right])(document.querySelector('{control}').getBoundingClientRect())"
        )
        assert 0 <= left < right <= width


@pytest.mark.parametrize("redacted", [False, True])
def test_names_are_text_and_nothing_is_asked_of_any_network(tab: Page, tmp_path: Path, redacted: bool):
    name = "שלום 🏙/</script><!--<script><img src='http://127.0.0.1:8471/stolen.png' onerror='document.title = 1'>"
    open_new(tab, write_review(tmp_path, prefix=name, redacted=redacted))
    for key in "jkarc":
        tab.press(key)

    assert tab.complaints() == []
    assert tab.requests() == []
    assert tab.run("document.title") == "Look and decide · Folio"
    assert "<img src=" in tab.text("#list")


def test_a_complaint_and_a_request_would_be_noticed(tab: Page, tmp_path: Path):
    tab.events.clear()
    (tmp_path / "asks.html").write_text("<!doctype html><img src='http://127.0.0.1:8471/x.png'><script>nonsense()</script>")
    tab.open(tmp_path / "asks.html")

    assert tab.requests() == ["http://127.0.0.1:8471/x.png"]
    assert "nonsense" in "".join(tab.complaints())
