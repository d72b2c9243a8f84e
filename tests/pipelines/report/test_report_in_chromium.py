"""The page in a real browser: it draws, its policy hinders nothing of ours, and it asks nothing of any network."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.report.page import write_report
from tests.pipelines.report.results_folders import SETTINGS, write_results_folder

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--virtual-time-budget=8000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"),
]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a browser did with a page."""

    pixels: np.ndarray
    console: str
    requests: list[str]
    """URLs that the page asked for; what the browser asks for on its own account is not among them."""


def visit(page: Path, folder: Path) -> Visit:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    folder.mkdir()
    shot, log = folder / "shot.png", folder / "net.json"
    own = [
        f"--user-data-dir={folder / 'profile'}",
        f"--screenshot={shot}",
        f"--log-net-log={log}",
        "--window-size=1200,2600",
    ]
    done = subprocess.run([browser, *FLAGS, *own, page.as_uri()], check=True, capture_output=True, text=True, timeout=120)
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    asked = [event["url"] for event in events if "url" in event and "file://" in event.get("network_isolation_key", "")]
    return Visit(pixels=np.asarray(Image.open(shot).convert("RGB")), console=console, requests=asked)


def count_pixels(pixels: np.ndarray, colour: str) -> int:
    wanted = np.array(list(bytes.fromhex(colour.removeprefix("#"))))
    return int((abs(pixels.astype(int) - wanted).max(axis=2) <= 2).sum())


def test_a_request_of_a_page_would_be_noticed(tmp_path: Path):
    page = tmp_path / "asks.html"
    page.write_text("<!doctype html><img src='http://127.0.0.1:8471/x.png'>")

    assert visit(page, tmp_path / "visit").requests == ["http://127.0.0.1:8471/x.png"]


def test_the_report_draws_everything_and_asks_nothing_of_any_network(tmp_path: Path):
    """The names of its photos would ask for a picture if they were taken as HTML."""
    write_results_folder(tmp_path, prefix="<img src='http://127.0.0.1:8471/stolen.png'>")
    report = write_report(tmp_path, settings=SETTINGS)

    seen = visit(report, tmp_path / "visit")

    assert seen.requests == []
    assert "document idle" in seen.console  # Bokeh has drawn
    assert "Content Security Policy" not in seen.console
    assert "rror" not in seen.console
    for colour in ("#c9c2b2", "#c2410c"):  # photos of the map; the line and cross of the wrong answer
        assert count_pixels(seen.pixels, colour) > 20
