"""Two gateways on one image: reservations hold at both, the lock moves, and who has lost it writes no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack

import pytest

from tcmu_core import Busy, ConfigError
from tcmu_core.iscsi import pdu as p
from tcmu_core.testing import open_device
from tcmu_rbd import RbdHandler, binding
from tcmu_rbd.config import parse
from tcmu_rbd.link import Link
from tcmu_rbd.shelf import WATCH
from tests.clusters.ceph import Ceph
from tests.clusters.gateway import Gateways
from tests.clusters.paths import BLOCK, STANDBY, Disk, Out, Registration, Status
from tests.clusters.processes import until
from tests.iscsi.initiator import cdb_10

WRITE_EXCLUSIVE, REGISTRANTS_ONLY = 1, 5
PREEMPTED = {(0x2A, 0x03), (0x2A, 0x05)}  # RESERVATIONS PREEMPTED, REGISTRATIONS PREEMPTED

Node = Callable[..., Disk]


@pytest.fixture
def node(gateways: Gateways) -> Iterator[Node]:
    """Log an initiator in until the test ends; it has paths through both gateways, or through those that are named."""
    with ExitStack() as stack:

        def log_in(who: str, *numbers: int) -> Disk:
            return stack.enter_context(Disk(who, [gateways.address(number) for number in numbers or (1, 2)]))

        yield log_in


def block(mark: str) -> bytes:
    return mark.encode() * BLOCK


def late_write(disk: Disk, lba: int, mark: str) -> None:
    """Send a write and wait for no answer: its gateway finds it when it goes on."""
    client = disk.paths[0].client
    client.send(client.initiator.command(cdb_10(0x2A, lba, 1), write=block(mark), data=block(mark)))


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_both_gateways_show_one_disk_and_its_ports_apart(gateways: Gateways, node: Node) -> None:
    one, two = node("a", 1), node("b", 2)
    pages = [disk.send(bytes([0x12, 1, 0x83, 4, 0, 0]), read=1024)[1] for disk in (one, two)]
    # Designators of the logical unit are the same, the relative target port identifier is not (SPC-4 7.8.6).
    units = [[one for one in designators(page) if not one[1] & 0x30] for page in pages]
    ports = [next(one[4:] for one in designators(page) if one[1] & 0x3F == 0x14) for page in pages]
    assert units[0] == units[1]
    assert ports == [bytes([0, 0, 0, 1]), bytes([0, 0, 0, 2])]


def designators(page: bytes) -> list[bytes]:
    found, at = [], 4
    while at < 4 + int.from_bytes(page[2:4], "big"):
        found.append(page[at : at + 4 + page[at + 3]])
        at += 4 + page[at + 3]
    return found


def test_what_needs_no_medium_leaves_the_lock_where_it_is(gateways: Gateways, node: Node, ceph: Ceph) -> None:
    one, two = node("a", 1), node("b", 2)
    assert one.write(0, block("1")) == Status.GOOD
    fenced = ceph.blocklist()
    for cdb, room in (
        (bytes(6), 0),  # TEST UNIT READY
        (bytes([0x12, 0, 0, 0, 96, 0]), 96),  # INQUIRY
        (bytes([0x25]) + bytes(9), 8),  # READ CAPACITY(10)
        (bytes([0x1A, 0, 0x3F, 0, 255, 0]), 255),  # MODE SENSE(6)
        (bytes([0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), 256),  # REPORT TARGET PORT GROUPS
    ):
        assert two.send(cdb, read=room)[0] == Status.GOOD
    assert two.out(Out.REGISTER, 0, 2) == Status.GOOD
    assert two.keys() == [2]
    assert one.write(1, block("1")) == Status.GOOD
    assert ceph.blocklist() == fenced
    assert two.read(1) == block("1")  # and what does need it takes it
    assert len(ceph.blocklist()) > len(fenced)


def test_a_gateway_that_stood_still_writes_no_more_after_a_takeover(gateways: Gateways, node: Node) -> None:
    one, two = node("a", 1), node("a", 2)
    for lba in range(8):
        assert one.write(lba, block("1")) == Status.GOOD
    with gateways.standing_still(1):
        late_write(one, 1, "L")
        assert two.write(1, block("2")) == Status.GOOD
    answer = one.paths[0].client.receive()
    if answer is not None:  # the connection may be broken before it is told
        assert isinstance(answer, p.ScsiResponse)
        sense = bytes(answer.data[2:])
        assert (answer.status, (sense[2] & 0x0F, (sense[12], sense[13]))) == (Status.CHECK, STANDBY)
        assert one.paths[0].client.receive() is None
    assert b"".join(two.read(lba)[:1] for lba in range(8)) == b"12111111"
    one.paths[0].close()
    assert one.write(2, block("3")) == Status.GOOD  # a fresh session has the disk when it asks for it
    assert one.read(1) == block("2")


def test_who_has_taken_the_lock_meanwhile_is_not_fenced_in_the_place_of_another(make, ceph: Ceph) -> None:
    config, modules = parse(make(more=";lock=move").cfgstring), binding.load()
    holder = Link.connect(modules, config, read_only=False)
    other = Link.connect(modules, config, read_only=False, lock=False)
    try:
        before = ceph.blocklist()
        other._holders = lambda: ["127.0.0.1:0/1"]  # type: ignore[method-assign]  # who had it when it looked
        assert other.fence_unaware(set()) == ""
        assert holder.locked()
        assert ceph.blocklist() == before
        del other._holders  # type: ignore[method-assign]  # the class has its own again
        assert other.fence_unaware(set()) == holder.address
        assert len(ceph.blocklist()) > len(before)
    finally:
        other.close()
        holder.close()


def test_an_image_is_the_same_disk_at_all_its_gateways_and_no_other_one(make) -> None:
    image, another = make(more=";lock=move"), make(more=";lock=move")
    with (
        open_device(RbdHandler, image.cfgstring) as one,
        open_device(RbdHandler, image.cfgstring) as two,
        open_device(RbdHandler, another.cfgstring) as other,
    ):
        assert one.device.serial == two.device.serial != other.device.serial
    with open_device(RbdHandler, image.cfgstring, serial="given") as named:
        assert named.device.serial == "given"


def test_an_image_without_a_lock_can_have_no_second_gateway(make) -> None:
    image = make("--image-feature", "layering", more=";lock=move")
    with pytest.raises(ConfigError, match="rbd feature enable"):
        open_device(RbdHandler, image.cfgstring).__enter__()


def test_the_one_that_stands_by_sees_a_resize(make, ceph: Ceph) -> None:
    image = make(more=";lock=move")
    with open_device(RbdHandler, image.cfgstring) as one, open_device(RbdHandler, image.cfgstring) as two:
        ceph.rbd("resize", "--size", "24M", image.name)
        until(lambda: (one.size, two.size) == (24 << 20, 24 << 20), "both are larger")
        with pytest.raises(Busy):
            two.read(0, BLOCK)


# -- reservations ------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_reservations_outlive_both_gateways(gateways: Gateways, node: Node) -> None:
    holder = node("a")
    assert holder.out(Out.REGISTER, 0, 1, aptpl=True) == Status.GOOD
    assert holder.out(Out.RESERVE, 1, kind=WRITE_EXCLUSIVE) == Status.GOOD
    gateways.kill(1)
    gateways.kill(2)
    gateways.start(1)
    assert node("b", 1).write(0, block("x")) == Status.CONFLICT
    assert node("a", 1).write(0, block("y")) == Status.GOOD


def test_registrations_that_race_through_both_gateways_are_all_there(gateways: Gateways, node: Node) -> None:
    racers = [node(f"racer{number}", 1 + number % 2) for number in range(6)]
    for key, racer in enumerate(racers, 1):
        assert racer.send(bytes(6))[0] == Status.GOOD
        data = bytes(8) + key.to_bytes(8, "big") + bytes(8)
        client = racer.paths[0].client
        client.send(client.initiator.command(bytes([0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0]), write=data, data=data))
    for racer in racers:
        answer = racer.paths[0].client.receive()
        assert isinstance(answer, p.ScsiResponse)
        assert answer.status == Status.GOOD
    assert racers[0].keys() == racers[1].keys() == [1, 2, 3, 4, 5, 6]


@pytest.mark.soak
def test_a_node_is_fenced_though_the_gateway_that_it_uses_stands_still(gateways: Gateways, node: Node) -> None:
    victim, fencer = node("a", 1), node("b", 2)
    assert victim.out(Out.REGISTER_AND_IGNORE, 0, 1) == Status.GOOD
    assert fencer.out(Out.REGISTER_AND_IGNORE, 0, 2) == Status.GOOD
    assert fencer.out(Out.RESERVE, 2, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert victim.write(0, block("1")) == Status.GOOD
    with gateways.standing_still(1):
        late_write(victim, 0, "L")
        # The gateway that has the lock does not take the change: it loses the lock before this is answered.
        assert fencer.out(Out.PREEMPT_AND_ABORT, 2, 1, kind=REGISTRANTS_ONLY) == Status.GOOD
    while victim.paths[0].client.receive() is not None:
        pass
    victim.paths[0].close()
    assert fencer.read(0) == block("1")
    assert victim.write(0, block("2")) == Status.CONFLICT


@pytest.mark.soak
def test_a_gateway_that_the_cluster_has_forgotten_hears_again_of_changes(gateways: Gateways, node: Node) -> None:
    one, two = node("a", 1), node("b", 2)
    assert two.write(0, block("2")) == Status.GOOD  # the other one has the lock: nothing else makes it look
    with gateways.standing_still(1):
        time.sleep(2 * WATCH)
        assert two.out(Out.REGISTER, 0, 2) == Status.GOOD
    until(lambda: one.keys() == [2], "it has heard of the registration")
    assert two.out(Out.REGISTER, 2, 3) == Status.GOOD
    assert one.keys() == [3]


def test_a_gateway_that_takes_the_lock_knows_what_it_has_missed(make) -> None:
    image = make(more=";lock=move")
    with open_device(RbdHandler, image.cfgstring) as one, open_device(RbdHandler, image.cfgstring) as two:
        ours, missed = one.device.reservations, two.device.reservations
        told: list[bytes] = []

        def changed() -> Future[None]:
            told.append(missed.load()[0])
            taken: Future[None] = Future()
            taken.set_result(None)
            return taken

        missed.watch(changed)
        missed._watch.close()  # nobody tells it of changes any more
        ours.refresh()
        ours.replace(b"new", ours.load()[1]).result()
        assert missed.load()[0] == b""

        def written() -> bool:
            try:
                two.write(0, block("2"))
            except Busy:
                return False
            return True

        until(written, "it has the lock")
        assert missed.load()[0] == told[-1] == b"new"


# -- what clusters do with them, each across the end of the gateway that is used ---------------------------------------


def join(disk: Disk, key: int, *, aptpl: bool = False) -> None:
    """Register by each path."""
    answers = disk.on_each_path(lambda: disk.out(Out.REGISTER_AND_IGNORE, 0, key, aptpl=aptpl))
    assert answers == [Status.GOOD] * len(disk.paths)


def test_a_windows_cluster_defends_its_disk_and_is_challenged_for_it(gateways: Gateways, node: Node) -> None:
    owner, challenger = node("a"), node("b")
    # The owner registers by each of its paths, and reserves by one.
    join(owner, 1)
    assert owner.out(Out.RESERVE, 1, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert owner.write(0, block("o")) == Status.GOOD
    # A challenger registers, and waits whether the owner takes that away: it does, so it is alive.
    join(challenger, 2)
    assert challenger.reservation() == (1, REGISTRANTS_ONLY)
    assert challenger.out(Out.RESERVE, 2, kind=REGISTRANTS_ONLY) == Status.CONFLICT
    assert owner.keys() == [1, 1, 2, 2]
    assert owner.out(Out.PREEMPT, 1, 2, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert challenger.out(Out.PREEMPT, 2, 1, kind=REGISTRANTS_ONLY) == Status.CONFLICT
    assert (0x2A, 0x05) in challenger.told

    gateways.kill(1)
    assert owner.write(1, block("o")) == Status.GOOD  # by its other path, where it is registered too
    assert challenger.write(1, block("c")) == Status.CONFLICT
    assert owner.reservation() == (1, REGISTRANTS_ONLY)  # still that of the port that is gone
    assert challenger.out(Out.REGISTER_AND_IGNORE, 0, 2) == Status.GOOD
    # This time the owner does not defend itself: the disk is the challenger's, at the gateway that is gone as well.
    assert challenger.out(Out.PREEMPT, 2, 1, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert challenger.write(1, block("c")) == Status.GOOD
    assert owner.out(Out.RESERVE, 1, kind=REGISTRANTS_ONLY) == Status.CONFLICT
    assert owner.write(1, block("o")) == Status.CONFLICT

    gateways.start(1)
    owner.use(1)
    assert owner.write(1, block("o")) == Status.CONFLICT
    assert owner.keys() == [2]
    assert b"".join(owner.read(lba)[:1] for lba in range(2)) == b"oc"


def test_fence_scsi_cuts_a_node_off_at_every_gateway(gateways: Gateways, node: Node) -> None:
    a, b = node("a"), node("b")
    # Each node registers its key by each of its paths when it joins, with APTPL, and one of them reserves.
    join(a, 1, aptpl=True)
    join(b, 2, aptpl=True)
    assert a.out(Out.RESERVE, 1, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert a.write(0, block("a")) == b.write(1, block("b")) == Status.GOOD

    gateways.kill(1)
    assert b.write(1, block("B")) == Status.GOOD
    # b does not answer any more: it is fenced by the gateway that is left, and its key is gone from all ports.
    a.use(2)
    assert a.out(Out.PREEMPT_AND_ABORT, 1, 2, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert a.registrations() == [Registration(1, 1, True), Registration(1, 2, False)]
    assert b.write(1, block("x")) == Status.CONFLICT
    assert (0x2A, 0x05) in b.told

    gateways.start(1)
    a.use(1)
    b.use(1)
    assert b.write(1, block("x")) == Status.CONFLICT
    assert a.write(0, block("A")) == Status.GOOD
    assert b"".join(a.read(lba)[:1] for lba in range(2)) == b"AB"
    # It has rebooted, and joins again.
    assert b.out(Out.REGISTER_AND_IGNORE, 0, 2, aptpl=True) == Status.GOOD
    assert b.write(1, block("b")) == Status.GOOD


def test_mpathpersist_registers_all_paths_and_takes_up_those_that_come_back(gateways: Gateways, node: Node) -> None:
    a, b = node("a"), node("b")
    assert a.out(Out.REGISTER_AND_IGNORE, 0, 7, aptpl=True, all_ports=True) == Status.GOOD
    assert a.out(Out.RESERVE, 7, kind=WRITE_EXCLUSIVE) == Status.GOOD
    assert a.registrations() == [Registration(7, 1, True), Registration(7, 2, False)]
    assert b.on_each_path(lambda: b.write(0, block("b"))) == [Status.CONFLICT] * 2
    # Of WRITE EXCLUSIVE one path alone is the holder: mpathpersist asks for REGISTRANTS ONLY, by which all of them are.
    assert a.on_each_path(lambda: a.write(0, block("a"))) == [Status.GOOD, Status.CONFLICT]
    assert a.out(Out.RELEASE, 7, kind=WRITE_EXCLUSIVE) == Status.GOOD
    assert b.write(0, block("b")) == Status.GOOD
    assert a.out(Out.RESERVE, 7, kind=REGISTRANTS_ONLY) == Status.GOOD

    gateways.kill(1)
    assert a.write(1, block("a")) == Status.GOOD
    assert b.write(1, block("b")) == Status.CONFLICT
    # The port that holds the reservation is gone: RELEASE by the other one has no effect (SPC-4 5.12.11.2.2) ...
    assert a.out(Out.RELEASE, 7, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert a.reservation() == (7, REGISTRANTS_ONLY)
    # ... so that mpathpersist preempts its own key there, which makes the path that is left the holder.
    assert a.out(Out.PREEMPT, 7, 7, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert a.registrations() == [Registration(7, 2, True)]

    gateways.start(1)
    a.use(1)
    assert a.write(1, block("x")) == Status.CONFLICT  # the path has come back, and multipathd has not been there yet
    assert a.out(Out.REGISTER_AND_IGNORE, 0, 7, aptpl=True) == Status.GOOD
    assert a.write(1, block("A")) == Status.GOOD
    a.use(2)
    assert a.out(Out.RELEASE, 7, kind=REGISTRANTS_ONLY) == Status.GOOD
    assert b.out(Out.REGISTER, 0, 8) == Status.GOOD
    assert b.out(Out.CLEAR, 8) == Status.GOOD
    assert a.registrations() == []
    assert PREEMPTED & set(a.told)
