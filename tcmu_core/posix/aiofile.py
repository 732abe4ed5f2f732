"""One open file on an engine: flushes come after the writes before them, and those that wait share one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tcmu_core.posix import space
from tcmu_core.posix.buffers import total
from tcmu_core.posix.completion import Completion
from tcmu_core.posix.engines import Engine, Submit
from tcmu_core.posix.stable import Stable
from tcmu_core.posix.syscalls import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tcmu_core.posix.transfer import BUFFERED, Alignment

SMALLEST_AHEAD = 256 << 10  # bytes that are read ahead of a reader who was seen to go on where he had stopped
LARGEST_AHEAD = 4 << 20  # doubled each time that he comes to their end


class AsyncFile:
    """Reads, writes and flushes of one file as Futures; started on the loop's thread.

    `stable` remembers a flush that failed. Writes that its user does himself, at once, are done before any flush that
    he asks for later; of what ends later he tells by `track`.
    """

    def __init__(self, engine: Engine, submit: Submit, stable: Stable, alignment: Alignment = BUFFERED) -> None:
        self._engine = engine
        self._submit = submit
        self._fd = stable.fd
        self._stable = stable
        self._alignment = alignment
        self._lock = threading.Lock()
        self._epoch = 0  # counts flushes: a write belongs to the time between two of them
        self._writing: dict[int, int] = {}  # how many writes of an epoch have not ended; the oldest comes first
        self._waiting: list[tuple[int, Completion]] = []  # flushes, each with the last epoch that it covers
        self._flushing = False
        self._expected = -1  # where a sequential reader would miss the page cache next
        self._ahead = 0  # bytes that were read ahead for him the last time

    # -- data -------------------------------------------------------------------------------------------------------

    def read(self, offset: int, buffers: Sequence[memoryview]) -> Future[None]:
        """Fill `buffers` from `offset` on; what lies beyond the end of the file reads as zeros.

        Who reads on where he had stopped, or where what was read ahead for him ends, is a sequential reader.
        """
        if self._alignment is BUFFERED:
            end = offset + total(buffers)
            if offset == self._expected:
                self._ahead = min(max(2 * self._ahead, SMALLEST_AHEAD), LARGEST_AHEAD)
                self._engine.advise(self._fd, end, self._ahead)
                end += self._ahead
            else:
                self._ahead = 0
            self._expected = end
        return self._engine.read(self._fd, offset, buffers, self._alignment)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> Future[None]:
        """Write all of `buffers` at `offset` on."""
        return self.track(self._engine.write(self._fd, offset, buffers, self._alignment))

    def track(self, write: Future[None]) -> Future[None]:
        """Have each flush that is asked for from now on wait for `write` to end; returns it."""
        with self._lock:
            epoch = self._epoch
            self._writing[epoch] = self._writing.get(epoch, 0) + 1
        write.add_done_callback(lambda _done: self._written(epoch))
        return write

    def _written(self, epoch: int) -> None:
        with self._lock:
            left = self._writing[epoch] - 1
            if left:
                self._writing[epoch] = left
                return
            del self._writing[epoch]
        if self._waiting:
            self._flush_next()

    # -- flushes ----------------------------------------------------------------------------------------------------

    def flush(self) -> Future[None]:
        """Return a Future that ends when all writes that were begun before are on stable storage."""
        future = self._engine.completion()
        with self._lock:
            self._waiting.append((self._epoch, future))
            self._epoch += 1
        self._flush_next()
        return future

    def _flush_next(self) -> None:
        """Begin a flush for all that wait for nothing else than one, unless one runs: they take the next."""
        with self._lock:
            oldest = next(iter(self._writing), self._epoch)
            ready = [future for epoch, future in self._waiting if epoch < oldest]
            if self._flushing or not ready:
                return
            self._waiting = [waiting for waiting in self._waiting if waiting[0] >= oldest]
            self._flushing = True
        try:
            self._stable.check()
            done = self._engine.sync(self._fd)
        except BaseException as error:
            self._flushed(ready, error)
            return
        done.add_done_callback(lambda done: self._flushed(ready, done.exception()))

    def _flushed(self, ready: list[Completion], error: BaseException | None) -> None:
        if isinstance(error, OSError):
            self._stable.failed(error)
        with self._lock:
            self._flushing = False
        for future in ready:
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        if self._waiting:
            self._flush_next()

    # -- space ------------------------------------------------------------------------------------------------------

    def discard(self, offset: int, length: int) -> Future[None]:
        """Make a range read as zeros and give it back where that can be done."""
        return self._change(PUNCH_HOLE | KEEP_SIZE, space.discard, offset, length)

    def zero(self, offset: int, length: int) -> Future[None]:
        """Make a range read as zeros, allocated where that can be done."""
        return self._change(ZERO_RANGE, space.zero, offset, length)

    def _change(
        self, mode: int, otherwise: Callable[[int, int, int, Alignment], None], offset: int, length: int
    ) -> Future[None]:
        """Try the one call that does it; where the file system has it not, do it on a thread by whatever it has."""
        outer = self._engine.completion()

        def end(error: BaseException | None) -> None:
            if error is None:
                outer.set_result(None)
            else:
                outer.set_exception(error)

        def tried(done: Future[None]) -> None:
            error = done.exception()
            if isinstance(error, OSError) and error.errno in space.UNSUPPORTED:
                call = self._submit(otherwise, self._fd, offset, length, self._alignment)
                call.add_done_callback(lambda done: self._engine.home(lambda: end(done.exception())))
            else:
                end(error)

        self.track(outer)
        self._engine.allocate(self._fd, mode, offset, length).add_done_callback(tried)
        return outer
