"""Two gateways of an image, and the multipathd of a real kernel: it goes on by the other path, and loses nothing.

The kernel is a virtual machine's. One gateway is in a network of its own, whose cable to the cluster can be pulled.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters.ceph import Ceph
from tests.clusters.gateway import TARGET, Gateways
from tests.clusters.island import Island, island
from tests.clusters.processes import until
from tests.clusters.writer import BLOCK, filled
from tests.vm import GATEWAY, Job, Machine

pytestmark = [pytest.mark.vm, pytest.mark.soak]

WRITES = 200
PATIENCE = 180.0  # seconds for an emulated machine to find out that a path has failed, or that it is back
IMAGE = "disk"
KEY = "0x7a"
REGISTRANTS_ONLY = "--prout-type=5"  # WRITE EXCLUSIVE
OPTIMIZED, NON_OPTIMIZED = 50, 10  # priorities that multipath gives to access states
# What multipath knows of such disks by itself is left: group_by_prio, prio alua, failback immediate.
MULTIPATH = f"""
overrides {{
    no_path_retry queue
}}
defaults {{
    user_friendly_names yes
    find_multipaths no
    polling_interval 2
    max_polling_interval 2
    fast_io_fail_tmo 3
    reservation_key {KEY}
}}
"""
PREPARE = """
modprobe -a iscsi_tcp crc32c scsi_dh_alua dm_multipath dm_service_time
/lib/systemd/systemd-udevd --daemon
udevadm trigger
echo InitiatorName=iqn.2026-01.test:vm >/etc/iscsi/initiatorname.iscsi
iscsid
"""
SETTINGS = {  # how soon the initiator sees that a path is silent, and comes back to it
    "node.conn[0].timeo.noop_out_interval": 2,
    "node.conn[0].timeo.noop_out_timeout": 4,
    "node.conn[0].timeo.login_timeout": 10,
    "node.session.err_timeo.abort_timeout": 3,
    "node.session.err_timeo.lu_reset_timeout": 3,
    "node.session.err_timeo.tgt_reset_timeout": 3,
}
ISLAND = 1  # its number: another process may have the first one


@dataclass(frozen=True, slots=True)
class Group:
    """A priority group of the multipath device: `gateways` are those that its paths lead to."""

    priority: int
    active: bool
    gateways: list[int]
    ready: bool


class Guest:
    """The machine, with a multipath device of a path through each gateway."""

    def __init__(self, vm: Machine, gateways: Gateways) -> None:
        self.vm = vm
        self._gateways = gateways
        vm.run(f"set -e\n{PREPARE}", check=True)
        vm.run("cat >/etc/multipath.conf", stdin=MULTIPATH, check=True)
        self._daemon = vm.spawn(["multipathd", "-d", "-s"])
        self._names = {self._log_in(number): number for number in (1, 2)}
        until(self.ready, "both paths are ready", PATIENCE)
        self.device = "/dev/mapper/mpatha"

    def _log_in(self, number: int) -> str:
        """Have a session with a gateway; returns its disk's name."""
        host, _, port = self._gateways.address(number).rpartition(":")
        portal = f"{GATEWAY if host == '127.0.0.1' else host}:{port}"
        node = f"iscsiadm -m node -T {TARGET} -p {portal}"
        settings = "".join(f"{node} -o update -n '{name}' -v {value}\n" for name, value in SETTINGS.items())
        self.vm.run(f"set -e\n{node} -o new\n{settings}{node} --login", timeout=PATIENCE, check=True)
        find = (
            f"for s in /sys/class/iscsi_session/session*; do grep -qx {portal.partition(':')[0]} "
            "$s/device/connection*/iscsi_connection/*/persistent_address && ls -d $s/device/target*/*/block/sd*; done"
        )
        until(lambda: bool(self.vm.run(find).stdout), f"the disk of gateway {number} is there", PATIENCE)
        return self.vm.run(find).stdout.split()[0].rpartition("/")[2]

    def listed(self) -> str:
        """Return what `multipath -ll` shows."""
        return self.vm.run("multipath -ll", timeout=PATIENCE, check=True).stdout

    def groups(self) -> list[Group]:
        """Return the groups of the multipath device, the one with the highest priority first."""
        found = []
        for text in re.split(r"^[|`]-\+- ", self.listed(), flags=re.MULTILINE)[1:]:
            head = re.match(r".* prio=(\d+) status=(\w+)", text)
            assert head, text
            paths = re.findall(r"- \S+ (sd\w+) +\S+ +(\S+) (\S+)", text)
            gateways = [self._names[name] for name, *_ in paths]
            ready = all(states == ["active", "ready"] for _, *states in paths)
            found.append(Group(int(head[1]), head[2] == "active", gateways, ready))
        return sorted(found, key=lambda group: -group.priority)

    def ready(self) -> bool:
        """Return whether both paths are, each in a group of its own with the priority of its access state."""
        told = [(group.priority, group.gateways, group.ready) for group in self.groups()]
        return told == [(OPTIMIZED, [1], True), (NON_OPTIMIZED, [2], True)]

    def persist(self, *words: str) -> str:
        """Run mpathpersist on the device; returns what it printed."""
        return self.vm.run(["mpathpersist", *words, self.device], timeout=PATIENCE, check=True).stdout

    def used(self) -> list[int]:
        """Return the gateways of the group that is used."""
        return [number for group in self.groups() if group.active for number in group.gateways]

    def read_through(self, number: int) -> None:
        """Read through one gateway, whatever comes of it."""
        (name,) = [name for name, gateway in self._names.items() if gateway == number]
        # Linux takes a disk out of service whose gateway did not answer its resets in time.
        back = f"echo running > /sys/block/{name}/device/state"
        self.vm.run(f"{back}; dd if=/dev/{name} of=/dev/null bs=4k count=1 iflag=direct", timeout=PATIENCE)

    def comes_back(self) -> None:
        """Wait until the better path, that through gateway 1, is used again, or for the first time."""
        until(self.ready, "both paths are ready", PATIENCE)
        until(lambda: self.used() == [1], "gateway 1 is used", PATIENCE)


