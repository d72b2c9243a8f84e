"""A Hugging Face hub on 127.0.0.1: says which version of a file it has, gives it whole or in part, and breaks when told to."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub holds, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By `OWNER/REPOSITORY/FILE`."""

    break_after: int | None = None
    """Close the connection after so many bytes of a file; after that the hub is down."""

    altered: bool = False
    """Give other bytes than were announced."""

    status: int = 200
    """Answer everything with this if it is another."""

    a_hub: bool = True
    """False: any web server, which sends neither commit nor ETag."""

    store: "Hub | None" = None
    """Another server that large files are redirected to, as the real hub does."""

    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and range of each request."""

    url: str = ""
    """Where it listens."""

    user_agents: set[str] = field(default_factory=set)

    tokens: set[str | None] = field(default_factory=set)
    """What the requests were authorised with."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        hub.user_agents.add(self.headers["User-Agent"])
        hub.tokens.add(self.headers.get("Authorization"))
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = hub.files.get(f"{repository}/{name}") if revision in ("main", COMMIT) else None
        if hub.status != 200 or content is None:
            self.send_response(hub.status if hub.status != 200 else 404)
            self.send_header("X-Error-Code", "EntryNotFound" if hub.status == 200 else "Down")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if hub.store:
            self._redirect(hub.store, content)
        else:
            self._send(content)

    def _redirect(self, store: Hub, content: bytes) -> None:
        self.send_response(302)
        self.send_header("Location", f"{store.url}{self.path}")
        self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes) -> None:
        hub = self.hub
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if hub.a_hub:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.altered:
            body = bytes([body[0] ^ 1]) + body[1:]
        if hub.break_after is not None:
            body, hub.status = body[: hub.break_after], 503
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as the library calls it
        pass


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of 127.0.0.1 while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfOneHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
