"""What is under way with a server, over all its connections and losses: sans I/O, the clock is an argument.

States, and what ends them:

* CONNECTING: nothing can be sent; requests wait. `connected` begins REPLAYING, `failed` schedules the next attempt.
* REPLAYING: changes that were acknowledged and not yet flushed are sent again, before anything else. When the last is
  answered: UP. Reads wait too: they must not see what was there before.
* UP: requests are sent as they come. A loss of any connection ends all of them (CONNECTING): what was not answered
  goes to the head of the queue.
* DRAINING: a flush has failed, so what was acknowledged has to be written again. It ends when nothing is under way.
* CLOSED: everything fails.

Why changes are kept: an acknowledged write may be in the server's memory alone until a flush. If the server is killed
it is gone, and a flush answered by its successor would say nothing about it. So each change is remembered until a
flush that was sent after its answer has succeeded. The memory is bounded: when half of it is used a flush is sent on
our own account, and when all of it is, changes wait for that flush. With `replay` 0 nothing is kept; then a flush
after a loss fails, and so do all that follow it, if a change had been acknowledged since the last flush.

What has ended by a time limit may still be carried out by the server. Until it answers, or the connection is gone,
requests that touch the same bytes are held back: a late write must not land on top of a newer one.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import chain
from typing import Protocol

from tcmu_core import NotReady, StorageTimeout
from tcmu_nbd.codec import Export
from tcmu_nbd.constants import Cmd, ExportFlag, NbdError
from tcmu_nbd.errors import Refused
from tcmu_nbd.journal import Journal
from tcmu_nbd.request import Request

FIRST_WAIT, LONGEST_WAIT = 0.05, 5.0  # seconds between attempts to connect; each wait is twice the one before
MOST_DOUBLINGS = 10
REPLAY_DEPTH = 16  # requests that are sent again at a time
FLUSH_AGAIN = 1.0  # seconds until a flush of our own is tried again after one has failed
NEVER = float("inf")

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class State(Enum):
    """See the head of this module."""

    CONNECTING = "connecting"
    REPLAYING = "replaying"
    UP = "up"
    DRAINING = "draining"
    CLOSED = "closed"


class Link(Protocol):
    """A connection that has been negotiated."""

    def send(self, request: Request) -> None:
        """Send a request; its answer comes to `Session.answered`."""

    def close(self) -> None:
        """End it; nothing comes from it any more."""


_UP, _FLUSH = State.UP, Cmd.FLUSH  # looking a member up takes a tenth of a microsecond, for each request


class Session:
    """Requests in, Futures done. `connect()` is called when connections are needed: `connected` or `failed` answers.

    Times are monotonic seconds. `timeout` is what a request may take on a connection, `reconnect` how long requests
    wait for a server that is gone; `replay` is the memory for changes that are not flushed (bytes, 0 for none).
    """

    def __init__(
        self,
        connect: Callable[[], None],
        log: Log,
        *,
        timeout: float = NEVER,
        reconnect: float = NEVER,
        replay: int = 0,
    ) -> None:
        self.state = State.CONNECTING
        self.export: Export | None = None
        self._connect = connect
        self._log = log
        self._timeout = timeout
        self._reconnect = reconnect
        self._links: list[Link] = []
        self._turn = 0
        self._queue: deque[Request] = deque()  # to be sent, in order
        self._flight: dict[Request, None] = {}  # sent and not answered, in order
        self._doubtful: dict[Request, None] = {}  # ended by a time limit, and still not answered
        self._held: list[Request] = []  # touch what is doubtful
        self._journal = Journal(replay)
        self._flushing: Request | None = (
            None  # one at a time: the success of one proves nothing beside the failure of another
        )
        self._flushes: list[Request] = []  # wait for that one to end
        self._own_flush_at = 0.0
        self._lost: OSError | None = None  # why no flush can succeed any more
        self._replay: deque[Request] = deque()
        self._since = 0.0  # when the server was lost
        self._retry_at = NEVER
        self._attempts = 0  # to connect, since an answer came
        self._heard: list[float] = []  # when each connection last answered

    # -- connections ------------------------------------------------------------------------------------------------

    def connected(self, links: list[Link], export: Export, now: float) -> None:
        """Take new connections."""
        if self.state is State.CLOSED:
            for link in links:
                link.close()
            return
        if self.export is not None:
            wrong = difference(self.export, export)
            if wrong:
                for link in links:
                    link.close()
                self.failed(Refused(wrong), now)
                return
            self._log.warning("the NBD server is back after %.1f seconds", now - self._since)
        self.export = self.export or export
        self._journal.needed = bool(export.flags & ExportFlag.SEND_FLUSH)
        self._links = links
        self._heard = [now] * len(links)
        self._begin_replay(now)

    def failed(self, error: Exception, now: float) -> None:
        """Note that an attempt to connect has failed, and when to try again."""
        if self.state is State.CLOSED:
            return
        if self._attempts == 1:
            self._log.error("can't reach the NBD server: %s; trying again", error)
        self._connect_soon(now)

    def _connect_soon(self, now: float) -> None:
        """Connect: at once the first time, later and later as long as no answer has come."""
        attempts, self._attempts = self._attempts, self._attempts + 1
        if attempts:
            self._retry_at = now + min(FIRST_WAIT * 2 ** min(attempts - 1, MOST_DOUBLINGS), LONGEST_WAIT)
        else:
            self._connect()

    def lost(self, error: Exception, now: float) -> None:
        """Note that a connection is gone: all are, and what they had not answered will be asked again."""
        if self.state in {State.CONNECTING, State.CLOSED}:
            return
        self._log.error("lost the NBD server: %s; %d requests wait for it", error, len(self._flight) + len(self._queue))
        links, self._links = self._links, []
        for link in links:
            link.close()
        if not self._attempts:
            self._since = now
        self.state = State.CONNECTING
        waiting = [request for request in self._flight if not request.acknowledged]
        self._flight.clear()
        self._doubtful.clear()
        self._queue.extendleft(reversed(waiting))
        self._queue.extend(chain(self._held, self._flushes))
        self._held.clear()
        self._flushes.clear()
        self._flushing = None
        for request in self._queue:
            self._journal.forget(request)
            # From when it was first lost: one that makes the server fall over is not sent for ever.
            request.lost_at = request.lost_at or now
            request.deadline = request.lost_at + self._reconnect
        if not self._journal.limit and self.unflushed:
            self._lose("writes that the server had acknowledged were not flushed when it was lost, and replay=0")
        self._connect_soon(now)

    # -- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> None:
        """Take a request. Its Future is done when it has been answered, or when its time is over."""
        state = self.state
        if state is _UP and not (request.changes or self._queue or self._doubtful or request.command is _FLUSH):
            self._send(request, now)  # a read, which nothing stands in the way of
            return
        if state is State.CLOSED:
            request.fail(NotReady("the NBD disk is closed"))
            return
        if state is State.CONNECTING:
            request.lost_at = self._since
            request.deadline = self._since + self._reconnect
            if request.deadline <= now:
                request.fail(self._gone())
                return
            self._queue.append(request)
            return
        request.deadline = now + self._timeout
        self._queue.append(request)
        if state is State.UP:
            self._dispatch(now)

    def answered(self, request: Request, error: OSError | None, now: float) -> None:
        """Take the server's answer to a request."""
        if request.link < len(self._heard):
            self._heard[request.link] = now
        if error is None and request in self._flight and request is not self._flushing and not request.acknowledged:
            del self._flight[request]
            self._attempts = 0
            if request.changes:
                self._journal.acknowledge(request)
            request.finish(request.runs or None)
            if self._queue or self._journal.memory or self.state is not _UP:
                self._proceed(now)
            return
        if request in self._doubtful:
            del self._doubtful[request]
            held, self._held = self._held, []
            self._queue.extendleft(reversed(held))
        elif request not in self._flight:
            return
        elif error is not None and error.errno == NbdError.ESHUTDOWN:
            self.lost(error, now)
            return
        else:
            del self._flight[request]
            self._attempts = 0
            self._end(request, error)
        if request is self._flushing:
            self._flush_ended(request, error, now)
        self._proceed(now)

    def _end(self, request: Request, error: OSError | None) -> None:
        """End one that has failed, or was acknowledged before it was written again; a flush ends elsewhere."""
        if request.acknowledged:
            if error is not None:
                self._lose(f"{request!r} was acknowledged, and can't be written again ({error.strerror})")
        elif error is not None and request is not self._flushing:
            self._journal.forget(request)
            request.fail(error)

    def _proceed(self, now: float) -> None:
        if self.state is _UP:
            if self._journal.memory:
                self._care_for_memory(now)
            if self._queue:
                self._dispatch(now)
        elif self.state is State.REPLAYING:
            self._go_on_replaying(now)
        elif self.state is State.DRAINING and not self._flight:
            self._begin_replay(now)

    def _dispatch(self, now: float) -> None:
        """Send what can be sent."""
        queue = self._queue
        while queue and self.state is _UP:
            request = queue[0]
            if request.command is _FLUSH:
                queue.popleft()
                self._flush(request, now)
                continue
            if self._journal.wants(request):
                if not self._journal.has_room(request):
                    self._own_flush(now)
                    return
                self._journal.add(request)
            queue.popleft()
            if self._doubtful and any(request.overlaps(other) for other in self._doubtful):
                self._journal.forget(request)
                self._held.append(request)
                continue
            self._send(request, now)

    def _send(self, request: Request, now: float) -> None:
        self._flight[request] = None
        request.deadline = now + self._timeout
        self._turn = request.link = (self._turn + 1) % len(self._links)
        self._links[request.link].send(request)

    # -- flushes ----------------------------------------------------------------------------------------------------

    def _flush(self, request: Request, now: float) -> None:
        if self._lost is not None:
            request.fail(OSError(errno.EIO, str(self._lost.strerror)))
        elif self._flushing is not None:
            self._flushes.append(request)
        else:
            self._flushing = request
            request.number = self._journal.changes
            self._send(request, now)

    def _flush_ended(self, request: Request, error: OSError | None, now: float) -> None:
        self._flushing = None
        if error is None:
            self._journal.covered(request.number)
            request.finish()
        else:
            # The server may have dropped what it could not write: it is asked to flush only after it has it again.
            if self._journal.limit:
                self.state = State.DRAINING
            else:
                self._lose(f"a flush has failed ({error.strerror}), and replay=0")
            self._own_flush_at = now + FLUSH_AGAIN
            request.fail(error)
        if self._flushes:
            first, *rest = self._flushes  # one serves all that have come meanwhile
            first.companions = (*first.companions, *rest)
            self._flushes = []
            self._queue.appendleft(first)

    def _care_for_memory(self, now: float) -> None:
        """Flush on our own account when much is remembered."""
        if self._journal.half_full:
            self._own_flush(now)

    def _own_flush(self, now: float) -> None:
        if self._journal.flushable and self._flushing is None and now >= self._own_flush_at:
            self._queue.appendleft(Request(Cmd.FLUSH))
            self._queue[0].deadline = now + self._timeout
            self._dispatch(now)

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = OSError(errno.EIO, why)
            self._journal.give_up()
            self._log.critical("%s: every flush fails from now on", why)

    def _begin_replay(self, now: float) -> None:
        self.state = State.REPLAYING
        self._replay = self._journal.again()
        if self._replay:
            self._log.warning("writing %d acknowledged changes again", len(self._replay))
        self._go_on_replaying(now)

    def _go_on_replaying(self, now: float) -> None:
        replay = self._replay
        while replay and len(self._flight) < REPLAY_DEPTH:
            if any(replay[0].overlaps(other) for other in self._flight):
                return  # in their order
            self._send(replay.popleft(), now)
        if not replay and not self._flight:
            self.state = State.UP
            for request in self._queue:
                request.deadline = now + self._timeout
            self._proceed(now)

    # -- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due. To be called now and then, as long as `busy`."""
        if self.state is State.CONNECTING:
            self._expire(self._queue, now)
            if self._retry_at <= now:
                self._retry_at = NEVER
                self._connect()
        elif self.state is State.REPLAYING:
            if self._flight and _first(self._flight).deadline <= now:
                self.lost(StorageTimeout("it does not answer"), now)
        elif self.state is not State.CLOSED:
            self._expire(self._queue, now)
            self._expire(self._held, now)
            self._expire(self._flushes, now)
            self._give_up(now)
            self._proceed(now)

    def _give_up(self, now: float) -> None:
        """End requests that were not answered in time, and a connection that has answered nothing else since."""
        silent = False
        while self._flight and (late := _first(self._flight)).deadline <= now:
            del self._flight[late]
            self._doubtful[late] = None
            self._journal.forget(late)
            silent |= self._heard[late.link] <= late.deadline - self._timeout
            self._log.error("%r was not answered within %g seconds", late, self._timeout)
            late.fail(StorageTimeout(f"the NBD server did not answer within {self._timeout:g} seconds"))
        if silent:
            self.lost(StorageTimeout("it does not answer"), now)

    def _expire(self, waiting: deque[Request] | list[Request], now: float) -> None:
        """End those that have waited too long to be sent."""
        for request in [request for request in waiting if request.deadline <= now]:
            waiting.remove(request)
            request.fail(
                self._gone() if self.state is State.CONNECTING else StorageTimeout("the NBD server is too slow")
            )

    @property
    def under_way(self) -> int:
        """How many requests have been sent and not answered."""
        return len(self._flight)

    @property
    def busy(self) -> bool:
        """Whether something may become due."""
        return bool(self._flight or self._queue or self._held or self._journal.memory) or self.state is State.CONNECTING

    def _gone(self) -> Exception:
        return NotReady(f"the NBD server has been gone for more than {self._reconnect:g} seconds")

    def close(self) -> None:
        """End everything: what is under way fails."""
        self.state = State.CLOSED
        for link in self._links:
            link.close()
        for request in chain(self._flight, self._queue, self._held, self._flushes):
            if not request.acknowledged:
                request.fail(NotReady("the NBD disk was closed"))
        self._links = []
        self._flight.clear()
        self._queue.clear()
        self._held.clear()

    @property
    def unflushed(self) -> int:
        """How many acknowledged changes no flush has covered."""
        return self._journal.changes - self._journal.flushed


def difference(before: Export, now: Export) -> str:
    """Return why an export can't take another's place, '' when it can: it may be larger, and able to do more."""
    if now.size < before.size:
        return f"the export has {now.size} bytes now, it had {before.size}: the disk can't shrink while it is open"
    missing = before.flags & ~now.flags & ~(ExportFlag.READ_ONLY | ExportFlag.ROTATIONAL | ExportFlag.CAN_MULTI_CONN)
    if missing or now.flags & ExportFlag.READ_ONLY > before.flags & ExportFlag.READ_ONLY:
        return "the export can't do any more what it could when the disk was opened"
    if now.blocks.minimum > before.blocks.minimum or now.blocks.maximum < before.blocks.maximum:
        return "the export takes other block sizes now than when the disk was opened"
    if before.encrypted and not now.encrypted:
        return "the connection would not be encrypted any more"
    if before.context is not None and now.context is None:
        return "the export has no block status any more"
    return ""


def _first(requests: Iterable[Request]) -> Request:
    return next(iter(requests))
