"""Client: the thread that carries all connections of a disk to its server, and drives the session."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic, sleep
from typing import Any

from tcmu_core import StorageTimeout
from tcmu_nbd.codec import Export
from tcmu_nbd.config import Config
from tcmu_nbd.constants import ExportFlag
from tcmu_nbd.errors import ProtocolError, Refused
from tcmu_nbd.link import Address, Link
from tcmu_nbd.request import Request
from tcmu_nbd.session import Log, Session, State
from tcmu_nbd.transmission import Done

CONNECT_TIMEOUT = 10.0  # seconds for one attempt: addresses, TLS and negotiation of all connections
FEW = 1  # requests under way, below which one more is sent at once
MANY = 6  # requests under way, from which on answers are let gather
GATHER = 40e-6  # seconds that they gather: waking two threads for each answer takes longer
TICK = 0.05  # seconds between looks at the clock while something is under way


class Attempt:
    """One attempt to connect: the first connection over whichever address answers, then the others over it too."""

    def __init__(self, client: Client, now: float) -> None:
        self.deadline = now + CONNECT_TIMEOUT
        self._client = client
        self._addresses: deque[Address] = deque()
        self._address: Address | None = None
        self._links: dict[Link, Export | None] = {}
        self._error: Exception = OSError(errno.EHOSTUNREACH, "the name of the NBD server has no address")
        self._over = False

    def resolved(self, found: list[Address] | Exception) -> None:
        """Begin with the addresses of the server."""
        if isinstance(found, Exception):
            self._fail(found)
        else:
            self._addresses.extend(found)
            self._next()

    def ready(self, link: Link, export: Export) -> None:
        """A connection has been negotiated: open the others, or be done."""
        self._links[link] = export
        several = export.flags & ExportFlag.CAN_MULTI_CONN
        missing = (self._client.config.connections if several else 1) - len(self._links)
        for _ in range(missing):
            self._open()
        if not self._over and all(self._links.values()):
            self._over = True
            self._client.connected(list(self._links), export)

    def lost(self, link: Link, error: Exception) -> None:
        """A connection could not be made: try the next address, or give up."""
        self._links.pop(link, None)
        if self._links or isinstance(error, (Refused, ProtocolError)) or not isinstance(error, OSError):
            self._fail(error)
        else:
            self._error = error
            self._next()

    def expire(self) -> None:
        """Give up: it has taken too long."""
        self._fail(StorageTimeout(f"the NBD server did not answer within {CONNECT_TIMEOUT:g} seconds"))

    def close(self) -> None:
        """End all of it."""
        self._over = True
        for link in self._links:
            link.close()
        self._links.clear()

    def _next(self) -> None:
        if self._over:
            return
        if not self._addresses:
            self._fail(self._error)
            return
        self._address = self._addresses.popleft()
        self._open()

    def _open(self) -> None:
        if self._over:
            return
        assert self._address is not None
        link = self._client.new_link()
        self._links[link] = None
        try:
            link.connect(self._address)
        except OSError as error:
            self.lost(link, error)

    def _fail(self, error: Exception) -> None:
        if not self._over:
            self.close()
            self._client.failed(error)


class Client:
    """A disk's connections. `start` and `stop` block; `submit` may be called from any thread."""

    def __init__(self, config: Config, log: Log) -> None:
        self.config = config
        self._log = log
        self._context: ssl.SSLContext | None = None
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._lock = threading.Lock()  # of the session and its connections; the thread has it whenever it does not wait
        self._asleep = self._idle = False
        self._requests: deque[Request] = deque()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._links: list[Link] = []
        self._attempt: Attempt | None = None
        self._opened: Future[Export] = Future()
        self._running = True
        self._thread: threading.Thread | None = None
        self.session = Session(
            self._connect, log, timeout=config.timeout, reconnect=config.reconnect, replay=config.replay
        )

    # -- from other threads -----------------------------------------------------------------------------------------

    def start(self, name: str) -> Export:
        """Connect and return what the server says of the export; `name` is the thread's.

        Raises:
            ConfigError, OSError, StorageTimeout: why it can't be reached.
        """
        try:
            self._context = self.config.context()
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
            self._post(self._connect)
            return self._opened.result()
        except BaseException:
            self.stop()
            raise

    def submit(self, request: Request) -> Future[Any]:
        """Have a request carried out; returns its Future."""
        # One that is alone is sent from here, which spares it the wait for another thread. Where more are under way the
        # thread gathers them: then a system call sends several.
        if self.session.under_way < FEW and self._lock.acquire(blocking=False):
            try:
                self.session.submit(request, monotonic())
                unsent = [link for link in self._links if not link.send_at_once()]
            finally:
                self._lock.release()
            if not unsent:
                if self._idle:
                    self._idle = False
                    os.eventfd_write(self._wake, 1)  # to look at the clock from now on
                return request.future
        else:
            self._requests.append(request)
        if self._asleep:
            os.eventfd_write(self._wake, 1)
        return request.future

    def stop(self) -> None:
        """Take leave of the server, and end the thread; what is under way fails."""
        if self._thread is not None:
            self._post(self._stop)
            self._thread.join()
            self._thread = None
        if self._wake >= 0:
            self._selector.close()
            os.close(self._wake)
            self._wake = -1

    def _post(self, call: Callable[..., object], *args: Any) -> None:
        self._calls.append((call, args))
        if self._asleep:
            os.eventfd_write(self._wake, 1)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        ticked = 0.0
        while self._running:
            try:
                # Announce sleep first, then look: a request in between writes the eventfd, none is missed.
                self._asleep = True
                if self._requests or self._calls:
                    timeout: float | None = 0
                else:
                    timeout = TICK if self.session.busy or self._attempt is not None else None
                self._idle = timeout is None
                events = self._selector.select(timeout)
                self._asleep = self._idle = False
                with self._lock:
                    for key, mask in events:
                        key.data(mask)
                    for _ in range(len(self._calls)):
                        call, args = self._calls.popleft()
                        call(*args)
                    now = monotonic()
                    submit = self.session.submit
                    for _ in range(len(self._requests)):
                        submit(self._requests.popleft(), now)
                    if now >= ticked + TICK:
                        ticked = now
                        self._tick(now)
                    for link in self._links:
                        link.flush()
                if self.session.under_way >= MANY:
                    sleep(GATHER)
            except Exception as error:  # a fault of ours: its connections are not to be trusted, the disk goes on
                self._log.exception("the NBD client failed")
                with self._lock:
                    self.session.lost(error, monotonic())
        self.session.close()

    def _tick(self, now: float) -> None:
        if self._attempt is not None and self._attempt.deadline <= now:
            self._attempt.expire()
        if self._opened.done():
            self.session.tick(now)

    def _woken(self, _mask: int) -> None:
        os.eventfd_read(self._wake)

    def _stop(self) -> None:
        self._running = False
        if self._attempt is not None:
            self._attempt.close()
            self._attempt = None
        for link in self._links:
            link.disconnect()
        while self._requests:
            self.session.submit(self._requests.popleft(), monotonic())

    # -- connecting -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._attempt = attempt = Attempt(self, monotonic())
        if self.config.path:
            attempt.resolved([(socket.AF_UNIX, self.config.path)])
        else:
            # A name server may take its time: it must not hold up the clock.
            threading.Thread(target=self._resolve, args=(attempt,), name="tcmu-nbd-resolve", daemon=True).start()

    def _resolve(self, attempt: Attempt) -> None:
        found: list[Address] | Exception
        try:
            found = [
                (family, place)
                for family, _, _, _, place in socket.getaddrinfo(
                    self.config.host, self.config.port, type=socket.SOCK_STREAM
                )
            ]
        except Exception as error:  # UnicodeError, too: whatever it is, somebody waits for it
            found = OSError(errno.EHOSTUNREACH, f"{self.config.host}: {getattr(error, 'strerror', None) or error}")
        self._post(attempt.resolved, found)

    def new_link(self) -> Link:
        """Return a link that is not connected yet."""
        return Link(self, self._selector, self.config, self._context)

    def connected(self, links: list[Link], export: Export) -> None:
        """An attempt has succeeded."""
        self._attempt = None
        self._links = links
        self.session.connected(list(links), export, monotonic())
        if not self._opened.done():
            self._opened.set_result(export)
        if self.session.state is State.CONNECTING:  # it was refused
            self._links = []

    def failed(self, error: Exception) -> None:
        """An attempt has failed."""
        self._attempt = None
        if self._opened.done():
            self.session.failed(error, monotonic())
        else:
            self._opened.set_exception(error)

    # -- what links tell --------------------------------------------------------------------------------------------

    def ready(self, link: Link, export: Export) -> None:
        """A link has been negotiated."""
        if self._attempt is not None:
            self._attempt.ready(link, export)

    def lost(self, link: Link, error: Exception) -> None:
        """A link is of no use any more."""
        if self._attempt is not None:
            self._attempt.lost(link, error)
        else:
            self._links = []
            self.session.lost(error, monotonic())

    def answered(self, done: Done) -> None:
        """Requests have ended."""
        now = monotonic()
        for request, error in done:
            self.session.answered(request, error, now)
