"""A tap on the wire: what a client has sent to a portal, counted without any code of ours that serves disks."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator

COMMAND, RESPONSE, DATA_IN, NOP_OUT = 0x01, 0x21, 0x25, 0x00
BHS = 48
_STATUS = 0x01  # a Data-In that brings the status, too (RFC 7143 11.7.3)


class Tap:
    """Passes connections on to a portal; `sent` are commands by operation code, `read` bytes of Data-In with GOOD.

    `ended` are commands that were answered. PDUs without digests.
    """

    def __init__(self, portal: str) -> None:
        host, _, port = portal.rpartition(":")
        self._portal = host, int(port)
        self.sent: Counter[int] = Counter()
        self.read = 0
        self.ended = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._portal)
            self._sockets += [client, server]
            for ends in ((client, server, self._asked), (server, client, self._answered)):
                self._threads.append(threading.Thread(target=_passed_on, args=ends))
                self._threads[-1].start()

    def _asked(self, header: bytes) -> None:
        if header[0] & 0x3F == COMMAND:
            self.sent[header[32]] += 1

    def _answered(self, header: bytes) -> None:
        if header[0] == DATA_IN:
            self.read += int.from_bytes(header[5:8], "big")
        self.ended += header[0] == RESPONSE or (header[0] == DATA_IN and bool(header[1] & _STATUS))

    def close(self) -> None:
        """Take no more, and wait until all that was taken has been passed on."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        while self._threads:
            self._threads.pop().join()
        for sock in self._sockets:
            sock.close()


def _passed_on(source: socket.socket, goal: socket.socket, seen: object) -> None:
    """Pass on what comes, and have each PDU's header seen, until the source ends."""
    assert callable(seen)
    with contextlib.suppress(OSError):
        rest = b""
        while data := source.recv(1 << 18):
            goal.sendall(data)
            rest += data
            while len(rest) >= BHS:
                length = int.from_bytes(rest[5:8], "big")
                size = BHS + rest[4] * 4 + (length + 3 & ~3)  # RFC 7143 11.2.1
                if len(rest) < size:
                    break
                seen(rest[:BHS])
                rest = rest[size:]
    with contextlib.suppress(OSError):
        goal.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def tapped(portal: str) -> Iterator[Tap]:
    """Tap a portal; what is counted is complete when the context has ended."""
    tap = Tap(portal)
    try:
        yield tap
    finally:
        tap.close()
