"""The filter `cache`: what was read or written last, kept in memory or on a fast disk, each line checksummed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import crc32c

from tcmu_core.cfgstring import size
from tcmu_core.disk.device import Change, Device
from tcmu_core.disk.layers import Operations
from tcmu_core.errors import ConfigError
from tcmu_core.filters.base import Filter, after
from tcmu_core.filters.overlay import FileRoom, MemoryRoom
from tcmu_core.filters.waiting import failure, gathered
from tcmu_core.options import Option, Options, path
from tcmu_core.scsi.command import slice_buffers

DEFAULT_SIZE = 64 << 20
LINE = 4096  # bytes that are kept, or not, together


class Cache(Filter):
    """Answer reads of what was read or written last from memory, or from a file of a fast disk.

    Writes go through to the handler before they are answered: nothing is lost with the cache. A line whose checksum
    is wrong when it is read is dropped and read again from below.
    """

    options = Options(
        Option("size", size, "how much it holds, 64M if not given"),
        Option("directory", path, "have it in a file there rather than in memory"),
    )
    passes = frozenset({"flush", "extents", "handle_cmd"})
    live = False  # a write that was under way before it came would change the disk behind its back

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Make the room."""
        self._log = device.log
        self._end = device.size or 0
        count = min(options.get("size", DEFAULT_SIZE) // LINE, -(-self._end // LINE))  # no more than the disk has
        if LINE % device.block_size or not count:
            raise ConfigError(f"a cache has lines of {LINE} bytes: it needs room for one, and blocks of no more")
        directory = options.get("directory", "")
        try:
            self._room = FileRoom(count * LINE, directory) if directory else MemoryRoom(count * LINE)
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"there is no room for a cache of {count * LINE} bytes: {error}") from error
        self._lines: OrderedDict[int, tuple[int, int]] = OrderedDict()  # by line: its slot and checksum, oldest first
        self._free: list[int] = []  # slots that were used
        self._fresh = iter(range(count))  # those that were not: as many as a large disk has lines
        self._lock = threading.Lock()  # what `below` returns may end on another thread
        self._changes = 0  # beginnings and ends of writes: what was read across one must not be kept
        self._complained = False
        self._writing = 0  # how many writes are under way
        self.hits = self.misses = self.corrupt = 0

    def close(self) -> None:
        """Give the room back."""
        with self._lock:
            self._lines.clear()
            self._free.clear()
            self._fresh = iter(range(0))
            self._room.close()

    def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Tell the counters; `drop` forgets everything first."""
        action = message.get("action", "show")
        if action not in ("show", "drop"):
            raise ConfigError(f"{action!r} is nothing that can be asked of `cache`: show or drop")
        if action == "drop":
            with self._lock:
                self._forget(0, self._end)
        return {"lines": len(self._lines), "hits": self.hits, "misses": self.misses, "corrupt": self.corrupt}

    # -- lines --------------------------------------------------------------------------------------------------------

    def _get(self, line: int) -> memoryview | None:
        found = self._lines.get(line)
        if found is None:
            return None
        slot, checksum = found
        data = memoryview(bytearray(LINE))
        try:
            self._room.read(slot * LINE, [data])
        except OSError as error:
            self._complain("what it can't read is read from the disk", error)
            self._drop(line)
            return None
        if crc32c.crc32c(data) != checksum:
            self.corrupt += 1
            self._log.error("cache: the line at byte %d is corrupt: it is read again", line * LINE)
            self._drop(line)
            return None
        self._lines.move_to_end(line)
        return data

    def _put(self, line: int, data: memoryview) -> None:
        found = self._lines.pop(line, None)
        if found is not None:
            slot = found[0]
        elif self._free:
            slot = self._free.pop()
        elif (fresh := next(self._fresh, None)) is not None:
            slot = fresh
        elif self._lines:
            _, (slot, _) = self._lines.popitem(last=False)
        else:
            return  # closed
        try:
            self._room.write(slot * LINE, [data])
        except OSError as error:  # its file system is full, or broken: what the disk did is done all the same
            self._free.append(slot)
            self._complain("it keeps less than it has room for", error)
            return
        self._lines[line] = slot, crc32c.crc32c(data)

    def _drop(self, line: int) -> None:
        found = self._lines.pop(line, None)
        if found is not None:
            self._free.append(found[0])

    def _complain(self, what: str, error: OSError) -> None:
        """Say once what its directory does to it."""
        if not self._complained:
            self._complained = True
            self._log.error("cache: %s: %s", what, error)

    def _forget(self, offset: int, length: int) -> None:
        """Drop what the cache has of a range, whether that is large or the cache is."""
        first, last = offset // LINE, -(-(offset + length) // LINE)
        if last - first > len(self._lines):
            for line in [line for line in self._lines if first <= line < last]:
                self._drop(line)
        else:
            for line in range(first, last):
                self._drop(line)

    # -- the hooks ----------------------------------------------------------------------------------------------------

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Read what is kept from the cache, and the rest from below."""
        end = offset + sum(map(len, buffers))
        runs: list[tuple[int, int]] = []  # what has to be read, from byte to byte
        with self._lock:
            began = self._changes
            for line in range(offset // LINE, -(-end // LINE)):
                start, stop = max(offset, line * LINE), min(end, (line + 1) * LINE)
                data = self._get(line)
                if data is not None:
                    self.hits += 1
                    _copy(data[start - line * LINE :], slice_buffers(buffers, start - offset, stop - start))
                    continue
                self.misses += 1
                if runs and runs[-1][1] == start:
                    runs[-1] = runs[-1][0], stop
                else:
                    runs.append((start, stop))
        if not runs:
            return None
        pending = (below(start, slice_buffers(buffers, start - offset, stop - start)) for start, stop in runs)

        def keep() -> None:
            with self._lock:
                # A write that began since may have been read half, or not at all.
                if self._changes == began and not self._writing:
                    for start, stop in runs:
                        self._put_whole(start, stop, slice_buffers(buffers, start - offset, stop - start))

        return after(gathered(pending), keep)

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Write it below, and keep it when that has ended well."""
        length = sum(map(len, buffers))
        return self._change(offset, length, lambda: below(offset, buffers), buffers)

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Discard it below, and forget it."""
        return self._change(offset, length, lambda: below(offset, length))

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Write zeros below, and forget what was there."""
        return self._change(offset, length, lambda: below(offset, length))

    def reconfigure(self, below: Callable[[Change], None], change: Change) -> None:
        """Forget all: another size or storage is another disk."""
        below(change)
        with self._lock:
            self._changes += 1
            self._forget(0, max(self._end, change.size or 0))
            self._end = change.size or self._end

    def _change(
        self, offset: int, length: int, go_on: Callable[[], Any], buffers: list[memoryview] | None = None
    ) -> Any:
        """Forget a range while it changes; keep what `buffers` say of it, unless another change came between."""
        with self._lock:
            self._changes += 1
            self._writing += 1
            began = self._changes
            self._forget(offset, length)

        def ended(*, well: bool) -> None:
            with self._lock:
                self._writing -= 1
                if well and buffers is not None and began == self._changes and not self._writing:
                    self._put_whole(offset, offset + length, buffers)
                self._changes += 1

        try:
            pending = go_on()
        except BaseException:
            ended(well=False)
            raise
        if isinstance(pending, Future):
            outer: Future[Any] = Future()

            def done(inner: Future[Any]) -> None:
                error = failure(inner)
                ended(well=error is None)
                if error is None:
                    outer.set_result(None)
                else:
                    outer.set_exception(error)

            pending.add_done_callback(done)
            return outer
        ended(well=True)
        return None

    def _put_whole(self, start: int, stop: int, buffers: list[memoryview]) -> None:
        """Keep the lines that lie whole in a range."""
        for line in range(-(-start // LINE), stop // LINE):
            data = memoryview(b"".join(slice_buffers(buffers, line * LINE - start, LINE)))
            self._put(line, data)


def _copy(data: memoryview, buffers: list[memoryview]) -> None:
    at = 0
    for buffer in buffers:
        buffer[:] = data[at : at + len(buffer)]
        at += len(buffer)
