"""Two gateways on one image: reservations hold at both, the lock moves, and who has lost it writes no more."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tcmu_core.iscsi import pdu as p
from tests.clusters.ceph import Ceph
from tests.clusters.processes import until
from tests.clusters.serving import Serving, serving
from tests.iscsi.initiator import Initiator, cdb_10
from tests.iscsi.served import Client

BLOCK = 512
GOOD, CHECK, BUSY, CONFLICT = 0x00, 0x02, 0x08, 0x18
STANDBY = (2, (0x04, 0x0B))  # NOT READY, target port in standby state
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_ABORT, IGNORE = range(7)
WRITE_EXCLUSIVE, REGISTRANTS_ONLY = 1, 5


class Session:
    """An initiator's session with one gateway; what a multipath driver tries again is tried again."""

    def __init__(self, gateway: Serving, who: str) -> None:
        _, _, rest = gateway.uri.partition("://")
        address, target, _ = rest.split("/")
        self.told: list[tuple[int, int]] = []  # unit attentions
        self.client = Client(address, Initiator(f"iqn.2026-01.test:{who}", target))
        self.client.login()

    def once(self, cdb: bytes, data: bytes | None = None, read: int = 0) -> tuple[int, bytes]:
        """Send a command; returns its status and what came."""
        answer = self.client.ask(self.client.initiator.command(cdb, read=read, write=data, data=data or b""))
        came = b""
        if isinstance(answer, p.DataIn):
            came = bytes(answer.data)
            if answer.flags & 1:
                return answer.status, came
            answer = self.client.receive()
        assert isinstance(answer, p.ScsiResponse), answer
        if answer.status == CHECK:
            sense = bytes(answer.data[2:])
            key, code = sense[2] & 0x0F, (sense[12], sense[13])
            assert key == 6 or (key, code) == STANDBY
            if key == 6:
                self.told.append(code)
        return answer.status, came

    def send(self, cdb: bytes, data: bytes | None = None, read: int = 0) -> tuple[int, bytes]:
        """Send a command until it is neither busy, nor told of an attention or of a gateway that stands by."""
        found: list[tuple[int, bytes]] = []

        def ended() -> bool:
            found[:] = [self.once(cdb, data, read)]
            return found[0][0] not in (BUSY, CHECK)

        until(ended, "the command is carried out")
        return found[0]

    def out(self, action: int, key: int = 0, new: int = 0, kind: int = 0, *, aptpl: bool = False) -> int:
        """Send PERSISTENT RESERVE OUT."""
        data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes([0, 0, 0, 0, aptpl, 0, 0, 0])
        return self.send(bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]), data)[0]

    def keys(self) -> list[int]:
        """Return the registered keys."""
        data = self.send(bytes([0x5E, 0, 0, 0, 0, 0, 0, 4, 0, 0]), read=1024)[1]
        return [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]

    def write(self, lba: int, data: bytes) -> int:
        return self.send(cdb_10(0x2A, lba, len(data) // BLOCK), data)[0]

    def read(self, lba: int) -> bytes:
        return self.send(cdb_10(0x28, lba, 1), read=BLOCK)[1]


Gateway = Callable[[], Serving]
LogIn = Callable[[Serving, str], Session]


@pytest.fixture
def gateway(make, tmp_path: Path) -> Iterator[Gateway]:
    """Start one more gateway of the same image, which has a state of its own."""
    image = make(more=";lock=move")
    names = iter(range(100))
    with ExitStack() as stack:
        yield lambda: stack.enter_context(serving(tmp_path / str(next(names)), "rbd", image.cfgstring))


@pytest.fixture
def session() -> Iterator[LogIn]:
    """Log an initiator in, until the test ends."""
    with ExitStack() as stack:

        def log_in(gateway: Serving, who: str) -> Session:
            made = Session(gateway, who)
            stack.enter_context(made.client)
            return made

        yield log_in


def test_fence_scsi_cuts_a_node_off_at_the_gateway_that_it_uses(gateway: Gateway, session: LogIn) -> None:
    a, b = session(gateway(), "a"), session(gateway(), "b")
    for node, key in ((a, 1), (b, 2)):
        assert node.out(IGNORE, 0, key) == GOOD  # without APTPL
    assert a.out(RESERVE, 1, kind=REGISTRANTS_ONLY) == GOOD
    assert a.keys() == b.keys() == [1, 2]
    assert b.write(0, b"b" * BLOCK) == GOOD  # the lock moves
    assert a.out(PREEMPT_ABORT, 1, 2, kind=REGISTRANTS_ONLY) == GOOD
    assert b.write(0, b"B" * BLOCK) == CONFLICT
    assert (0x2A, 0x05) in b.told  # registrations preempted
    assert a.keys() == b.keys() == [1]
    assert a.read(0) == b"b" * BLOCK


def test_mpathpersist_registers_each_path_and_a_key_serves_through_both(gateway: Gateway, session: LogIn) -> None:
    one, two = gateway(), gateway()
    first, second, other = session(one, "a"), session(two, "a"), session(two, "b")
    for path in (first, second):
        assert path.out(IGNORE, 0, 7, aptpl=True) == GOOD
    assert first.out(RESERVE, 7, kind=WRITE_EXCLUSIVE) == GOOD
    assert second.write(0, b"2" * BLOCK) == GOOD
    assert other.write(0, b"3" * BLOCK) == CONFLICT
    assert first.out(RELEASE, 7, kind=WRITE_EXCLUSIVE) == GOOD
    assert other.write(0, b"3" * BLOCK) == GOOD
    assert other.out(REGISTER, 0, 8) == GOOD
    assert other.out(CLEAR, 8) == GOOD
    assert first.keys() == second.keys() == []
    assert (0x2A, 0x03) in first.told  # reservations preempted


def test_a_windows_cluster_defends_and_challenges_through_different_gateways(gateway: Gateway, session: LogIn) -> None:
    owner, challenger = session(gateway(), "a"), session(gateway(), "b")
    for node, key in ((owner, 1), (challenger, 2)):
        assert node.out(REGISTER, 0, key) == GOOD
    assert owner.out(RESERVE, 1, kind=REGISTRANTS_ONLY) == GOOD
    assert challenger.out(RESERVE, 2, kind=REGISTRANTS_ONLY) == CONFLICT
    assert challenger.out(PREEMPT, 2, 1, kind=REGISTRANTS_ONLY) == GOOD  # the owner has not defended
    assert owner.out(RESERVE, 1, kind=REGISTRANTS_ONLY) == CONFLICT
    assert owner.write(0, b"o" * BLOCK) == CONFLICT
    assert challenger.write(0, b"c" * BLOCK) == GOOD


@pytest.mark.soak
def test_reservations_outlive_both_gateways(gateway: Gateway, session: LogIn) -> None:
    one, two = gateway(), gateway()
    holder = session(one, "a")
    assert holder.out(REGISTER, 0, 1, aptpl=True) == holder.out(RESERVE, 1, kind=WRITE_EXCLUSIVE) == GOOD
    for each in (one, two):
        each.process.send_signal(signal.SIGKILL)
        each.process.wait()
    again = gateway()
    assert session(again, "b").write(0, b"x" * BLOCK) == CONFLICT
    assert session(again, "a").write(0, b"y" * BLOCK) == GOOD


def test_a_gateway_that_stood_still_writes_no_more_after_a_takeover(
    gateway: Gateway, session: LogIn, ceph: Ceph
) -> None:
    one, two = gateway(), gateway()
    a, b = session(one, "a"), session(two, "a")
    for lba in range(8):
        assert a.write(lba, b"1" * BLOCK) == GOOD
    one.process.send_signal(signal.SIGSTOP)
    try:
        late = a.client.initiator.command(cdb_10(0x2A, 0, 1), write=b"L" * BLOCK, data=b"L" * BLOCK)
        a.client.send(late)  # the kernel has it; the gateway finds it when it goes on
        assert b.write(1, b"2" * BLOCK) == GOOD
        assert len(ceph.blocklist()) > 0
    finally:
        one.process.send_signal(signal.SIGCONT)
    answer = a.client.receive()
    if answer is not None:  # the connection may be broken before it is told
        assert isinstance(answer, p.ScsiResponse)
        sense = bytes(answer.data[2:])
        assert (answer.status, (sense[2] & 0x0F, (sense[12], sense[13]))) == (CHECK, STANDBY)
        assert a.client.receive() is None
    assert [b.read(lba)[:1] for lba in range(8)] == [b"1", b"2", *[b"1"] * 6]
    again = session(one, "a")  # a fresh session of it has the disk when it asks for it
    assert again.write(2, b"3" * BLOCK) == GOOD
    assert again.read(1) == b"2" * BLOCK


@pytest.mark.soak
def test_a_node_is_fenced_though_the_gateway_that_it_uses_stands_still(gateway: Gateway, session: LogIn) -> None:
    one, two = gateway(), gateway()
    victim, fencer = session(one, "a"), session(two, "b")
    assert victim.out(IGNORE, 0, 1) == fencer.out(IGNORE, 0, 2) == GOOD
    assert fencer.out(RESERVE, 2, kind=REGISTRANTS_ONLY) == GOOD
    assert victim.write(0, b"1" * BLOCK) == GOOD
    one.process.send_signal(signal.SIGSTOP)
    try:
        victim.client.send(victim.client.initiator.command(cdb_10(0x2A, 0, 1), write=b"L" * BLOCK, data=b"L" * BLOCK))
        # The gateway that has the lock does not take the change: it loses the lock before this is answered.
        assert fencer.out(PREEMPT_ABORT, 2, 1, kind=REGISTRANTS_ONLY) == GOOD
    finally:
        one.process.send_signal(signal.SIGCONT)
    while victim.client.receive() is not None:
        pass
    assert fencer.read(0) == b"1" * BLOCK
    assert session(one, "a").write(0, b"2" * BLOCK) == CONFLICT
