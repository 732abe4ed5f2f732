"""A verified load that runs where the disk is: `python -m tests.clusters.writer DEVICE`, until SIGTERM.

Some threads write blocks past the page cache, each its own, and read some again. A line tells of each write that was
acknowledged: the block, and the number that it is filled with. At last all of them are read. An error ends it all.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

BLOCK = 4096  # bytes
THREADS = 4
PAUSE = 0.5  # seconds between two looks whether a thread has failed
BLOCKS = 16  # of each thread: so few that what lands late lands on something newer


class Writer:
    """One thread's load on its blocks, through a descriptor that is opened with O_DIRECT."""

    def __init__(self, fd: int, number: int, enough: threading.Event) -> None:
        self._fd = fd
        self._first = number * BLOCKS
        self._chance = random.Random(number)
        self._enough = enough
        self._memory = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT wants it
        self._known: dict[int, int] = {}

    def run(self) -> None:
        """Write until it is enough; raises what fails."""
        try:
            count = 0
            while not self._enough.is_set():
                count += 1
                block = self._first + self._chance.randrange(BLOCKS)
                self._memory[:] = filled(count)
                if os.pwrite(self._fd, self._memory, block * BLOCK) != BLOCK:
                    raise OSError(f"block {block}: written in part")
                self._known[block] = count
                os.write(1, f"{block} {count}\n".encode())  # in one piece: lines of others do not get into it
                if not count % 8:
                    self._verify(self._chance.choice(list(self._known)))
            for block in self._known:
                self._verify(block)
        except BaseException:
            self._enough.set()
            raise

    def _verify(self, block: int) -> None:
        if os.preadv(self._fd, [self._memory], block * BLOCK) != BLOCK or self._memory[:] != filled(self._known[block]):
            raise OSError(f"block {block} has not what was written: {self._known[block]}, but {self._memory[:8]!r}")


def filled(count: int) -> bytes:
    """Return a block that is filled with a number."""
    return count.to_bytes(8, "big") * (BLOCK // 8)


def main(words: list[str]) -> int:
    """Return the exit status: 0 when there was no error."""
    enough = threading.Event()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    fd = os.open(words[0], os.O_RDWR | os.O_DIRECT)
    with ThreadPoolExecutor(THREADS) as pool:
        loads = [pool.submit(Writer(fd, number, enough).run) for number in range(THREADS)]
        while not enough.is_set():
            if signal.sigtimedwait({signal.SIGTERM}, PAUSE):
                enough.set()
    failed = [error for load in loads if (error := load.exception()) is not None]
    for error in failed:
        traceback.print_exception(error)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
