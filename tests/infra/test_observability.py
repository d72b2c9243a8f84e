import io
import json
import logging
import sys
import threading
import time

import pytest

from infra.observability import Stopwatch, configure_logging, log_fields, progress, progress_bar


def fail_slowly() -> None:
    time.sleep(0.02)
    raise OSError("closed")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_passes_every_item_on_and_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]):
    assert list(progress([1, 2, 3], total=3, unit="photo", description="encode")) == [1, 2, 3]

    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_bar_says_what_is_done_and_how_much(monkeypatch: pytest.MonkeyPatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)

    with progress_bar(10, unit="photo", description="encode") as bar:
        bar.update(4)

    assert "encode:  40%" in screen.getvalue()
    assert "4/10" in screen.getvalue()


def test_the_stopwatch_adds_up_what_each_stage_took_also_when_it_fails():
    clock = Stopwatch()
    with clock.stage("catalog"):
        pass
    for _ in range(2):
        with pytest.raises(OSError, match="closed"), clock.stage("encode"):
            fail_slowly()

    seconds = clock.seconds()

    assert list(seconds) == ["catalog", "encode"]
    assert seconds["encode"] >= 0.04
    assert seconds["catalog"] < 0.02


def test_at_debug_level_requests_with_their_signatures_are_not_logged(capsys: pytest.CaptureFixture[str]):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("debug")
        logging.getLogger("botocore.auth").debug("Authorization: AWS4-HMAC-SHA256 Credential=")
        logging.getLogger("aiobotocore.endpoint").debug("Authorization: AWS4-HMAC-SHA256 Credential=")
        logging.getLogger("folio.storage").debug("shown")
    finally:
        root.handlers[:], root.level = before, level

    written = capsys.readouterr().err
    assert "shown" in written
    assert "Authorization" not in written


def test_log_lines_from_the_chosen_level_on_go_to_stderr(capsys: pytest.CaptureFixture[str]):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("warning")
        logging.getLogger("folio.build").info("hidden")
        logging.getLogger("folio.build").warning("3 photos set aside")
    finally:
        root.handlers[:], root.level = before, level

    written = capsys.readouterr().err
    assert "WARNING folio.build: 3 photos set aside" in written
    assert "hidden" not in written


def test_as_json_each_line_is_an_object_with_the_ids_of_run_and_segment(capsys: pytest.CaptureFixture[str]):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("info", "json")
        with log_fields(run_id="0011"):
            with log_fields(segment_id="ab"):
                logging.getLogger("folio.build").info("two\nlines of %s", "text")
            logging.getLogger("folio.build").warning("later")
        try:
            fail_slowly()
        except OSError:
            logging.getLogger("folio.build").exception("failed")
    finally:
        root.handlers[:], root.level = before, level

    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "folio.build", "two\nlines of text")
    assert (first["run_id"], first["segment_id"]) == ("0011", "ab")
    assert second["run_id"] == "0011"
    assert "segment_id" not in second
    assert "run_id" not in third
    assert third["traceback"].endswith("OSError: closed")
    assert first["time"] <= second["time"] <= third["time"]


def test_fields_of_one_thread_are_not_those_of_another(capsys: pytest.CaptureFixture[str]):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("info", "json")
        with log_fields(segment_id="ab"):
            other = threading.Thread(target=lambda: logging.getLogger("folio").info("hello"))
            other.start()
            other.join()
    finally:
        root.handlers[:], root.level = before, level

    assert "segment_id" not in json.loads(capsys.readouterr().err)
