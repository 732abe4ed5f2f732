"""A disk whose handler takes long to open it holds up no other one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Timer

import pytest

from tcmu_core import hookimpl
from tcmu_core.codec import decode, encode
from tcmu_core.disk.device import Device
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.host import host as host_module
from tcmu_core.host.host import Host
from tcmu_core.iscsi.messages import TargetWay
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.loop import Loop
from tcmu_core.progress import Progress

SIZE = 1 << 20


class Slow:
    """A handler whose `open` answers when the test says so; "at once" in the cfgstring is one that does not wait."""

    def __init__(self) -> None:
        self.opened: Future[None] = Future()
        self.closed = 0

    @hookimpl
    def open(self, device: Device) -> Future[None] | None:
        self.device = device
        device.size = SIZE
        return None if device.cfgstring == "at once" else self.opened

    @hookimpl
    def close(self) -> None:
        self.closed += 1

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> None: ...


class Bench:
    """A host with a portal; `handlers` are those that were made, in their order."""

    def __init__(self, state: Path) -> None:
        self.loop = Loop()
        self.handlers: list[Slow] = []
        way = TargetWay("iqn.2026-01.org.example:d", PortalSettings(addresses=("127.0.0.1:0",)), state)
        self.host = Host(self.loop, self._disk, way)
        self.way = way
        self.altered = 0
        self.host.altered = self._altered

    def _altered(self) -> None:
        self.altered += 1

    def _disk(self, spec: DiskSpec) -> Disk:
        self.handlers.append(Slow())
        return Disk(spec, self.handlers[-1])

    def turn(self) -> None:
        """Let the loop work off what is there."""
        self.loop.post(self.loop.stop)
        self.loop.run()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(host_module, "START_SECONDS", 0.0)
    monkeypatch.setattr(host_module, "LAST_SECONDS", 0.0)
    one = Bench(tmp_path)
    yield one
    one.host.close()
    one.loop.close()


def disks(*cfgstrings: str) -> dict[int, DiskSpec]:
    return {lun: DiskSpec("slow", text, name=f"d{lun}") for lun, text in enumerate(cfgstrings)}


def test_others_are_served_while_one_is_being_opened(bench: Bench) -> None:
    bench.host.open(disks("later", "at once"))
    assert list(bench.host.engines) == [1]
    assert bench.host.transport.addresses
    (missing,) = bench.host.status().missing
    assert (missing.lun, missing.reason) == (0, "it is being opened")
    bench.handlers[0].opened.set_result(None)
    bench.turn()
    assert sorted(bench.host.engines) == [0, 1]
    assert bench.host.status().missing == ()
    assert bench.altered == 1


def test_one_that_fails_late_is_missing_with_its_reason_and_is_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        bench.host.open(disks("later", "at once"))
        bench.handlers[0].opened.set_exception(OSError(113, "No route to host"))
        bench.turn()
    assert [one.reason for one in bench.host.status().missing] == ["later: No route to host"]
    assert "LUN 0 can't be opened: later: No route to host" in caplog.text
    bench.host.retry()
    bench.turn()
    assert [one.reason for one in bench.host.status().missing] == ["later: No route to host"]  # not yet another
    bench.host.retry()  # it is being opened: no second attempt beside the first
    assert len(bench.handlers) == 3
    bench.handlers[2].opened.set_result(None)
    bench.turn()
    assert sorted(bench.host.engines) == [0, 1]


def test_one_that_comes_to_what_is_served_holds_nobody_up(bench: Bench) -> None:
    bench.host.open(disks("at once"))
    bench.host.reassign(disks("at once", "later"), bench.way)
    assert list(bench.host.engines) == [0]
    bench.handlers[1].opened.set_result(None)
    bench.turn()
    assert sorted(bench.host.engines) == [0, 1]


def test_one_that_is_not_wanted_any_more_is_closed_when_it_is_open(bench: Bench) -> None:
    bench.host.open(disks("at once", "later"))
    bench.host.reassign(disks("at once"), bench.way)
    assert bench.handlers[1].closed == 0
    bench.handlers[1].opened.set_result(None)
    bench.turn()
    assert list(bench.host.engines) == [0]
    assert bench.handlers[1].closed == 1
    assert bench.host.status().missing == ()


def test_another_disk_in_the_place_of_one_that_is_being_opened_is_served(bench: Bench) -> None:
    bench.host.open(disks("at once", "later"))
    bench.host.reassign(disks("at once", "much later"), bench.way)
    bench.handlers[1].opened.set_result(None)
    bench.handlers[2].opened.set_result(None)
    bench.turn()
    assert bench.handlers[1].closed == 1
    assert bench.host.engines[1].device.cfgstring == "much later"
    assert bench.handlers[2].closed == 0


def test_what_is_of_no_use_without_its_disk_waits_for_it(bench: Bench) -> None:
    bench.host.transport.needs_all = True
    timer = Timer(0.05, lambda: bench.handlers[0].opened.set_result(None))
    timer.start()
    bench.host.open(disks("later"))
    timer.join()
    assert list(bench.host.engines) == [0]


def test_the_end_of_a_host_closes_what_was_opened_meanwhile(bench: Bench) -> None:
    bench.host.open(disks("later"))
    bench.handlers[0].opened.set_result(None)
    bench.host.close()
    assert bench.handlers[0].closed == 1


def test_how_far_the_opening_is_is_told_until_it_is_over(bench: Bench) -> None:
    bench.host.open(disks("later", "at once"))
    bench.handlers[0].device.progress(1, 4, "loading")
    (missing,) = bench.host.status().missing
    assert missing.progress == Progress("loading", 1, 4)
    assert [disk.progress for disk in bench.host.status().disks] == [None]
    bench.handlers[0].opened.set_result(None)
    bench.turn()
    assert [disk.progress for disk in bench.host.status().disks] == [None, None]


def test_what_an_open_disk_does_is_told(bench: Bench) -> None:
    bench.host.open(disks("at once"))
    bench.handlers[0].device.progress(1, 4, "rebuilding")
    status = bench.host.status()
    assert status.disks[0].progress == Progress("rebuilding", 1, 4)
    assert decode(encode(status)) == status


def test_one_whose_opening_began_before_another_had_gone_is_tried_again_when_that_has(bench: Bench) -> None:
    bench.host.open(disks("at once", "at once"))
    bench.host.reassign(disks("later", "later"), bench.way)
    bench.turn()
    bench.turn()
    assert [one.device.cfgstring for one in bench.handlers] == ["at once", "at once", "later", "later"]
    bench.handlers[2].opened.set_exception(OSError(16, "it is in use"))
    bench.turn()
    assert bench.handlers[4].device.cfgstring == "later"
    bench.handlers[4].opened.set_exception(OSError(16, "it is in use"))
    bench.turn()
    assert bench.handlers[5].device.cfgstring == "at once"  # it can't be: it goes on as it was
    assert list(bench.host.engines) == [0]
    bench.handlers[3].opened.set_result(None)
    bench.turn()


def test_one_that_is_asked_for_again_waits_for_another_to_go(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.host.open(disks("at once", "at once"))
    gone: list[Callable[[], object]] = []
    monkeypatch.setattr(bench.host.transport, "remove", lambda lun, then, comes_back: gone.append(then))
    bench.host.reassign(disks("later", "later"), bench.way)
    gone[0]()
    bench.turn()
    bench.handlers[2].opened.set_exception(OSError(16, "it is in use"))
    bench.turn()
    bench.host.retry()
    bench.handlers[-1].opened.set_exception(OSError(16, "it is in use"))
    bench.turn()
    assert {one.device.cfgstring for one in bench.handlers[2:]} == {"later"}
    gone[1]()
    bench.turn()
    for handler in bench.handlers[4:]:
        handler.opened.set_result(None)
    bench.turn()
    assert sorted(bench.host.engines) == [0, 1]
