"""A web server for the tests: it does ranges as RFC 9110 has them, and what it is told to do wrong."""

from __future__ import annotations

import random
import re
import ssl
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SIZE = 256 << 10
MODIFIED, DATE = "Mon, 05 Jan 2026 10:00:00 GMT", "Mon, 05 Jan 2026 11:00:00 GMT"

Fault = Callable[["Answer"], None]


class Answer(BaseHTTPRequestHandler):
    """One connection; the server's `web` says what is served."""

    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, format: str, *args: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return DATE

    def do_GET(self) -> None:
        web = self.web
        with web.lock:
            web.requests.append(dict(self.headers))
            web.paths.append(self.path)
            fault = web.faults.popleft() if web.faults else None
        if fault is not None:
            fault(self)
        else:
            self.serve()

    def say(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def serve(self, *, cut: int | None = None, **headers: str) -> None:
        """Answer with the range; `cut`: hang up after so many bytes of it."""
        web = self.web
        said = {name: value for name, value in (("ETag", web.etag), ("Last-Modified", web.modified)) if value}
        said = {**said, **headers}
        condition = self.headers.get("If-Range")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None or not web.ranges or (condition is not None and condition not in (web.etag, web.modified)):
            self.say(200, b"", length=len(web.data), **said)  # nobody reads it
            self.hang_up()
            return
        first, last = int(match[1]), min(int(match[2]), len(web.data) - 1)
        if first >= len(web.data):
            self.say(416, Content_Range=f"bytes */{len(web.data)}")
            return
        body = web.data[first : last + 1]
        said = {"Content-Range": f"bytes {first}-{last}/{len(web.data)}", **said}
        if cut is None:
            self.say(206, body, **said)
        else:
            self.say(206, body[:cut], length=len(body), **said)
            self.hang_up()


class Web:
    """A server with one file: `data`, and the validators that it tells. `faults` are done by the next requests."""

    def __init__(self, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.data = random.Random(1).randbytes(SIZE)
        self.etag, self.modified = '"one"', MODIFIED
        self.ranges = True
        self.requests: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.faults: deque[Fault] = deque()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), type("Of", (Answer,), {"web": self}))
        self.server.daemon_threads = True
        self.scheme = "http"
        if context is not None:
            self.scheme = "https"
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # no tracebacks of who hangs up
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/disk.img"

    def fetched(self) -> list[tuple[int, int]]:
        """Return the ranges that were asked for since the disk was opened: (first byte, end)."""
        found = [re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"]) for headers in self.requests[1:]]
        return [(int(match[1]), int(match[2]) + 1) for match in found if match is not None]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself; its key lies beside it."""
    place = tmp_path_factory.mktemp("tls")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=test"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True, cwd=place)
    return place / "cert.pem"


@pytest.fixture
def encrypted(certificate: Path) -> Iterator[Web]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server = Web(context)
    yield server
    server.close()