class Load:
    """The writer in the machine, and what it has said that was acknowledged."""

    def __init__(self, guest: Guest) -> None:
        self._job: Job = guest.vm.spawn([sys.executable, "-m", "tests.clusters.writer", guest.device])

    @property
    def _lines(self) -> list[str]:
        return [line for line in self._job.stdout.splitlines(keepends=True) if line.endswith("\n")]

    def more(self) -> None:
        """Wait until many more writes were acknowledged."""
        before = len(self._lines)
        until(lambda: self._job.poll() is not None or len(self._lines) >= before + WRITES, "writes go on", PATIENCE)
        assert self._job.poll() is None, self._job.result()

    def finish(self) -> dict[int, int]:
        """Write no more, and have all read through the multipath device; returns what every block is filled with."""
        self._job.terminate()
        self._job.wait(PATIENCE).check()
        return {int(block): int(count) for block, count in (line.split() for line in self._lines)}


@dataclass(frozen=True, slots=True)
class World:
    """All that there is."""

    ceph: Ceph
    gateways: Gateways
    guest: Guest

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Expect the gateway that has the lock to be on the cluster's blocklist afterwards."""
        holder = json.loads(self.ceph.rbd("lock", "ls", "--format", "json", IMAGE))[0]["address"]
        assert holder not in self.ceph.blocklist()
        yield
        assert holder in self.ceph.blocklist()

    def check(self, acknowledged: dict[int, int]) -> None:
        """Compare what was acknowledged with what the cluster has."""
        image = self.ceph.rbd("export", "--no-progress", IMAGE, "-")
        assert acknowledged
        for block, count in acknowledged.items():
            assert image[block * BLOCK : (block + 1) * BLOCK] == filled(count), f"block {block}: {count}"


@pytest.fixture(scope="module")
def isle() -> Iterator[Island]:
    with island(ISLAND) as made:
        yield made


@pytest.fixture(scope="module")
def world(isle: Island, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tcmu-ceph-"))
        ceph = Ceph(Path(directory), address=isle.mainland)
        stack.callback(ceph.stop)
        ceph.start()
        cfgstring = ceph.create(IMAGE, "16M") + ";lock=move"
        gateways = Gateways(tmp_path_factory.mktemp("gateways"), "rbd", cfgstring, away=[(isle.clients, isle.prefix)])
        stack.callback(gateways.stop)
        gateways.start(1, 2)
        vm = stack.enter_context(Machine(network=True))
        yield World(ceph, gateways, Guest(vm, gateways))


@pytest.fixture
def load(world: World) -> Load:
    """A load by the first gateway."""
    load = Load(world.guest)
    world.guest.comes_back()
    load.more()
    return load


def test_multipath_tells_the_groups_apart(world: World) -> None:
    until(world.guest.ready, "there are two groups", PATIENCE)
    assert "hwhandler='1 alua'" in world.guest.listed()
    told = world.guest.vm.run(["sg_rtpg", "-d", world.guest.device], check=True).stdout
    assert re.findall(r"asymmetric access state : (\w+)", told) == ["0x00", "0x01"]


def test_the_gateway_that_is_used_is_killed(world: World, load: Load) -> None:
    with world.fenced():
        world.gateways.kill(1)
        load.more()
    assert world.guest.used() == [2]
    world.gateways.start(1)
    world.guest.comes_back()
    load.more()
    world.check(load.finish())


def test_a_reservation_by_mpathpersist_is_kept_when_the_gateway_is_killed(world: World, load: Load) -> None:
    persist = world.guest.persist
    persist("--out", "--register", f"--param-sark={KEY}")
    persist("--out", "--reserve", f"--param-rk={KEY}", REGISTRANTS_ONLY)
    world.gateways.kill(1)
    load.more()  # by the other path, which is registered too
    for words in ("--read-keys", "--read-reservation"):
        assert KEY in persist("--in", words)
    world.gateways.start(1)
    world.guest.comes_back()
    load.more()  # and by the first one, which still is
    load.finish()
    persist("--out", "--release", f"--param-rk={KEY}", REGISTRANTS_ONLY)
    persist("--out", "--register", f"--param-rk={KEY}", "--param-sark=0")
    assert KEY not in persist("--in", "--read-keys")


def test_the_gateway_that_is_used_stands_still(world: World, load: Load) -> None:
    seen = len(world.gateways.log(1))
    with world.gateways.standing_still(1):
        with world.fenced():
            load.more()
        assert world.guest.used() == [2]
        acknowledged = load.finish()

    def found_out() -> bool:
        """Return whether a command was refused: one that was on its way, or the next one if there was none."""
        if "the connection is given up (" in world.gateways.log(1)[seen:]:
            return True
        world.guest.read_through(1)
        return False

    try:
        until(found_out, "it finds out")
    finally:
        print(world.gateways.log(1)[seen:])
    world.check(acknowledged)


def test_the_gateway_that_is_used_is_cut_off_from_the_cluster(world: World, isle: Island, load: Load) -> None:
    seen = len(world.gateways.log(1))
    with isle.cut_off():
        with world.fenced():
            load.more()
        acknowledged = load.finish()
    until(lambda: "standing by" in world.gateways.log(1)[seen:], "it finds out")
    world.check(acknowledged)
