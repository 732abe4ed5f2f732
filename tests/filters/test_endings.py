"""However an operation ends below a filter, its command ends above it: once, and not before its buffers are free."""

from __future__ import annotations

import errno
import os
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.errors import AbortedCommand, ConfigError
from tcmu_core.filters import rate
from tcmu_core.filters.cache import LINE, Cache
from tcmu_core.filters.clock import Waiting
from tcmu_core.filters.cow import Cow
from tcmu_core.filters.delay import Delay
from tcmu_core.filters.overlay import FileRoom
from tcmu_core.filters.rate import Rate
from tests.filters.conftest import HandClock, given, rig_upon, upon
from tests.scsi.harness import Memory, answer, cdb10

HARDWARE_ERROR = 4  # SPC-4 4.5.6


def buffers(length: int = LINE) -> list[memoryview]:
    return [memoryview(bytearray(length))]


def test_a_future_that_was_cancelled_ends_what_waits_behind_a_filter(clock: HandClock) -> None:
    for made in (
        given(Delay(clock), all="1ms"),
        given(Rate(clock), iops="1", burst="0.001"),
        Cache(),
    ):
        handler = Memory()
        handler.hold = True
        with upon(made, handler=handler) as disk:
            pending = disk.disk.operations.write(0, buffers())
            handler.held.popleft()[0].cancel()
            clock.pass_by(10_000)
            with pytest.raises(CancelledError):
                pending.result(0)


def test_a_command_that_the_handler_cancels_behind_a_filter_is_a_hardware_error(clock: HandClock) -> None:
    rig = rig_upon(given(Delay(clock), read="1ms"))
    rig.memory.hold = True
    command, ended = rig.start(cdb10(0x28, 0, 1), room=512)
    rig.memory.held.popleft()[0].cancel()
    clock.pass_by(1)
    rig.turn()
    assert ended == [command]
    assert answer(command).error[0] == HARDWARE_ERROR


def test_parts_of_a_read_end_when_one_of_them_was_cancelled() -> None:
    handler = Memory()
    with upon(Cow(), handler=handler) as disk:
        disk.write(512, bytes(512))
        handler.hold = True
        pending = disk.disk.operations.read(0, buffers(1536))
        handler.held.popleft()[0].cancel()
        handler.release()
        with pytest.raises(CancelledError):
            pending.result(0)


class SecondFails(Memory):
    """Takes the first read, and breaks at the second."""

    count = 0

    def _answer(self, work: Any) -> Future[None] | None:
        if self.hold:
            self.count += 1
            if self.count == 2:
                raise OSError(errno.EIO, "broken")
        return super()._answer(work)


def test_a_read_of_which_a_part_can_t_begin_ends_after_the_parts_that_have_begun() -> None:
    for made in (Cow(), Cache()):
        handler = SecondFails()
        with upon(made, handler=handler) as disk:
            disk.write(LINE, bytes(LINE))
            handler.hold = True
            pending = disk.disk.operations.read(0, buffers(3 * LINE))
            assert not pending.done()
            handler.release()
            with pytest.raises(OSError, match="broken"):
                pending.result(0)


def test_a_cache_whose_directory_is_full_costs_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    handler = Memory()
    with upon(given(Cache(), directory=tmp_path), handler=handler) as disk:
        monkeypatch.setattr(FileRoom, "write", full)
        disk.write(0, b"w" * LINE)
        assert disk.read(0, LINE) == b"w" * LINE
        handler.hold = True
        pending = disk.disk.operations.write(0, buffers())
        handler.release()
        assert pending.result(0) is None
        handler.hold = False
        assert disk.disk.tell("cache", {})["lines"] == 0
        monkeypatch.undo()
        disk.write(0, b"x" * LINE)
        monkeypatch.setattr(FileRoom, "read", full)
        assert disk.read(0, LINE) == b"x" * LINE


def test_a_cache_is_not_put_on_a_disk_in_use() -> None:
    with upon() as disk, pytest.raises(ConfigError, match="in use"):
        disk.disk.push(Cache())


def test_nothing_hangs_in_a_filter_that_was_taken_off(clock: HandClock) -> None:
    waiting = Waiting(clock)
    waiting.close()
    with pytest.raises(AbortedCommand):
        waiting.hold(lambda: None).result(0)


def test_initiators_that_pause_are_forgotten(clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "MANY", 4)
    made = Rate(clock)
    rig = rig_upon(given(made, initiator_iops="10", burst="1"))
    for number in range(20):
        rig.good(cdb10(0x28, 0, 1), room=512, who=f"{number}")
        clock.pass_by(1)
    assert len(made._initiators) <= 4
