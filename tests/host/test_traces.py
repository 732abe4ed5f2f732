"""Traces: who looks at a disk is told, and never holds it up; by both ways in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tcmu_core import channel
from tcmu_core.channel import Channel
from tcmu_core.codec import Message, decode, encode
from tcmu_core.host import traces
from tcmu_core.host.host import Host
from tcmu_core.host.traces import Trace, Traced
from tcmu_core.scsi.command import Command, Initiator, Nexus
from tcmu_core.scsi.tally import Sink
from tests.host.conftest import Open
from tests.waiting import wait_for


@dataclass(eq=False)
class Reader:
    """One that looks; what arrives has been through the codec."""

    got: list[Traced] = field(default_factory=list)
    busy: bool = False
    closed: bool = False

    def send(self, message: Message) -> None:
        received = decode(encode(message))
        assert isinstance(received, Traced)
        self.got.append(received)

    def close(self) -> None:
        self.closed = True

    @property
    def names(self) -> list[str]:
        return [line.command.name for message in self.got for line in message.lines]


def send(host: Host, *cdbs: bytes, who: str = "someone") -> None:
    """Have an initiator send commands that end at once."""
    nexus: Nexus = host.engines[0].attach(Initiator(who, b""))
    nexus.attentions.clear()
    for cdb in cdbs:
        data = [memoryview(bytearray(512))]
        assert host.engines[0].execute(Command(cdb, data, 512, nexus))


WRITE = bytes([0x2A, 0, 0, 0, 0, 3, 0, 0, 1, 0])
BEYOND = bytes([0x2A, 0, 1, 0, 0, 0, 0, 0, 1, 0])
READY = bytes(6)


def turn(host: Host, seconds: float = 0.05) -> None:
    host.loop.call_later(seconds, host.loop.stop)
    host.loop.run()


def test_who_looks_is_told_of_each_command(served: Open) -> None:
    host, reader = served(), Reader()
    assert host.answer(Trace(), reader) is None
    assert reader.got == [Traced()]  # nothing is missed from here on
    send(host, WRITE, READY)
    turn(host)
    assert reader.names == ["WRITE(10)", "TEST UNIT READY"]
    (first, _) = reader.got[1].lines
    assert (first.command.lba, first.command.blocks, first.command.moved) == (3, 1, 512)
    assert first.at > 0


class Line:
    """A transport's way out, on which statuses wait until the test says that they are out."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.sinks: list[Sink] = []
        self.nexus = host.engines[0].attach(Initiator("someone", b""))
        self.nexus.attentions.clear()
        self.nexus.outgoing = self.sinks.append

    def send(self, *cdbs: bytes) -> None:
        for cdb in cdbs:
            assert self.host.engines[0].execute(Command(cdb, [memoryview(bytearray(512))], 512, self.nexus))


def test_the_time_on_the_way_out_is_told_and_the_order_kept(served: Open) -> None:
    host, reader = served(), Reader()
    host.answer(Trace(), reader)
    line = Line(host)
    line.send(WRITE, READY)
    first, second = line.sinks
    second.add(3_000_000)
    turn(host)
    assert reader.names == []
    first.add(2_000_000)
    turn(host)
    assert reader.names == ["WRITE(10)", "TEST UNIT READY"]
    assert [one.command.sent for message in reader.got for one in message.lines] == [0.002, 0.003]


def test_a_status_that_does_not_get_out_keeps_its_command_from_nobody(
    served: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "SENT_SECONDS", 0.0)
    host, reader = served(), Reader()
    host.answer(Trace(), reader)
    line = Line(host)
    line.send(WRITE)
    turn(host)
    assert [one.command.sent for message in reader.got for one in message.lines] == [None]
    line.sinks[0].add(1)  # it comes too late, and harms nobody
    turn(host)
    assert reader.names == ["WRITE(10)"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"names": ("WRITE(10)",)}, ["WRITE(10)", "WRITE(10)"]),
        ({"codes": (0x00,)}, ["TEST UNIT READY"]),
        ({"errors": True}, ["WRITE(10)"]),
        ({"initiator": "SOME*"}, ["WRITE(10)", "WRITE(10)", "TEST UNIT READY"]),
        ({"initiator": "other*"}, []),
        ({"slower": 3600.0}, []),
    ],
)
def test_it_is_told_of_what_it_asked_for_alone(served: Open, wanted: dict[str, Any], names: list[str]) -> None:
    host, reader = served(), Reader()
    host.answer(Trace(**wanted), reader)
    send(host, WRITE, BEYOND, READY)
    turn(host)
    assert reader.names == names


def test_what_a_slow_reader_does_not_take_is_dropped_and_counted(served: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "KEPT", 10)
    host, reader = served(), Reader(busy=True)
    host.answer(Trace(), reader)
    send(host, *[READY] * 25)
    turn(host)
    assert not reader.names
    reader.busy = False
    turn(host)
    assert len(reader.names) == 10
    assert sum(message.dropped for message in reader.got) == 15


def test_a_reader_that_takes_nothing_for_long_is_let_go(served: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "PATIENCE", 0.01)
    host, reader = served(), Reader(busy=True)
    fast = dict(host.engines[0].fast)
    assert fast
    host.answer(Trace(), reader)
    assert not host.engines[0].fast
    send(host, READY)
    wait_for(lambda: turn(host) or reader.closed)
    assert host.engines[0].fast.keys() == fast.keys()


def test_the_fast_path_is_open_again_when_the_last_reader_has_died(served: Open) -> None:
    host = served()
    ends = []
    for _ in range(2):
        ours, theirs = channel.pair()
        reader = Channel(host.loop, ours, lambda _message, _fds: None, lambda: host.gone(reader))  # noqa: B023
        host.answer(Trace(), reader)
        ends.append((reader, theirs))
    for reader, theirs in ends:
        assert not host.engines[0].fast
        theirs.close()
        wait_for(lambda: turn(host) or reader.closed)  # noqa: B023
    assert host.engines[0].fast


def test_who_looks_at_a_disk_that_goes_hears_that(served: Open) -> None:
    host, reader = served(), Reader()
    if host.transport.needs_all:
        host.answer(Trace(lun=7), reader)  # a kernel device has one disk, and goes with it
        assert reader.got == [Traced(over="LUN 7 is not served")]
        return
    host.answer(Trace(), reader)
    host.reassign({}, host.transport.way)  # type: ignore[attr-defined]
    turn(host)
    assert reader.got[-1] == Traced(over="the disk is not served any more")


def test_a_message_fits_into_a_packet_however_long_the_names_are() -> None:
    one = traces.Followed(
        "PERSISTENT RESERVE OUT", bytes(64), "i" * 223, 1 << 62, 1 << 31, 1 << 40, "CHECK CONDITION", False,
        "ILLEGAL REQUEST: LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED (04/02)", 1.23456789e-5, 1.23456789e-5,
        1.23456789e-5,
    )  # fmt: skip
    batch = Traced((traces.Line(1.7e9 + 0.123456789, one),) * traces.BATCH, 1 << 40)
    assert len(encode(batch)) < channel.LARGEST
