"""What is set of a disk that is in use, as its initiators see it; by both ways in."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.codec import Message
from tcmu_core.disk.device import Change
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.handlers import Registry
from tcmu_core.host.host import Host
from tcmu_core.host.messages import Changed, FilterAnswer, FilterCommand, LogLevel, Reconfigure, SetLevel
from tcmu_core.iscsi.messages import TargetWay
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.log import Level, Log
from tcmu_core.loop import Loop
from tcmu_core.scsi.command import Command
from tcmu_core.testing.client import Client
from tcmu_core.testing.initiator import Reply
from tests.kernel.device import FakeDevice

# What is written waits until it is let go, and so does a flush.
HANDLER = """
from concurrent.futures import Future
from tcmu_core import hookimpl


class Cached:
    @hookimpl
    def open(self, device):
        device.size, device.state = 1 << 20, self
        self.waiting, self.calls, self.slow = [], [], False

    def later(self, name):
        self.calls.append(name)
        if self.slow:
            self.waiting.append(Future())
            return self.waiting[-1]

    @hookimpl
    def read(self, offset, buffers): ...

    @hookimpl
    def write(self, offset, buffers):
        return self.later("write")

    @hookimpl
    def flush(self):
        return self.later("flush")

    @hookimpl
    def reconfigure(self, change):
        self.calls.append(change)
