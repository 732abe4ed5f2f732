"""Link: one non-blocking socket to a server, from connecting over TLS and negotiation to its last reply."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import ssl
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from tcmu_nbd import codec
from tcmu_nbd.codec import Export
from tcmu_nbd.config import Config
from tcmu_nbd.constants import Cmd
from tcmu_nbd.errors import Lost
from tcmu_nbd.handshake import Handshake
from tcmu_nbd.request import Request
from tcmu_nbd.transmission import Done, Transmission

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
GREETING_ROOM = 16 << 10  # bytes received at once while negotiating
PARTS = 64  # pieces of one sendmsg
TLS_PIECE = 256 << 10  # bytes handed to TLS at once
AT_ONCE = 8  # times that are received from one connection before it is another's turn

# sockaddr: (family, address), as `socket.socket(family).connect(address)` takes them
Address = tuple[socket.AddressFamily, Any]


class Owner(Protocol):
    """Who hears of a link."""

    def ready(self, link: Link, export: Export) -> None:
        """It has been negotiated."""

    def lost(self, link: Link, error: Exception) -> None:
        """It is of no use any more, and closed."""

    def answered(self, done: Done) -> None:
        """Requests have ended."""


class Link:
    """One connection. All of it runs on one thread, driven by `selector`; nothing here blocks."""

    def __init__(
        self, owner: Owner, selector: selectors.BaseSelector, config: Config, context: ssl.SSLContext | None
    ) -> None:
        self._owner = owner
        self._selector = selector
        self._config = config
        self._context = context
        self._sock: socket.socket | None = None
        self._events = 0
        self._out: deque[bytes | memoryview] = deque()
        self._handshake = Handshake(config.export, config.tls)
        self._transmission: Transmission | None = None
        self._step: Callable[[], None] = self._connecting

    def connect(self, address: Address) -> None:
        """Begin to connect; raises OSError if that fails at once."""
        family, place = address
        self._sock = sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = sock.connect_ex(place)
        if code not in (0, errno.EINPROGRESS):
            self.close()
            raise OSError(code, os.strerror(code))
        self._watch(WRITE)

    def send(self, request: Request) -> None:
        """Queue a request; `flush` sends what is queued."""
        assert self._transmission is not None
        self._out.append(self._transmission.send(request))
        if request.data:
            self._out.append(request.data)

    def flush(self) -> None:
        """Send as much of what is queued as the socket takes now."""
        if self._sock is not None and self._out and not self._events & WRITE:
            self._guarded(self._write)

    def send_at_once(self) -> bool:
        """Send what is queued, from any thread; False if the rest, or an error, is left for `flush` to see."""
        sock = self._sock
        if not self._out:
            return True
        if sock is None or self._events & WRITE or isinstance(sock, ssl.SSLSocket):
            return False
        try:
            sent = sock.sendmsg(islice(self._out, PARTS))
        except OSError:
            return False
        self._sent(sent)
        return not self._out

    def disconnect(self) -> None:
        """Tell the server that this is the end, as far as that goes without waiting, and close."""
        if self._sock is not None and self._transmission is not None:
            self._out.append(codec.request(Cmd.DISC, 0))
            with contextlib.suppress(OSError):
                self._write()
        self.close()

    def close(self) -> None:
        """Close the socket; nothing is heard from this link any more."""
        sock, self._sock = self._sock, None
        if sock is not None:
            if self._events:
                self._selector.unregister(sock)
                self._events = 0
            sock.close()

    # -- events -----------------------------------------------------------------------------------------------------

    def event(self, _mask: int) -> None:
        """Go on: the socket is ready."""
        if self._sock is not None:
            self._guarded(self._step)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (ssl.SSLWantReadError, BlockingIOError):
            self._watch(READ | (WRITE if self._out else 0))
        except ssl.SSLWantWriteError:
            self._watch(READ | WRITE)
        except Exception as error:  # whatever it is: this connection is over, and the owner hears why
            if self._sock is not None:
                self.close()
                self._owner.lost(self, _explained(error))

    def _watch(self, events: int) -> None:
        sock = self._sock
        if sock is None or events == self._events:
            return
        if self._events:
            self._selector.modify(sock, events, self.event)
        else:
            self._selector.register(sock, events, self.event)
        self._events = events

    def _connecting(self) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self._step = self._negotiate
        self._watch(READ)

    def _encrypt(self) -> None:
        assert isinstance(self._sock, ssl.SSLSocket)
        self._sock.do_handshake()
        self._handshake.started_tls()
        self._step = self._negotiate
        self._push()
        self._watch(READ | (WRITE if self._out else 0))

    def _negotiate(self) -> None:
        assert self._sock is not None
        if self._out:
            self._write()
        data = self._sock.recv(GREETING_ROOM)
        if not data:
            raise Lost("the NBD server closed the connection while we were negotiating")
        handshake = self._handshake
        handshake.receive(data)
        self._push()
        if handshake.wants_tls:
            self._start_tls()
        elif handshake.export is not None:
            self._transmission = Transmission(handshake.export)
            self._step = self._transfer
            self._owner.ready(self, handshake.export)
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            self._step()

    def _push(self) -> None:
        """Send what the negotiation has to say."""
        said = self._handshake.take()
        if said:
            self._out.append(said)
            self._write()

    def _start_tls(self) -> None:
        assert self._context is not None
        assert self._sock is not None
        if self._out:  # the request for TLS itself: it has been answered, so it has been sent
            raise Lost("the NBD server answered before it was asked")
        plain = self._sock
        self._selector.unregister(plain)
        self._events = 0
        self._sock = self._context.wrap_socket(
            plain, server_hostname=self._config.server_name, do_handshake_on_connect=False
        )
        self._step = self._encrypt
        self._watch(READ | WRITE)
        self._encrypt()

    # -- transfer ---------------------------------------------------------------------------------------------------

    def _transfer(self) -> None:
        if self._events & WRITE:
            self._write()
        sock, transmission = self._sock, self._transmission
        assert sock is not None
        assert transmission is not None
        encrypted = isinstance(sock, ssl.SSLSocket)
        for _ in range(AT_ONCE):
            room = transmission.room()
            count = sock.recv_into(room)
            if not count:
                raise Lost
            done = transmission.received(count)
            if done:
                self._owner.answered(done)
            if self._sock is None:
                return
            if encrypted:
                if not sock.pending():  # type: ignore[attr-defined]  # it is of ssl
                    return
            elif count < len(room):
                return
        if encrypted and sock.pending():  # type: ignore[attr-defined]  # likewise
            self._watch(READ | WRITE)  # what TLS holds wakes nobody: a writable socket does

    def _write(self) -> None:
        """Send what is queued; watch for the rest."""
        out, sock = self._out, self._sock
        while out and sock is not None:
            try:
                if isinstance(sock, ssl.SSLSocket):
                    if len(out) > 1:
                        _join(out)
                    sent = sock.send(out[0])
                else:
                    sent = sock.sendmsg(islice(out, PARTS))
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._watch(READ | WRITE)
                return
            self._sent(sent)
        if self._events & WRITE:
            self._watch(READ)

    def _sent(self, count: int) -> None:
        """Forget so many bytes of what is queued."""
        out = self._out
        while out and count >= len(out[0]):
            count -= len(out.popleft())
        if count:
            out[0] = memoryview(out[0])[count:]


def _join(out: deque[bytes | memoryview]) -> None:
    """Make one piece of the first few: each that is handed to TLS is a record, and each of these a system call."""
    taken = [out.popleft()]
    total = len(taken[0])
    while out and total + len(out[0]) <= TLS_PIECE:
        total += len(out[0])
        taken.append(out.popleft())
    out.appendleft(taken[0] if len(taken) == 1 else b"".join(taken))


def _explained(error: Exception) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        return OSError(errno.EACCES, f"the NBD server's certificate is not good: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return OSError(errno.EPROTO, f"TLS with the NBD server failed: {error.reason or error}")
    return error
