"""A store that misbehaves: an HTTP proxy on 127.0.0.1 in front of an S3 server, which fails requests after a plan.

The request goes on as the client signed it, with the Host it named, so the signature stays good.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit


class Fault(StrEnum):
    """What can happen to a request."""

    ERROR_500 = "answered 500, not forwarded"
    ERROR_503 = "answered 503, not forwarded"
    ERROR_429 = "answered 429, not forwarded"
    LOST = "forwarded, answer dropped"
    RESET_BEFORE = "connection reset, not forwarded"
    RESET_DURING = "forwarded, connection reset in the middle of the answer"
    STALL = "held up before it is forwarded"


ANSWERS: Final = {
    Fault.ERROR_500: (500, "InternalError"),
    Fault.ERROR_503: (503, "SlowDown"),
    Fault.ERROR_429: (429, "TooManyRequests"),
}

SHARES: Final[Mapping[Fault, float]] = {
    Fault.ERROR_500: 0.05,
    Fault.ERROR_503: 0.05,
    Fault.ERROR_429: 0.05,
    Fault.LOST: 0.10,
    Fault.RESET_BEFORE: 0.025,
    Fault.RESET_DURING: 0.025,
    Fault.STALL: 0.01,
}
"""Of all requests: three in ten fail, of which an eighth part was done nevertheless."""

Plan = Callable[[str, str], Fault | None]
"""Chooses what happens to a request, from its method and path; called by one thread at a time."""


Guard = Callable[[str, str, Mapping[str, str]], bool]
"""Tells from its method, path and headers whether a request is allowed."""


def seeded(seed: int, shares: Mapping[Fault, float] = SHARES) -> Plan:
    """Fail requests at random, always the same for the same sequence of requests."""
    dice = random.Random(seed)
    kinds = [*shares, None]
    weights = [*shares.values(), 1 - sum(shares.values())]
    return lambda method, path: dice.choices(kinds, weights)[0]


def once(fault: Fault, method: str, part_of_path: str) -> Plan:
    """Fail the first request with this method and something in its path."""
    left = [fault]

    def plan(found: str, path: str) -> Fault | None:
        return left.pop() if left and found == method and part_of_path in path else None

    return plan


class Proxy:
    """A server in front of `endpoint`, while the block runs."""

    def __init__(
        self, endpoint: str, plan: Plan, *, stall_s: float = 3.0, allowed: Guard = lambda method, path, headers: True
    ) -> None:
        self.upstream = urlsplit(endpoint).netloc
        self.stall_s = stall_s
        self.faults: Counter[Fault] = Counter()
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request that came."""
        self._plan = plan
        self._allowed = allowed
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def allows(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Tell whether a request is allowed."""
        with self._lock:
            return self._allowed(method, path, headers)

    def choose(self, method: str, path: str) -> Fault | None:
        """Note a request and say what is to happen to it."""
        with self._lock:
            self.requests.append((method, path))
            fault = self._plan(method, path)
            if fault is not None:
                self.faults[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client, or a server behind, that went away: both belong to the trade."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _pass_on(self) -> None:
        proxy = self.server.proxy
        fault = proxy.choose(self.command, self.path)
        if fault == Fault.RESET_BEFORE:
            self._reset()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refused = fault in ANSWERS and ANSWERS[fault]
        if not proxy.allows(self.command, self.path, self.headers):
            refused = (403, "AccessDenied")
        if refused:
            status, code = refused
            error = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}, by the proxy</Message></Error>"
            self._answer(status, {"Content-Type": "application/xml"}, error.encode())
            return
        if fault == Fault.STALL:
            time.sleep(proxy.stall_s)
        try:
            status, headers, data = self._forward(proxy.upstream, body)
        except (OSError, http.client.HTTPException):  # killed, or just being started
            self._reset()
            return
        if fault == Fault.LOST:
            self.close_connection = True
        else:
            self._answer(status, headers, data, cut=fault == Fault.RESET_DURING)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815  as the base class looks for them

    def _forward(self, upstream: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(upstream)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            return response.status, kept, data
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        if self.command == "HEAD":
            data = b""  # and Content-Length says how long it would be
        elif status != 204:
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(data))
        lines = [f"HTTP/1.1 {status} {http.client.responses[status]}", *(f"{name}: {value}" for name, value in headers.items())]
        answer = "\r\n".join([*lines, "", ""]).encode("latin-1") + data
        self.wfile.write(answer[: len(answer) // 2] if cut else answer)
        if cut:
            self._reset()

    def _reset(self) -> None:
        """Close the connection with RST, as a machine does that has forgotten it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002  the base class calls it so
        """Say nothing."""
