"""Engines: operations on files that may wait, on io_uring where the kernel lets us, else on threads.

A handler takes one for each disk with `engine(reactor, submit)`, and gets Futures. Buffers are the engine's until the
Future has ended.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from tcmu_core.posix import syscalls
from tcmu_core.posix.bounce import Bounce, Bounces
from tcmu_core.posix.buffers import fill_zero, skip, total
from tcmu_core.posix.completion import Completion
from tcmu_core.posix.stable import Log, log
from tcmu_core.posix.syscalls import address
from tcmu_core.posix.transfer import BUFFERED, IOV_MAX, Alignment, read_full, write_full
from tcmu_core.posix.uring import FSYNC_DATASYNC, Op, Ring

FEW = 16  # operations in flight, up to which a loop may spin for the end of one
PAUSE = 0.0005  # seconds between two looks at what is on a thread
ENTRIES = 128  # of the submission queue: what is sent at once; twice as many can be in flight
_READ, _WRITE, _FALLOCATE = Op.READ, Op.WRITE, Op.FALLOCATE  # looking a member up takes a tenth of a microsecond
Submit = Callable[..., "Future[Any]"]  # submit(fn, *args): run it on a thread


class Reactor(Protocol):
    """What an engine needs of the loop that it serves; all of it on the loop's thread."""

    def register(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` whenever `fd` is ready."""

    def unregister(self, fd: int) -> None:
        """Forget `fd`."""

    def call_soon(self, fn: Callable[[], object]) -> None:
        """Call `fn()` once, when all that is there now has been worked off, before the loop waits."""

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn(*args)` on the loop's thread, soon; the one thing that any thread may do."""

    def call_later(self, delay: float, fn: Callable[..., object], *args: Any) -> object:
        """Call `fn(*args)` after `delay` seconds."""

    def watch_elsewhere(self, count: Callable[[], int], few: int = 0) -> None:
        """Have `count()` say how much is in flight, for a loop that would spin: it does with `few` or less."""

    def forget_elsewhere(self, count: Callable[[], int]) -> None:
        """Ask `count` no more."""


class Engine(Protocol):
    """Operations on open files, each carried to its end. Futures fail with OSError."""

    def read(
        self, fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED
    ) -> Future[None]:
        """Fill `buffers` from `offset` on; what lies beyond the end of the file reads as zeros."""

    def write(
        self, fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED
    ) -> Future[None]:
        """Write all of `buffers` at `offset` on."""

    def sync(self, fd: int) -> Future[None]:
        """Bring to stable storage what writes that have ended wrote (fdatasync)."""

    def allocate(self, fd: int, mode: int, offset: int, length: int) -> Future[None]:
        """Do fallocate(2)."""

    def advise(self, fd: int, offset: int, length: int) -> None:
        """Have the kernel read a range into the page cache, without waiting for it."""

    def cancel(self, future: Future[None]) -> None:
        """Ask for an operation to end early. Its Future ends when it has: with ECANCELED, or as it would have."""

    def completion(self) -> Completion:
        """Return a Future that depends on operations of this engine, and is ended where those may be started."""

    def home(self, fn: Callable[[], object]) -> None:
        """Call `fn()` where operations may be started; safe from any thread."""

    def drain(self) -> None:
        """Wait for all that is in flight on this thread: before it waits for somebody who waits for that."""

    def close(self) -> None:
        """Wait for all that is in flight, and let go of what the kernel gave. Twice is once."""


def engine(reactor: Reactor | None, submit: Submit, log: Log = log) -> Engine:
    """Return the best engine that there is: io_uring on the loop, else `submit(fn, *args)` to threads."""
    if reactor is None:
        return ThreadEngine(submit)
    try:
        return RingEngine(reactor, submit)
    except OSError as error:
        log.info("the kernel lets us have no io_uring (%s): what has to wait does so on threads", error.strerror)
        return ThreadEngine(submit)


class ThreadEngine:
    """The operations on threads, each a call that waits."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit

    def read(
        self, fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED
    ) -> Future[None]:
        """See `Engine.read`."""
        return self._submit(read_full, fd, offset, buffers, alignment)

    def write(
        self, fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED
    ) -> Future[None]:
        """See `Engine.write`."""
        return self._submit(write_full, fd, offset, buffers, alignment)

    def sync(self, fd: int) -> Future[None]:
        """See `Engine.sync`."""
        return self._submit(os.fdatasync, fd)

    def allocate(self, fd: int, mode: int, offset: int, length: int) -> Future[None]:
        """See `Engine.allocate`."""
        return self._submit(syscalls.fallocate, fd, mode, offset, length)

    def advise(self, fd: int, offset: int, length: int) -> None:
        """See `Engine.advise`."""
        self._submit(os.posix_fadvise, fd, offset, length, os.POSIX_FADV_WILLNEED)

    def cancel(self, future: Future[None]) -> None:
        """See `Engine.cancel`: a call that has begun can't be ended, one that has not is never made."""
        future.cancel()

    def completion(self) -> Completion:
        """See `Engine.completion`."""
        return Completion()

    def home(self, fn: Callable[[], object]) -> None:
        """See `Engine.home`: that is anywhere."""
        fn()

    def drain(self) -> None:
        """See `Engine.drain`: what is on threads ends without this one."""

    def close(self) -> None:
        """See `Engine.close`: the threads belong to whoever gave them."""


class _Operation:
    """One operation on its way. `left`, `bounce` and `vector` are kept alive for the kernel, which uses them."""

    left: Sequence[memoryview] = ()
    at = 0  # the address of `left`, where that is one buffer
    bytes = 0  # in `left`
    bounce: Bounce | None = None  # what `left` is, in the place of `buffers`
    buffers: Sequence[memoryview] = ()  # to be filled from it
    vector: array[int] | None = None
    alignment = BUFFERED

    def __init__(self, future: Completion, op: Op, fd: int, offset: int, length: int = 0, flags: int = 0) -> None:
        self.future = future
        self.op = op
        self.fd = fd
        self.offset = offset
        self.length = length
        self.flags = flags


class RingEngine:
    """The operations on io_uring: sent once in each turn of the loop, ended by the ring's descriptor in its epoll."""

    def __init__(self, reactor: Reactor, submit: Submit, entries: int = ENTRIES) -> None:
        self._reactor = reactor
        self._threads = ThreadEngine(submit)
        self._ring = Ring(entries)
        self._bounces = Bounces()
        self._flying: dict[int, _Operation] = {}
        self._waiting: deque[_Operation] = deque()  # for room in the rings
        self._homeward: deque[Callable[[], object]] = deque()
        self._thread = threading.get_ident()
        self._next = 1
        self._scheduled = False
        self._forked = False
        reactor.register(self._ring.fd, 1, self._ready)  # EPOLLIN
        reactor.watch_elsewhere(self.in_flight, FEW)
        _engines.add(self)

    def in_flight(self) -> int:
        """Return how many operations have not ended."""
        return len(self._flying)

    # -- operations -------------------------------------------------------------------------------------------------

    def read(
        self, fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED
    ) -> Future[None]:
        """See `Engine.read`."""
        if self._forked:
            return self._threads.read(fd, offset, buffers, alignment)
        operation = _Operation(Completion(self._drive), _READ, fd, offset)
        if not self._lay(operation, buffers, alignment):
            operation.buffers = buffers
        return self._start(operation)

    def write(
        self, fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED
    ) -> Future[None]:
        """See `Engine.write`."""
        if self._forked:
            return self._threads.write(fd, offset, buffers, alignment)
        operation = _Operation(Completion(self._drive), _WRITE, fd, offset)
        if not self._lay(operation, buffers, alignment) and operation.bounce is not None:
            operation.bounce.fill(buffers)
        return self._start(operation)

    def _lay(self, operation: _Operation, buffers: Sequence[memoryview], alignment: Alignment) -> bool:
        """Note where the data of an operation lies: there, if that suits the kernel (True), else in a bounce buffer."""
        operation.alignment = alignment
        size = operation.bytes = len(buffers[0]) if len(buffers) == 1 else total(buffers)
        if len(buffers) == 1:
            at = address(buffers[0])
            suits = at is not None and not (at % alignment.memory or size % alignment.offset)
            operation.at = at or 0
        elif alignment is BUFFERED:
            suits = not any(buffer.readonly for buffer in buffers)
        else:
            suits = alignment.fits(buffers)
        if suits:
            operation.left = buffers
            return True
        bounce = operation.bounce = self._bounces.take(size)
        operation.left, operation.at = (bounce.view,), bounce.address
        return False

    def sync(self, fd: int) -> Future[None]:
        """See `Engine.sync`."""
        if self._forked:
            return self._threads.sync(fd)
        return self._start(_Operation(self.completion(), Op.FSYNC, fd, 0, flags=FSYNC_DATASYNC))

    def allocate(self, fd: int, mode: int, offset: int, length: int) -> Future[None]:
        """See `Engine.allocate`."""
        if self._forked:
            return self._threads.allocate(fd, mode, offset, length)
        return self._start(_Operation(self.completion(), Op.FALLOCATE, fd, offset, mode, length))

    def advise(self, fd: int, offset: int, length: int) -> None:
        """See `Engine.advise`."""
        if not self._forked:
            self._start(_Operation(self.completion(), Op.FADVISE, fd, offset, length, os.POSIX_FADV_WILLNEED))

    def cancel(self, future: Future[None]) -> None:
        """See `Engine.cancel`."""
        for operation in self._waiting:
            if operation.future is future:
                self._waiting.remove(operation)
                self._fail(operation, errno.ECANCELED)
                return
        for number, operation in self._flying.items():
            if operation.future is future:
                self._start(_Operation(self.completion(), Op.ASYNC_CANCEL, -1, 0), target=number)
                return

    def completion(self) -> Completion:
        """See `Engine.completion`."""
        return Completion(self._drive)

    def home(self, fn: Callable[[], object]) -> None:
        """See `Engine.home`."""
        self._homeward.append(fn)
        self._reactor.post(self._come_home)

    def _come_home(self) -> None:
        while self._homeward:
            self._homeward.popleft()()

    def _drive(self, completion: Completion) -> None:
        """Bring on the end of `completion` for one who waits for it here, where the loop would have brought it."""
        if threading.get_ident() != self._thread:
            return
        while not completion.done() and self._ring.fd >= 0 and not self._forked:
            self._come_home()
            if self._flying or self._waiting:
                self._ring.submit(1)
                self._work_off()
            elif not completion.done():
                time.sleep(PAUSE)  # it is on a thread

    # -- submission -------------------------------------------------------------------------------------------------

    def _start(self, operation: _Operation, target: int = 0) -> Future[None]:
        if self._waiting or len(self._flying) >= self._ring.cq_entries:
            if not target:
                self._waiting.append(operation)
        else:
            self._push(operation, target)
        if not self._scheduled:
            self._scheduled = True
            self._reactor.call_soon(self._submit)
        return operation.future

    def _push(self, operation: _Operation, target: int = 0) -> None:
        ring = self._ring
        if ring.unsubmitted >= ring.entries:
            self._send()
            if ring.unsubmitted >= ring.entries:  # the kernel has no room either
                self._waiting.append(operation)
                return
        number = self._next
        self._next += 1
        self._flying[number] = operation
        op, at, length = operation.op, target, operation.length
        left = operation.left
        if left:
            if len(left) == 1:
                at, length = operation.at, operation.bytes
            else:
                op = Op.READV if op is _READ else Op.WRITEV
                some = left if len(left) <= IOV_MAX else left[:IOV_MAX]
                vector = array("Q")
                for buffer in some:
                    vector.append(address(buffer) or 0)
                    vector.append(len(buffer))
                operation.vector = vector
                at, length = vector.buffer_info()[0], len(some)
        elif op is _FALLOCATE:  # the length goes into addr, the mode into len
            at = operation.flags
            ring.push(op, operation.fd, operation.offset, at, length, 0, number)
            return
        ring.push(op, operation.fd, operation.offset, at, length, operation.flags, number)

    def _submit(self) -> None:
        """Send what this turn of the loop has brought."""
        self._scheduled = False
        if self._ring.unsubmitted:
            self._send()

    def _send(self) -> None:
        try:
            self._ring.submit()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EBUSY):
                raise
        if self._ring.unsubmitted and not self._scheduled:
            self._scheduled = True
            self._reactor.call_soon(self._retry)

    def _retry(self) -> None:
        """The kernel had no room: what has ended makes some."""
        self._scheduled = False
        self._work_off()
        if self._ring.unsubmitted:
            self._send()

    # -- completion -------------------------------------------------------------------------------------------------

    def _ready(self, _events: int) -> None:
        self._work_off()

    def _work_off(self) -> None:
        flying = self._flying
        for number, result in self._ring.completions():
            operation = flying.pop(number)
            if result == operation.bytes and result and operation.bounce is None:
                operation.left = ()  # what `_moved` comes to
                operation.future.set_result(None)
            elif result < 0:
                self._ended_badly(operation, -result)
            elif operation.op is _READ or operation.op is _WRITE:
                self._moved(operation, result)
            else:
                operation.future.set_result(None)
        while self._waiting and len(flying) < self._ring.cq_entries:
            self._push(self._waiting.popleft())
        if self._ring.unsubmitted and not self._scheduled:
            self._scheduled = True
            self._reactor.call_soon(self._submit)

    def _ended_badly(self, operation: _Operation, code: int) -> None:
        if code == errno.EINTR:
            self._start(operation)
        elif code == errno.EAGAIN and operation.left:  # of a file that was opened with O_NONBLOCK
            self._on_thread(operation)
        else:
            self._fail(operation, code)

    def _on_thread(self, operation: _Operation) -> None:
        """Do by a call that waits what the ring does not wait for."""
        again = self._threads.read if operation.op is Op.READ else self._threads.write

        def ended() -> None:
            error = done.exception()
            self._release(operation, delivered=error is None)
            if error is None:
                operation.future.set_result(None)
            else:
                operation.future.set_exception(error)

        done = again(operation.fd, operation.offset, operation.left, operation.alignment)
        done.add_done_callback(lambda _done: self.home(ended))

    def _fail(self, operation: _Operation, code: int) -> None:
        self._release(operation, delivered=False)
        operation.future.set_exception(OSError(code, os.strerror(code)))

    def _moved(self, operation: _Operation, count: int) -> None:
        """So many bytes were read or written; the rest is asked for again."""
        if count < operation.bytes:
            operation.bytes -= count
            operation.offset += count
            reading = operation.op is Op.READ
            if count and not (reading and operation.offset % operation.alignment.offset):
                operation.left = left = skip(operation.left, count)
                operation.at = address(left[0]) or 0
                self._start(operation)
                return
            if not reading:
                self._fail(operation, errno.ENOSPC)
                return
            fill_zero(skip(operation.left, count))  # the file ends here
        self._release(operation, delivered=True)
        operation.future.set_result(None)

    def _release(self, operation: _Operation, *, delivered: bool) -> None:
        """The buffers are their owner's again, with what was read if it was `delivered`, before he hears of it."""
        bounce = operation.bounce
        if bounce is not None:
            if delivered and operation.buffers:
                bounce.empty(operation.buffers)
            operation.bounce = None
            self._bounces.give(bounce)
        operation.left = operation.buffers = ()
        operation.vector = None

    # -- the end ----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """See `Engine.drain`."""
        while not self._forked and (self._flying or self._waiting):
            self._ring.submit(1)
            self._work_off()

    def close(self) -> None:
        """See `Engine.close`."""
        if self._ring.fd < 0:
            return
        self.drain()
        _engines.discard(self)
        self._reactor.forget_elsewhere(self.in_flight)
        self._reactor.unregister(self._ring.fd)
        self._ring.close()


_engines: weakref.WeakSet[RingEngine] = weakref.WeakSet()


def _after_fork() -> None:
    """A ring is one process's: the child's operations go to threads."""
    for each in _engines:
        each._forked = True


os.register_at_fork(after_in_child=_after_fork)
