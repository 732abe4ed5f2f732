"""Counters: a kernel device counts while somebody looks, and a target always."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tcmu_core import loop
from tcmu_core.codec import Message, decode, encode
from tcmu_core.host.host import Host
from tcmu_core.host.messages import (
    Ask,
    AskCounters,
    Counters,
    ErrorCount,
    InitiatorCounters,
    Look,
    Looked,
    OperationCounters,
)
from tcmu_core.kernel.transport import WATCHED_SECONDS
from tcmu_core.scsi.command import Command, Initiator
from tests.host.conftest import Open
from tests.kernel.device import FakeDevice

READ = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])
UNIT_READY = bytes(6)
FAR = bytes([0x28, 0, 0x7F, 0, 0, 0, 0, 0, 1, 0])


class Clock:
    """Seconds since some time, and those that were skipped."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def skip(self, part: float) -> None:
        """Let a part of the time pass for which a kernel device counts."""
        self.skipped += part * WATCHED_SECONDS

    def __call__(self) -> float:
        return time.monotonic() + self.skipped


@pytest.fixture
def clock(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(device.loop, "clock", made)
    monkeypatch.setattr(loop, "time", SimpleNamespace(**{**vars(time), "monotonic": made}))
    return made


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    made = FakeDevice(tmp_path, monkeypatch).open()
    made.turn()
    yield made
    made.close()


def look(host: Host, number: int = 0) -> InitiatorCounters | None:
    """Look at the counters as another process does."""
    answer = host.answer(AskCounters(0, number))
    assert answer is not None
    told = decode(encode(answer))
    assert isinstance(told, Counters)
    return told.counters


def reads(counters: InitiatorCounters | None) -> tuple[int, int]:
    """Return how many reads are counted, and how many of them failed."""
    assert counters is not None
    (read,) = [one for one in counters.operations if one.opcode == 0x28] or [None]
    return (read.commands, sum(error.count for error in read.errors)) if read is not None else (0, 0)


def test_a_kernel_device_counts_from_the_first_look_on(device: FakeDevice) -> None:
    device.ask(READ, 512)
    first = look(device.host)
    assert first is not None
    assert (first.initiator, first.operations) == ("kernel", ())
    for _ in range(3):
        device.ask(READ, 512)
    device.ask(FAR, 512)
    now = look(device.host)
    assert now is not None
    assert reads(now) == (4, 1)
    assert now.since == first.since
    assert look(device.host, 1) is None


def test_it_counts_as_long_as_somebody_looks_now_and_then(device: FakeDevice, clock: Clock) -> None:
    first = look(device.host)
    for number in range(1, 5):
        device.ask(READ, 512)
        clock.skip(0.9)
        device.turn()
        now = look(device.host)
        assert reads(now) == (number, 0)
        assert (now and now.since) == (first and first.since)


def test_when_nobody_looks_any_more_it_forgets_and_begins_anew(device: FakeDevice, clock: Clock) -> None:
    first = look(device.host)
    assert first is not None
    device.ask(READ, 512)
    clock.skip(1.1)
    device.turn()
    assert not device.host.engines[0].unit.tallies.by_name
    device.ask(READ, 512)
    again = look(device.host)
    assert again is not None
    assert reads(again) == (0, 0)
    assert again.since > first.since


@pytest.mark.parametrize("served", ["target"], indirect=True)
def test_a_target_counts_whether_somebody_looks_or_not(served: Open) -> None:
    host = served()
    nexus = host.engines[0].attach(Initiator("someone", b""))
    nexus.attentions.clear()
    assert host.engines[0].execute(Command(FAR, [memoryview(bytearray(512))], 512, nexus))
    assert reads(look(host)) == (1, 1)


def test_what_says_nothing_of_counters_does_not_have_them_counted(device: FakeDevice) -> None:
    device.host.answer(Ask())
    assert not device.host.engines[0].unit.tallies.by_name


class Asker:
    """Takes what is told in parts; the last one is the answer."""

    def __init__(self) -> None:
        self.told: list[Message] = []

    def send(self, message: Message) -> None:
        """Take a part."""
        self.told.append(message)


def look_again(host: Host, after: int) -> tuple[int, dict[tuple[str, int], OperationCounters], set[str]]:
    """Look as an observer does; returns the answer's number, what has changed since `after`, and all initiators."""
    asker = Asker()
    last = host.answer(Look(after), asker)
    assert isinstance(last, Looked)
    told = [one.counters for part in (*asker.told, last) if isinstance(part, Looked) for one in part.counters]
    changed = {(one.initiator, operation.opcode): operation for one in told for operation in one.operations}
    return last.number, changed, {one.initiator for one in told}


@pytest.mark.parametrize("served", ["target"], indirect=True)
def test_who_looks_again_is_told_what_has_changed_since(served: Open) -> None:
    host = served()
    engine = host.engines[0]
    nexuses = {name: engine.attach(Initiator(name, b"")) for name in ("one", "other one")}

    def command(name: str, cdb: bytes) -> None:
        nexuses[name].attentions.clear()
        assert engine.execute(Command(cdb, [memoryview(bytearray(512))], 512, nexuses[name]))

    for name in nexuses:
        command(name, UNIT_READY)
    command("one", FAR)
    first, all_of_it, names = look_again(host, 0)
    assert set(all_of_it) == {("one", 0x28), ("one", 0), ("other one", 0)}
    second, changed, still = look_again(host, first)
    assert (changed, still) == ({}, names)
    command("one", FAR)
    third, changed, still = look_again(host, second)
    assert second < third
    assert [(key, one.commands, one.errors) for key, one in changed.items()] == [
        (("one", 0x28), 2, (ErrorCount("illegal_request", 2),))
    ]
    assert still == names
    assert look_again(host, second)[1] == changed, "another one who looks is told as well"
    assert set(look_again(host, 0)[1]) == set(all_of_it)
    last, changed, _ = look_again(host, third)
    assert changed == {}
    nexuses["other one"].tally.times_of(0).send.add(1000)  # its status is out by now
    _, changed, _ = look_again(host, last)
    assert [(key, sum(one.send.counts)) for key, one in changed.items()] == [(("other one", 0), 1)]


@pytest.mark.parametrize("served", ["target"], indirect=True)
def test_what_is_in_flight_no_more_is_told(served: Open) -> None:
    host = served()
    nexus = host.engines[0].attach(Initiator("one", b""))
    command = Command(READ, [memoryview(bytearray(512))], 512, nexus)
    tasks = host.engines[0].unit.tasks
    tasks.enter(command, ())
    number, changed, _ = look_again(host, 0)
    assert changed["one", 0x28].in_flight == 1
    tasks.end(command)  # as one that is not counted
    _, changed, _ = look_again(host, number)
    assert changed["one", 0x28].in_flight == 0
