"""Load: a thread that writes to a disk while its cluster fails, and knows what has to be there afterwards."""

from __future__ import annotations

import random
import threading
import time

from tcmu_core import Busy
from tcmu_core.testing import OpenDevice
from tests.clusters.processes import until

BLOCK = 4096


class Load(threading.Thread):
    """Writes blocks and keeps what was acknowledged, trying again when it hears BUSY, as an initiator does."""

    def __init__(self, disk: OpenDevice) -> None:
        super().__init__()
        self.disk = disk
        self.acknowledged: dict[int, bytes] = {}
        self.busy = 0
        self.error: BaseException | None = None
        self.enough = threading.Event()
        self.last = time.monotonic()

    def run(self) -> None:
        chance = random.Random(7)
        try:
            while not self.enough.is_set():
                at, data = chance.randrange(self.disk.size // BLOCK) * BLOCK, chance.randbytes(BLOCK)
                self.persist(at, data)
                self.acknowledged[at] = data
                self.last = time.monotonic()
        except BaseException as error:
            self.error = error

    def persist(self, at: int, data: bytes) -> None:
        while True:
            try:
                self.disk.write(at, data)
                return
            except Busy:
                self.busy += 1
                time.sleep(0.02)

    def more(self, count: int = 50) -> None:
        """Wait until so many more blocks were acknowledged."""
        before = len(self.acknowledged)
        until(lambda: self.error is not None or len(self.acknowledged) >= before + count, "writes go on")
        assert self.error is None

    def stalls(self) -> None:
        """Wait until nothing has been acknowledged for a while."""
        until(lambda: time.monotonic() - self.last > 0.5, "writes stall")

    def finish(self) -> None:
        self.enough.set()
        self.join(60)
        assert self.error is None
        for at, data in self.acknowledged.items():
            assert self.disk.read(at, BLOCK) == data
