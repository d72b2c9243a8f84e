"""Chromium for tests: opens pages from disk, presses keys, clicks, and tells what a page logged and asked for.

It is driven by the DevTools protocol over one websocket, https://chromedevtools.github.io/devtools-protocol/.
"""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-dev-shm-usage"),
]
PATIENCE_S = 60.0
LEFT = "Inspected target navigated or closed"


class LeftPageError(Exception):
    """The page was left before it could answer."""


class Page:
    """One tab. What it logs and asks for is noted from the beginning."""

    def __init__(self, socket: ClientConnection, session: str, saved: Path) -> None:
        self._socket = socket
        self._session = session
        self.saved = saved
        self._sent = 0
        self.events: list[dict[str, Any]] = []

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "sessionId": self._session, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if message.get("id") == self._sent:
                if message.get("error", {}).get("message") == LEFT:
                    raise LeftPageError
                assert "error" not in message, message["error"]
                return message["result"]
            self.events.append(message)

    def open(self, page: Path) -> None:
        self.command("Page.navigate", url=page.as_uri())
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page."""
        done = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def reload(self) -> None:
        self.command("Page.reload")

    def wait_for(self, condition: str) -> None:
        wait_until(lambda: self._holds(condition), condition)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.run(f"Boolean({condition})"))
        except LeftPageError:  # asked while one page gave way to the next
            return False

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key: str) -> None:
        """A key as a person presses it: it goes to whatever has the focus."""
        known = {
            "Enter": ("Enter", 13, "\r"),
            "Escape": ("Escape", 27, ""),
            "Tab": ("Tab", 9, ""),
            "ArrowDown": ("ArrowDown", 40, ""),
        }
        code, number, text = known.get(key, (f"Key{key.upper()}", ord(key.upper()[0]), key))
        pressed = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.command("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": text} if text else {}))
        self.command("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def type(self, text: str) -> None:
        """In place of what is selected in the field that has the focus."""
        self.command("Input.insertText", text=text)

    def click(self, selector: str, *, right: float = 0.5, down: float = 0.5) -> None:
        """Click into an element, at shares of its width and height."""
        box = self._box(selector)
        self._click(box[0] + right * box[2], box[1] + down * box[3])

    def click_at(self, selector: str, x: float, y: float) -> None:
        """Click into an element, at pixels from its upper left corner."""
        box = self._box(selector)
        self._click(box[0] + x, box[1] + y)

    def _box(self, selector: str) -> list[float]:
        return self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); found.scrollIntoView({{block: 'center'}});"
            "const {x, y, width, height} = found.getBoundingClientRect(); return [x, y, width, height]; })()"
        )

    def _click(self, x: float, y: float) -> None:
        at = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.command("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.command("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def resize(self, width: int, height: int) -> None:
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def choose_file(self, selector: str, file: Path) -> None:
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def complaints(self) -> list[str]:
        """Errors and warnings on the console, those of the content security policy among them."""
        self.run("0")  # take up what came meanwhile
        logged = [
            event["params"] for event in self.events if event.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled")
        ]
        thrown = [event["params"] for event in self.events if event.get("method") == "Runtime.exceptionThrown"]
        bad = [entry for entry in logged if entry.get("entry", entry).get("level", entry.get("type")) in ("error", "warning")]
        return [json.dumps(entry) for entry in bad + thrown]

    def requests(self) -> list[str]:
        """What it asked for, but for itself and what stands in it."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in sent if each["type"] != "Document"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]


def wait_until(happens: Callable[[], bool], what: str = "") -> None:
    until = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < until, f"never came true: {what}"
        time.sleep(0.05)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start Chromium with a profile below `folder`; what pages save lies in `folder/saved`."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    profile, saved = folder / "profile", folder / "saved"
    saved.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with connect(_address(profile / "DevToolsActivePort", process), max_size=None) as socket:
            yield _first_page(socket, saved)
            with suppress(Exception):  # it may close the socket before it answers
                socket.send(json.dumps({"id": 1_000_000, "method": "Browser.close"}))
            process.wait(30)
    finally:
        process.kill()
        process.wait(30)


def _address(file: Path, process: subprocess.Popen[bytes]) -> str:
    wait_until(lambda: process.poll() is not None or (file.exists() and len(file.read_text().split()) == 2), "Chromium starts")
    assert process.poll() is None, "Chromium ended"
    port, path = file.read_text().split()
    return f"ws://127.0.0.1:{port}{path}"


def _first_page(socket: ClientConnection, saved: Path) -> Page:
    def ask(method: str, **params: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": 0, "method": method, "params": params}))
        while (message := json.loads(socket.recv(timeout=PATIENCE_S))).get("id") != 0:
            pass
        return message["result"]

    ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
    target = ask("Target.createTarget", url="about:blank")["targetId"]
    page = Page(socket, ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"], saved)
    for domain in ("Page", "Runtime", "Log", "Network"):
        page.command(f"{domain}.enable")
    return page
