"""Source: a file behind a server, read by range requests that are tried again where that may help."""

from __future__ import annotations

import errno
import ssl
import threading
from collections import deque
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from logging import Logger, LoggerAdapter
from time import monotonic

from tcmu_core import ConfigError
from tcmu_http.answer import PASSING, REDIRECTIONS, Changed, Refused, Unusable, Version, patience, understand
from tcmu_http.config import Config, Place

FIRST_DELAY, LAST_DELAY = 0.05, 5.0  # seconds between two tries
MOST_REDIRECTIONS = 5
PIECE = 64 << 10  # bytes that are received between two looks at the clock


class Again(Exception):
    """What went wrong may go well next time, `after` seconds at the soonest."""

    def __init__(self, error: OSError, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


class Source:
    """A file at a URL. `fetch` may be called by several threads; each has a connection of its own meanwhile."""

    version: Version  # what the file was when it was opened

    def __init__(self, config: Config, log: Logger | LoggerAdapter[Logger]) -> None:
        self._config = config
        self._log = log
        self._tls = config.context() if config.place.scheme == "https" or config.ca else None
        self._place = config.place  # where redirections have led to
        self._idle: deque[tuple[Place, HTTPConnection]] = deque()
        self._changed = ""  # what of the file, once it has
        self._closing = threading.Event()

    def open(self) -> None:
        """Ask for one byte: does the server do ranges, how large is the file, and which version is it?

        That is not tried again: a mistake in the configuration shall be told at once.

        Raises:
            OSError: the server can't be reached, or has no such file; or does no ranges.
        """
        try:
            _, self.version = self._once(0, 1, None)
        except Again as again:
            raise again.error from None
        if not self.version.known:
            self._log.warning("%s: the server tells no version: a change will go unnoticed", self._place)

    def fetch(self, offset: int, length: int) -> bytearray:
        """Return `length` bytes from `offset` on. A GET changes nothing, so it is safe to try it again.

        Raises:
            Changed: the file is not what it was when it was opened; it stays so, whatever it becomes later.
            OSError: the server can't be reached, or does not answer with the range.
        """
        until = monotonic() + self._config.retry
        delay = 0.0  # the first time at once: a connection that was kept may have gone
        while True:
            if self._changed:
                raise Changed(self._changed)
            try:
                return self._once(offset, length, self.version)[0]
            except Changed as changed:
                if not self._changed:
                    self._log.error("%s has changed: %s. Open the disk again", self._place, changed)
                self._changed = f"{self._place} has changed: {changed}"
                raise Changed(self._changed) from None
            except Again as again:
                wait = max(delay, again.after)
                if monotonic() + wait >= until or self._closing.is_set():
                    raise again.error from None
                self._log.warning("%s: %s; trying again", self._place, again)
                self._closing.wait(wait)
                delay = min(max(FIRST_DELAY, 2 * delay), LAST_DELAY)

    def close(self) -> None:
        """Let go of the connections; what waits for another try ends."""
        self._closing.set()
        while self._idle:
            self._idle.pop()[1].close()

    # -- one request --------------------------------------------------------------------------------------------------

    def _once(self, offset: int, length: int, before: Version | None) -> tuple[bytearray, Version]:
        """Send one request, and those that redirections and connections that had gone make of it."""
        place = self._place
        for _ in range(1 + MOST_REDIRECTIONS):
            connection, response = self._ask(place, offset, length, before)
            try:
                if response.status in REDIRECTIONS:
                    place = self._led(place, response.headers.get("Location", ""))
                    connection.close()
                    continue
                if response.status in PASSING:
                    raise Again(Refused(response.status, response.reason), patience(response.headers))
                if response.status >= 400 and place != self._config.place:  # a signed URL has run out, say
                    self._place = self._config.place
                    raise Again(Refused(response.status, response.reason))
                version = understand(response.status, response.reason, response.headers, (offset, length), before)
                data = self._receive(response, length)
            except BaseException:
                connection.close()
                raise
            self._place = place
            self._keep(place, connection, response)
            return data, version
        raise Unusable(f"more than {MOST_REDIRECTIONS} redirections")

    def _led(self, place: Place, location: str) -> Place:
        if not location:
            raise Unusable("the server redirects without saying where to")
        try:
            return place.to(location)
        except ConfigError as error:
            raise Unusable(str(error)) from None

    def _ask(
        self, place: Place, offset: int, length: int, before: Version | None
    ) -> tuple[HTTPConnection, HTTPResponse]:
        """Send the request and return the head of the answer."""
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if before is not None and before.condition:
            headers["If-Range"] = before.condition
        while True:
            connection, kept = self._connection(place)
            try:
                connection.request("GET", place.target, headers=headers)
                return connection, connection.getresponse()
            except (OSError, HTTPException) as error:
                connection.close()
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise
                # Of a connection that was kept it means no more than that the server has closed it meanwhile.
                if not kept or isinstance(error, TimeoutError):
                    raise Again(_plain(error)) from error

    def _receive(self, response: HTTPResponse, length: int) -> bytearray:
        """Return the body, which has `length` bytes; a server that only trickles is given up in time."""
        until = monotonic() + self._config.timeout
        data = bytearray(length)
        at = 0
        with memoryview(data) as room:
            while at < length:
                try:
                    got = response.readinto(room[at : at + PIECE])
                except (OSError, HTTPException) as error:
                    raise Again(_plain(error)) from error
                if not got:
                    raise Again(ConnectionResetError(errno.ECONNRESET, f"the answer ends after {at} of {length} bytes"))
                at += got
                if at < length and monotonic() > until:
                    raise Again(TimeoutError(errno.ETIMEDOUT, f"{at} of {length} bytes came in time"))
        return data

    # -- connections --------------------------------------------------------------------------------------------------

    def _connection(self, place: Place) -> tuple[HTTPConnection, bool]:
        """Return a connection to the place's server, and whether it was used before."""
        while self._idle:
            try:
                kept, connection = self._idle.pop()
            except IndexError:  # another thread has taken the last one
                break
            if (kept.scheme, kept.host, kept.port) == (place.scheme, place.host, place.port):
                return connection, True
            connection.close()
        timeout = self._config.timeout
        if place.scheme == "http":
            return HTTPConnection(place.host, place.port, timeout=timeout), False
        if self._tls is None:
            self._tls = self._config.context()
        return HTTPSConnection(place.host, place.port, timeout=timeout, context=self._tls), False

    def _keep(self, place: Place, connection: HTTPConnection, response: HTTPResponse) -> None:
        """Keep a connection for the next request, if its answer has ended where it should."""
        try:
            rest = response.read(1)
        except (OSError, HTTPException):
            rest = b"?"
        if rest or response.will_close or self._closing.is_set():
            connection.close()
        else:
            self._idle.append((place, connection))


def _plain(error: OSError | HTTPException) -> OSError:
    """Return what went wrong with a connection as an OSError, which means something to an initiator."""
    if isinstance(error, OSError):
        return error
    return ConnectionResetError(errno.ECONNRESET, f"the answer is no HTTP: {type(error).__name__} {error}".rstrip())
