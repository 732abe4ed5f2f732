"""Client: carries all connections of a disk to its server, and drives the session.

Where data hooks are called on a loop, that loop does it: a command then waits for no other thread. The selector is an
epoll of its own, whose descriptor stands in the loop's; so whoever waits on the loop's thread, while the loop itself
does not run, can go on in its place. Without a loop a thread does it.
"""

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
from tcmu_core.posix import Completion, Reactor
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


class Driven(Future[Any]):
    """A Future whose end is brought on by whoever waits for it, where `drive` does that."""

    def __init__(self, drive: Callable[[Future[Any]], None]) -> None:
        super().__init__()
        self._drive = drive

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what it failed with; wait for its end before."""
        self._drive(self)
        return super().exception(timeout)

    def result(self, timeout: float | None = None) -> Any:
        """Return what it ended with; wait for its end before."""
        self._drive(self)
        return super().result(timeout)


class Client:
    """A disk's connections. `start` and `stop` block; `submit` may be called from any thread.

    With a `reactor` it is made on the loop's thread, and stopped there.
    """

    def __init__(self, config: Config, log: Log, reactor: Reactor | None = None) -> None:
        self.config = config
        self._reactor = reactor
        self._home = threading.get_ident()  # the loop's thread, where there is a loop
        self._settled = self._scheduled = self._armed = False
        self._ticked = 0.0
        self._log = log
        self._context: ssl.SSLContext | None = None
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._lock = threading.Lock()  # of the session and its connections; the thread has it whenever it does not wait
        self._asleep = reactor is not None  # a loop is woken up always: nobody knows whether it sleeps
        self._idle = False
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
        """Connect and return what the server says of the export; `name` is the thread's. On a loop, `settle` follows.

        Raises:
            ConfigError, OSError, StorageTimeout: why it can't be reached.
        """
        try:
            self._context = self.config.context()
            if self._reactor is not None:
                self._connect()
                while not self._opened.done():
                    self._work(self._selector.select(TICK))
                return self._opened.result()
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
            self._post(self._connect)
            return self._opened.result()
        except BaseException:
            self.stop()
            raise

    def settle(self) -> None:
        """Have the loop carry it from now on, if there is one."""
        if self._reactor is not None:
            self._reactor.post(self._settle)

    def completion(self) -> Future[Any]:
        """Return the Future of a request that has no result."""
        return Completion(self._drive) if self._reactor is not None else Future()

    def driven(self, future: Future[Any]) -> Future[Any]:
        """Return a Future of what another thread does with requests of this client, to be waited for on the loop's."""
        if self._reactor is None:
            return future
        driven = Driven(self._drive)

        def ended(done: Future[Any]) -> None:
            if done.cancelled():
                driven.cancel()
            elif (error := done.exception()) is not None:
                driven.set_exception(error)
            else:
                driven.set_result(done.result())
            self._post(lambda: None)  # to have it noticed

        future.add_done_callback(ended)
        return driven

    def submit(self, request: Request) -> Future[Any]:
        """Have a request carried out; returns its Future."""
        if self._reactor is not None:
            if threading.get_ident() != self._home and not self._closed:
                self._requests.append(request)
                os.eventfd_write(self._wake, 1)
                return request.future
            self.session.submit(request, monotonic())
            if not self._scheduled:
                self._scheduled = True
                self._reactor.call_soon(self._send)
            return request.future
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

    def end(self, future: Future[Any], seconds: float) -> None:
        """Wait for the end of a request; raises what it failed with, or TimeoutError."""
        until = monotonic() + seconds
        while self._reactor is not None and not future.done():
            if monotonic() >= until:
                raise TimeoutError
            self._wait()
        future.result(seconds)

    def stop(self) -> None:
        """Take leave of the server, and end the thread; what is under way fails."""
        if self._thread is not None:
            self._post(self._stop)
            self._thread.join()
            self._thread = None
        elif self._reactor is not None and not self._closed:
            if self._settled:
                self._reactor.forget_elsewhere(self._under_way)
                self._reactor.unregister(self._selector_fd)
            self._stop()
            self.session.close()
        if self._wake >= 0:
            self._selector.close()
            os.close(self._wake)
            self._wake = -1

    def _post(self, call: Callable[..., object], *args: Any) -> None:
        self._calls.append((call, args))
        if self._asleep and not self._closed:
            os.eventfd_write(self._wake, 1)

    @property
    def _closed(self) -> bool:
        return self._wake < 0

    # -- on a loop ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        assert self._reactor is not None
        if not self._closed:
            self._settled = True
            self._reactor.register(self._selector_fd, selectors.EVENT_READ, self._ready)
            self._reactor.watch_elsewhere(self._under_way)

    def _under_way(self) -> int:
        return self.session.under_way

    @property
    def _selector_fd(self) -> int:
        assert isinstance(self._selector, selectors.EpollSelector)
        return self._selector.fileno()

    def _ready(self, _events: int) -> None:
        self._turn(0)

    def _send(self) -> None:
        """Send what this turn of the loop has brought, and look at the clock from now on."""
        self._scheduled = False
        for link in self._links:
            link.flush()
        if not self._armed:
            self._arm()

    def _arm(self) -> None:
        if self._reactor is not None and not self._closed and (self.session.busy or self._attempt is not None):
            self._armed = True
            self._reactor.call_later(TICK, self._alarm)

    def _alarm(self) -> None:
        self._armed = False
        self._turn(0)

    def _turn(self, timeout: float) -> None:
        """Do what there is to do, for which it waits so many seconds at most."""
        if self._closed:
            return
        try:
            self._work(self._selector.select(timeout))
        except Exception as error:
            self._broke(error)
        if not self._armed:
            self._arm()

    def _wait(self) -> None:
        """Do a turn in the loop's place."""
        for link in self._links:
            link.flush()
        self._turn(TICK)

    def _drive(self, future: Future[Any]) -> None:
        """Bring on the end of a request for one who waits for it where the loop would have brought it."""
        while threading.get_ident() == self._home and not future.done() and not self._closed:
            self._wait()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
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
                    self._work(events)
                if self.session.under_way >= MANY:
                    sleep(GATHER)
            except Exception as error:
                with self._lock:
                    self._broke(error)
        self.session.close()

    # -- either way -------------------------------------------------------------------------------------------------

    def _work(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Do what events, calls, requests and the clock ask for."""
        for key, mask in events:
            key.data(mask)
        for _ in range(len(self._calls)):
            call, args = self._calls.popleft()
            call(*args)
        now = monotonic()
        submit = self.session.submit
        for _ in range(len(self._requests)):
            submit(self._requests.popleft(), now)
        if now >= self._ticked + TICK:
            self._ticked = now
            self._tick(now)
        for link in self._links:
            link.flush()

    def _broke(self, error: Exception) -> None:
        """A fault of ours: its connections are not to be trusted, the disk goes on."""
        self._log.error("the NBD client failed", exc_info=error)
        self.session.lost(error, monotonic())

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
