"""A batch ends in time, whatever its commands cost: it is the turn of other connections then."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.pump import SLICE
from tests.iscsi.wire import Wire, logged_in

DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
COMMANDS = 40
MOST = 5  # commands of one batch: it looks at the clock after every fourth one


class Dear:
    """A clock by which each command takes longer than a batch may."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        wire.unit.watch = True
        wire.session.clock = self

    def __call__(self) -> float:
        """Return the time in seconds."""
        return 2 * SLICE * len(self.wire.unit.commands)


def _one_batch_each(wire: Wire, data: bytes) -> list[int]:
    """Let `data` arrive in one piece; return how many commands each batch has run."""
    room = wire.connection.room()
    room[: len(data)] = data
    counts = [0]
    wire.connection.received(len(data))
    while True:
        counts.append(len(wire.unit.commands))
        wire.collect()
        if not wire.connection.stalled:
            return [after - before for before, after in pairwise(counts)]
        wire.connection.pump()


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
@pytest.mark.parametrize("kind", ["read", "write", "inquiry"])
def test_a_batch_of_dear_commands_gives_way(agreed: dict[str, str], kind: str) -> None:
    wire = logged_in(agreed)
    Dear(wire)
    make = {
        "read": lambda: wire.initiator.read_10(0, 1),
        "write": lambda: wire.initiator.write_10(0, bytes(512), 512),
        "inquiry": lambda: wire.initiator.command(bytes([0x12, 0, 0, 0, 36, 0]), read=36),
    }[kind]
    batches = _one_batch_each(wire, wire.initiator.encode(*[make() for _ in range(COMMANDS)]))
    assert sum(batches) == COMMANDS
    assert max(batches) <= MOST


def test_and_so_does_one_of_requests_that_each_need_a_closer_look() -> None:
    wire = logged_in({"MaxRecvDataSegmentLength": "512"})
    Dear(wire)
    batches = _one_batch_each(wire, wire.initiator.encode(*[wire.initiator.read_10(0, 8) for _ in range(COMMANDS)]))
    assert sum(batches) == COMMANDS
    assert max(batches) == 1


def test_commands_that_waited_for_an_earlier_one_give_way_too() -> None:
    wire = logged_in()
    Dear(wire)
    requests = [wire.initiator.number(wire.initiator.read_10(0, 1)) for _ in range(COMMANDS)]
    encode = wire.initiator.framing.encode
    assert wire.feed(b"".join(encode(one) for one in requests[1:])) == []
    batches = _one_batch_each(wire, encode(requests[0]))
    assert sum(batches) == COMMANDS
    assert max(batches) <= MOST


def test_cheap_commands_are_one_batch() -> None:
    wire = logged_in()
    wire.unit.watch = True
    wire.session.clock = float
    batches = _one_batch_each(wire, wire.initiator.encode(*[wire.initiator.read_10(0, 1) for _ in range(COMMANDS)]))
    assert batches == [COMMANDS]


def test_a_request_behind_dear_ones_is_answered_in_its_turn() -> None:
    wire = logged_in()
    Dear(wire)
    answers = wire.send(*[wire.initiator.read_10(0, 1) for _ in range(8)], p.NopOut(itt=99, data=b"here"))
    assert [type(answer) for answer in answers] == [p.DataIn] * 8 + [p.NopIn]
