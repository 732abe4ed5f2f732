"""Blocks: reads answered from a bounded cache of aligned blocks; what is not there is fetched once, as Futures."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

Fetch = Callable[[int, int], bytearray]  # (offset, length) -> the bytes


class Run:
    """Blocks beside each other that are being fetched together; `data` ends with their bytes."""

    __slots__ = ("count", "data", "first")

    def __init__(self, first: int) -> None:
        self.first = first
        self.count = 1
        self.data: Future[bytearray] = Future()


class Blocks:
    """A file of `end` bytes, read by `fetch` in blocks of `size` on so many `threads`; `limit` bytes are kept."""

    def __init__(self, fetch: Fetch, end: int, *, size: int, limit: int, threads: int) -> None:
        self._fetch = fetch
        self._end = end
        self._size = size
        self._room = limit // size  # blocks
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # the one that was not used for longest comes first
        self._coming: dict[int, Run] = {}
        self._lock = threading.Lock()  # of the two above; nothing waits while it is held
        self._pool = ThreadPoolExecutor(threads, "tcmu-http")

    def read(self, offset: int, buffers: Sequence[memoryview]) -> Future[None] | None:
        """Fill the buffers from `offset` on: at once where all is kept, else the Future says when."""
        first, last = offset // self._size, -(-(offset + sum(map(len, buffers))) // self._size)
        here: list[tuple[int, bytes]] = []
        waited: dict[Run, None] = {}  # a set that keeps its order
        fresh: list[Run] = []
        with self._lock:
            for number in range(first, last):
                kept = self._kept.get(number)
                if kept is not None:
                    self._kept.move_to_end(number)
                    here.append((number, kept))
                    continue
                run = self._coming.get(number)
                if run is None:
                    if fresh and fresh[-1].first + fresh[-1].count == number:
                        run = fresh[-1]
                        run.count += 1
                    else:
                        run = Run(number)
                        fresh.append(run)
                    self._coming[number] = run
                waited[run] = None
        for number, kept in here:
            copy(kept, number * self._size, offset, buffers)
        for run in fresh:
            self._pool.submit(self._bring, run)
        if not waited:
            return None
        return joined([(run.data, partial(self._copy_run, run, offset, buffers)) for run in waited])

    def close(self) -> None:
        """Wait for what is being fetched, and forget all."""
        self._pool.shutdown(wait=True)
        self._kept.clear()

    def _copy_run(self, run: Run, offset: int, buffers: Sequence[memoryview]) -> None:
        copy(run.data.result(), run.first * self._size, offset, buffers)

    def _bring(self, run: Run) -> None:
        """Fetch a run, keep its blocks, and tell those who wait for it. On a thread of the pool."""
        start = run.first * self._size
        try:
            data = self._fetch(start, min(run.count * self._size, self._end - start))
        except BaseException as error:
            self._arrived(run, None)
            run.data.set_exception(error)
        else:
            self._arrived(run, data)
            run.data.set_result(data)

    def _arrived(self, run: Run, data: bytearray | None) -> None:
        with self._lock:
            for index in range(run.count):
                del self._coming[run.first + index]
                if data is not None and self._room:
                    if len(self._kept) == self._room:
                        self._kept.popitem(last=False)
                    self._kept[run.first + index] = bytes(data[index * self._size : (index + 1) * self._size])


def copy(data: bytes | bytearray, start: int, offset: int, buffers: Sequence[memoryview]) -> None:
    """Copy what `data`, the bytes from `start` on, has for buffers that begin at `offset`."""
    with memoryview(data) as view:
        end = start + len(view)
        for buffer in buffers:
            low, high = max(start, offset), min(end, offset + len(buffer))
            if low < high:
                buffer[low - offset : high - offset] = view[low - start : high - start]
            offset += len(buffer)


def joined(parts: Sequence[tuple[Future[bytearray], Callable[[], None]]]) -> Future[None]:
    """Return a Future that ends after each part's own has, and its function was called; with the first error, if any.

    It ends after the last one even if the first fails: until then the buffers are in use.
    """
    whole: Future[None] = Future()
    lock = threading.Lock()
    left = len(parts)
    errors: list[BaseException] = []

    def ended(then: Callable[[], None], _done: Future[bytearray]) -> None:
        nonlocal left
        try:
            then()
        except BaseException as error:
            errors.append(error)
        with lock:
            left -= 1
            if left:
                return
        if errors:
            whole.set_exception(errors[0])
        else:
            whole.set_result(None)

    for future, then in parts:
        future.add_done_callback(partial(ended, then))
    return whole