"""
READY, WRITE = bytes(6), bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0])
SENSE_CACHING = bytes([0x1A, 0x08, 0x08, 0, 64, 0])  # MODE SENSE(6) of page 08h, without block descriptors
MODE_PARAMETERS_CHANGED = (0x6, 0x2A, 0x01)  # SPC-4 annex F: UNIT ATTENTION
TURN = 0.02  # seconds in which a loop has done all that it has to do


class Bench:
    """A host with one disk, and an initiator of it."""

    def __init__(self, host: Host, ask: Callable[..., Reply]) -> None:
        self.host = host
        self.ask = ask
        self.heard: list[Message] = []
        self.closed = self.busy = False

    @property
    def handler(self) -> Any:
        return self.host.engines[0].device.state

    @property
    def wce(self) -> bool:
        """Whether the initiator is told of a write cache (SBC-4 6.5.5)."""
        return bool(self.ask(SENSE_CACHING, read=64).data[4 + 2] & 0x04)

    def turn(self) -> None:
        self.host.loop.call_later(TURN, self.host.loop.stop)
        self.host.loop.run()

    def release(self) -> None:
        """Let all that waits end, and nothing wait any more."""
        self.handler.slow = False
        while self.handler.waiting:
            self.handler.waiting.pop().set_result(None)
            self.turn()

    def send(self, message: Message) -> None:
        self.heard.append(message)

    def close(self) -> None:
        """Be one who asks something."""

    def set_cache(self, on: bool) -> None:
        said = self.host.answer(Reconfigure(Change(write_cache=on)), self)
        if said is not None:
            self.heard.append(said)


@pytest.fixture(params=["kernel", "target"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    (tmp_path / "handler_cached.py").write_text(HANDLER)
    registry = Registry([tmp_path])
    disks = {0: DiskSpec("cached", "", name="d", filters=("rate;iops=1000", "delay;read=1ms"))}
    if request.param == "kernel":
        device = FakeDevice(tmp_path / "configfs", monkeypatch, registry)
        device.host.open(disks)

        def ask(cdb: bytes, *, write: bytes = b"", read: int = 0) -> Reply:
            number = device.kernel.command(cdb, data=write or None, room=read)
            assert number is not None
            os.eventfd_write(device.fd, 1)
            while number in device.kernel.sent:
                device.turn()
                device.kernel.bell()
            answer = device.kernel.answer_of(number)
            return Reply(0, answer.status, answer.sense, answer.data)

        made = Bench(device.host, ask)
        yield made
        made.release()
        device.close()
        return
    loop = Loop()
    way = TargetWay("iqn.2026-01.org.example:d", PortalSettings(addresses=("127.0.0.1:0",)), tmp_path / "state")
    host = Host(loop, lambda spec: registry.get(spec.handler).disk(spec, loop), way)
    host.open(disks)
    with ThreadPoolExecutor(1) as other:

        def outside(fn: Callable[..., Any], *args: Any, **more: Any) -> Any:
            done = other.submit(fn, *args, **more)
            done.add_done_callback(lambda _: loop.post(loop.stop))
            loop.run()
            return done.result()

        client = outside(Client, f"iscsi://{host.transport.addresses[0]}/iqn.2026-01.org.example:d/0")
        made = Bench(host, lambda cdb, **more: outside(client.command, cdb, **more))
        yield made
        made.release()
        outside(client.close)
    host.close()
    loop.close()


def test_without_the_write_cache_each_write_is_stable_and_initiators_are_told(bench: Bench) -> None:
    assert bench.wce
    bench.set_cache(False)
    bench.turn()
    (changed,) = bench.heard
    assert isinstance(changed, Changed)
    assert (changed.errno, changed.disk is not None and changed.disk.write_cache) == (0, False)
    assert bench.ask(READY).error == MODE_PARAMETERS_CHANGED
    assert not bench.wce
    bench.handler.calls.clear()
    bench.ask(WRITE, write=bytes(512))
    assert bench.handler.calls == ["write", "flush"]
    bench.set_cache(True)
    assert bench.ask(READY).error == MODE_PARAMETERS_CHANGED
    assert bench.wce
    bench.handler.calls.clear()
    bench.ask(WRITE, write=bytes(512))
    assert bench.handler.calls == ["write"]


def test_a_mode_that_is_there_already_is_no_news(bench: Bench) -> None:
    bench.set_cache(True)
    assert len(bench.heard) == 1
    assert bench.ask(READY).status == 0


def begin(bench: Bench) -> list[Command]:
    """Send a write that does not end yet; return a list that has it when it has."""
    engine, ended = bench.host.engines[0], list[Command]()
    write = Command(WRITE, [memoryview(bytearray(512))], 512, engine.unit.nexuses[0], ended.append, 7)
    assert not engine.execute(write)
    return ended


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "lost")], ids=["well", "badly"])
def test_it_is_off_when_what_was_volatile_is_stable(bench: Bench, error: OSError | None) -> None:
    handler, unit = bench.handler, bench.host.engines[0].unit
    handler.slow = True
    first = begin(bench)
    bench.set_cache(False)
    later = begin(bench)
    bench.turn()
    assert handler.calls == ["write"]  # a flush now would leave the first out, and the second one waits
    assert unit.write_cache
    handler.waiting.pop().set_result(None)
    bench.turn()
    assert (len(first), len(later), bench.heard) == (1, 0, [])
    assert handler.calls == ["write", "flush"]
    if error is None:
        handler.waiting.pop().set_result(None)
    else:
        handler.waiting.pop().set_exception(error)
    bench.turn()
    (changed,) = bench.heard
    assert isinstance(changed, Changed)
    if error is not None:  # nobody may take for stable what is not
        assert (changed.errno, unit.write_cache) == (errno.EIO, True)
        assert handler.calls == ["write", "flush", "write"]
        return
    assert (changed.errno, unit.write_cache) == (0, False)
    assert handler.calls == ["write", "flush", Change(write_cache=False)]
    assert len(later) == 1
    assert later[0].sense[2:3] + later[0].sense[12:14] == bytes(MODE_PARAMETERS_CHANGED)


def test_a_reset_that_ends_what_was_to_be_waited_for_is_said(bench: Bench) -> None:
    handler, engine = bench.handler, bench.host.engines[0]
    handler.slow = True
    begin(bench)
    bench.set_cache(False)
    engine.reset(None, lambda: None)
    bench.turn()
    (changed,) = bench.heard
    assert isinstance(changed, Changed)
    assert (changed.errno, "set it again" in changed.reason) == (errno.EINTR, True)
    assert engine.unit.write_cache
    handler.waiting.pop().set_result(None)
    handler.slow = False
    bench.turn()
    bench.set_cache(False)
    assert not engine.unit.write_cache


def test_a_reset_does_not_break_off_the_flush_of_a_change(bench: Bench) -> None:
    handler, engine = bench.handler, bench.host.engines[0]
    handler.slow = True
    bench.set_cache(False)
    engine.reset(None, lambda: None)
    bench.turn()
    assert bench.heard == []
    assert not engine.idle
    handler.slow = False
    handler.waiting.pop().set_result(None)
    bench.turn()
    (changed,) = bench.heard
    assert isinstance(changed, Changed)
    assert (changed.errno, engine.unit.write_cache) == (0, False)


def test_what_an_initiator_has_switched_is_switched_back(bench: Bench) -> None:
    page = bytes(4) + bytes([0x08, 0x12, 0]) + bytes(17)
    assert bench.ask(bytes([0x15, 0x10, 0, 0, 24, 0]), write=page).status == 0  # MODE SELECT(6), without WCE
    assert not bench.wce
    bench.set_cache(True)
    (changed,) = bench.heard
    assert isinstance(changed, Changed)
    assert (changed.errno, changed.disk is not None and changed.disk.write_cache) == (0, True)
    assert bench.ask(READY).error == MODE_PARAMETERS_CHANGED
    assert bench.wce


def tell(bench: Bench, message: dict[str, Any]) -> Any:
    said = bench.host.answer(FilterCommand(json.dumps(message)), bench)
    assert isinstance(said, FilterAnswer)
    return json.loads(said.answer)["answer"] if not said.error else said.error


def test_a_filters_options_are_set_and_shown(bench: Bench) -> None:
    assert tell(bench, {"do": "settings"})["rate"]["iops"] == 1000
    assert tell(bench, {"do": "set", "name": "rate", "options": {"iops": "7", "bytes": "1M"}})["iops"] == 7
    assert tell(bench, {"do": "settings"}) == {
        "rate": {"burst": 1.0, "bytes": 1 << 20, "initiator_bytes": 0, "initiator_iops": 0, "iops": 7}
    }


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("delay", {"read": "5ms"}, "what is needed: take it off (`tcmu filter DISK pop delay`) and put it on again"),
        ("delay", {"raed": "5ms"}, "has no option 'raed': did you mean 'read'?"),
        ("rate", {"iop": "5"}, "did you mean 'iops'?"),
        ("rate", {"iops": "nan"}, "a number above 0"),
        ("rate", {"iops": "-1"}, "too small"),
        ("cache", {"size": "1M"}, "has no filter 'cache'"),
    ],
)
def test_what_can_not_be_set_says_what_is_needed(bench: Bench, name: str, options: dict[str, str], says: str) -> None:
    before = tell(bench, {"do": "settings"})
    assert says in tell(bench, {"do": "set", "name": name, "options": options})
    assert tell(bench, {"do": "settings"}) == before


def test_the_level_of_a_process_is_set_and_has_its_commands_logged(bench: Bench) -> None:
    with Log(Level.WARN) as logs:
        bench.host.log_by(logs)
        assert bench.host.answer(SetLevel()) == LogLevel(Level.WARN)
        assert not bench.host.engines[0].trace
        assert bench.host.answer(SetLevel(Level.DEBUG_SCSI_CMD)) == LogLevel(Level.DEBUG_SCSI_CMD)
        assert bench.host.engines[0].trace
        assert logs.level is Level.DEBUG_SCSI_CMD
        assert bench.host.answer(SetLevel(Level.ERROR)) == LogLevel(Level.ERROR)
        assert not bench.host.engines[0].trace
