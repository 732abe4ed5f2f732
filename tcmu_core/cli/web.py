"""The HTTP side of `tcmu metrics`: three paths that are read and nothing else, and who may ask for them."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import ipaddress
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from tcmu_core.cli.snapshot import Snapshots

PATHS = "/ (a page), /status.json and /metrics"
REQUESTS = 64  # at a time: more are closed unanswered
PATIENCE = 10.0  # seconds that a client may say, or take, nothing
HEADERS = [
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
]
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Site:
    """The WSGI application: the page, the JSON that it polls, and the metrics."""

    def __init__(self, metrics: WSGIApplication, snapshots: Snapshots, *, loopback: bool) -> None:
        self._metrics = metrics
        self._snapshots = snapshots
        self._loopback = loopback
        self._page = importlib.resources.files("tcmu_core").joinpath("data/page/index.html").read_bytes()
        self._policy = _policy(self._page)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self._loopback and not names_loopback(environ.get("HTTP_HOST", "")):
            # Another name of this address was made by somebody whose page would read ours (DNS rebinding).
            text = "The host of the URL has to be localhost, or an address of this machine's loopback.\n"
            return _text(start_response, "421 Misdirected Request", text)  # RFC 9110 15.5.20
        if path not in ("/", "/status.json", "/metrics"):
            return _text(start_response, "404 Not Found", f"There is {PATHS}.\n")
        if method not in ("GET", "HEAD"):
            text = "This is read with GET or HEAD, and nothing else.\n"
            return _text(start_response, "405 Method Not Allowed", text, ("Allow", "GET, HEAD"))
        body: Iterable[bytes]
        if path == "/metrics":
            body = self._scraped(environ, start_response)
        elif path == "/":
            body = _answer(start_response, "200 OK", "text/html; charset=utf-8", self._page, self._policy)
        else:
            body = _answer(start_response, "200 OK", "application/json", self._snapshots.latest(), NOTHING)
        return body if method == "GET" else []

    def _scraped(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """Return the metrics, with the headers that all have here."""
        said: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            said.append((status, headers))
            return lambda data: None

        body = b"".join(self._metrics({**environ, "REQUEST_METHOD": "GET"}, start))
        status, headers = said[-1]
        more = [("Content-Length", str(len(body))), ("Content-Security-Policy", NOTHING), *HEADERS]
        start_response(status, [*headers, *more])
        return [body]


def _policy(page: bytes) -> str:
    """Return the Content-Security-Policy of a page: its own script and style, by their hashes, and our JSON (CSP 3)."""

    def hashed(tag: bytes) -> str:
        found = re.search(rb"<%s>(.*)</%s>" % (tag, tag), page, re.DOTALL)
        assert found is not None
        return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"

    return (
        f"{NOTHING}; script-src {hashed(b'script')}; style-src {hashed(b'style')}; connect-src 'self'; img-src data:; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def names_loopback(host: str) -> bool:
    """Return whether a Host header (RFC 9110 7.2) names this machine's loopback, by an address or as localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _answer(
    start_response: StartResponse, status: str, kind: str, body: bytes, policy: str, *more: tuple[str, str]
) -> list[bytes]:
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Content-Security-Policy", policy)]
    start_response(status, [*headers, *HEADERS, *more])
    return [body]


def _text(start_response: StartResponse, status: str, text: str, *more: tuple[str, str]) -> list[bytes]:
    return _answer(start_response, status, "text/plain; charset=utf-8", text.encode(), NOTHING, *more)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


class Server(ThreadingMixIn, WSGIServer):
    """Answers each request in a thread of its own, so many at a time.

    Raises:
        OSError: nothing can listen at `host` and `port`.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self._free = threading.BoundedSemaphore(REQUESTS)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, _, _, _, address = found[0]
            super().__init__((str(address[0]), port), _Handler)
        except OSError as error:
            raise OSError(error.errno, f"can't listen at {host}, port {port}: {error.strerror}") from None

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, where one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let the next one come."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away, or came too slowly."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
