"""The gateway that is used dies, stands still, or is cut off, under a load: nothing that was acknowledged is lost.

The initiator tries its other path when one fails, and hears of no other error. What the first gateway had on its way is
refused when it goes on, since it is on the cluster's blocklist.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.ceph import Ceph
from tests.clusters.gateway import Gateways
from tests.clusters.island import Island, island
from tests.clusters.paths import BLOCK, Disk, Status
from tests.clusters.processes import until

pytestmark = pytest.mark.soak

BLOCKS = 32  # so few that what lands late lands on something newer
WRITES = 400
SILENCE = 10.0  # seconds without an answer, after which the initiator tries the other path


class Load(threading.Thread):
    """Writes blocks, reads some, and knows what has to be there: what was `acknowledged` before, and what it wrote."""

    def __init__(self, disk: Disk, acknowledged: dict[int, bytes] | None = None) -> None:
        super().__init__()
        self.disk = disk
        self.count = 0
        self.acknowledged = acknowledged or {}
        self.error: BaseException | None = None
        self._enough = threading.Event()
        self._path = 0  # the one to go on by

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._enough.set()
        self.join()

    def run(self) -> None:
        chance = random.Random(11)
        try:
            while not self._enough.is_set():
                if self._path:
                    self.disk.use(self._path)
                    self._path = 0
                lba, data = chance.randrange(BLOCKS), (self.count + 1).to_bytes(8, "big") * (BLOCK // 8)
                assert self.disk.write(lba, data) == Status.GOOD
                self.acknowledged[lba] = data
                self.count += 1
                if not self.count % 8:
                    self.verify(chance.choice(list(self.acknowledged)))
        except BaseException as error:
            self.error = error

    def verify(self, lba: int) -> None:
        """Read a block."""
        assert self.disk.read(lba) == self.acknowledged[lba], f"block {lba}"

    def more(self) -> None:
        """Wait until many more writes were acknowledged."""
        before = self.count
        until(lambda: self.error is not None or self.count >= before + WRITES, "writes go on", 2 * 60.0)
        assert self.error is None, self.error

    def more_by(self, number: int) -> None:
        """Have many more written by the path through a gateway: on a busy machine one may be silent and left."""
        until(lambda: self._went_by(number), f"gateway {number} is used", 5 * 60.0)

    def _went_by(self, number: int) -> bool:
        self._path = number
        until(lambda: self.error is not None or not self._path, "the path is another one")
        self.more()
        return self.disk.used == number

    def rest(self) -> None:
        """Write no more: what lands late is not covered by something newer."""
        self._enough.set()
        self.join(60)
        assert self.error is None, self.error

    def finish(self) -> None:
        """Look for everything by both paths: at last by the first one, whose gateway had something on its way."""
        self.rest()
        for number in (2, 1):
            self.disk.use(number)
            for lba in self.acknowledged:
                self.verify(lba)


@pytest.fixture
def load(gateways: Gateways) -> Iterator[Load]:
    with Disk("loader", gateways.addresses, SILENCE) as disk, Load(disk) as load:
        yield load


def test_the_gateway_that_is_used_is_killed(gateways: Gateways, load: Load) -> None:
    load.more_by(1)
    gateways.kill(1)
    load.more()
    gateways.start(1)
    gateways.kill(2)  # and back
    load.more()
    gateways.start(2)
    load.finish()
    assert load.disk.failures >= 2


def test_the_gateway_that_is_used_stands_still_and_goes_on(gateways: Gateways, load: Load, ceph: Ceph) -> None:
    load.more_by(1)
    before = ceph.blocklist()
    with gateways.standing_still(1):
        load.more()
        assert len(ceph.blocklist()) > len(before)
        load.rest()
    load.finish()
    assert load.disk.failures
    with Load(load.disk, load.acknowledged) as again:
        again.more()
        again.finish()


# -- a network that is cut ---------------------------------------------------------------------------------------------


@pytest.fixture
def isle() -> Iterator[Island]:
    with island() as made:
        yield made


@pytest.fixture
def far(isle: Island) -> Iterator[Ceph]:
    """A Ceph that is reached by the cable that can be pulled."""
    with tempfile.TemporaryDirectory(prefix="tcmu-ceph-") as directory:
        cluster = Ceph(Path(directory), address=isle.mainland)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def test_the_gateway_that_is_used_is_cut_off_from_the_cluster(isle: Island, far: Ceph, tmp_path: Path) -> None:
    # It does not give an operation up before the cable is in again: what it has on its way is sent then.
    cfgstring = far.create("disk", "16M") + ";lock=move;osd_op_timeout=300"
    both = Gateways(tmp_path, "rbd", cfgstring, away=[(isle.clients, isle.prefix)])
    try:
        both.start(1, 2)
        with Disk("loader", both.addresses, SILENCE) as disk, Load(disk) as load:
            load.more_by(1)
            before = far.blocklist()
            with isle.cut_off():
                load.more()
                assert len(far.blocklist()) > len(before)
                load.rest()
            load.finish()
            assert disk.failures
    finally:
        both.stop()
