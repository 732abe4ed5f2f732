"""`readonly`, `log` and `stats`: what a disk takes, and what is told of it."""

from __future__ import annotations

import logging

import pytest

from tcmu_core.errors import ConfigError, TaskSetFull
from tcmu_core.filters.op_log import OperationLog
from tcmu_core.filters.op_stats import Statistics
from tcmu_core.filters.readonly import ReadOnly
from tests.filters.conftest import HandClock, given, rig_upon, upon
from tests.scsi.harness import Memory, cdb10


def test_a_read_only_disk_says_so_and_takes_no_write() -> None:
    rig = rig_upon(ReadOnly())
    assert rig.good("1a 00 3f 00 ff 00", room=255)[2] & 0x80, "WP in the mode parameter header"
    assert rig.send(cdb10(0x2A, 0, 1), b"w" * 512).error[0] in (5, 7)
    assert not any(rig.memory.data[:512])
    rig.good(cdb10(0x28, 0, 1), room=512)


def test_nothing_below_a_read_only_filter_can_be_changed() -> None:
    with upon(ReadOnly()) as disk:
        operations = disk.disk.operations
        assert (operations.write, operations.discard, operations.write_zeroes) == (None, None, None)
        assert disk.disk.read_only


# -- log --------------------------------------------------------------------------------------------------------------


def test_each_operation_is_a_line_with_its_time(clock: HandClock, caplog: pytest.LogCaptureFixture) -> None:
    handler = Memory()
    with caplog.at_level(logging.INFO), upon(OperationLog(clock), handler=handler) as disk:
        disk.write(4096, bytes(1024), parts=[100])
        handler.hold = True
        pending = disk.disk.operations.read(512, [memoryview(bytearray(512))])
        clock.pass_by(0.002)
        handler.release()
        assert pending is not None
    assert [record.getMessage() for record in caplog.records] == [
        "write 1024 bytes at 4096: done, 0 us",
        "read 512 bytes at 512: done, 2000 us",
    ]


def test_only_errors_if_asked(clock: HandClock, caplog: pytest.LogCaptureFixture) -> None:
    handler = Memory()
    with (
        caplog.at_level(logging.DEBUG),
        upon(given(OperationLog(clock), errors=1, level="warn"), handler=handler) as disk,
    ):
        disk.flush()
        handler.error = OSError(5, "Input/output error")
        with pytest.raises(OSError, match="Input"):
            disk.flush()
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "flush: [Errno 5] Input/output error, 0 us",
    )


def test_a_level_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="'loud' is none of error, warn, info, debug"):
        given(OperationLog(), level="loud")


# -- stats ------------------------------------------------------------------------------------------------------------


def test_operations_bytes_errors_and_times_are_counted(clock: HandClock) -> None:
    handler = Memory()
    with upon(Statistics(clock), handler=handler) as disk:
        disk.write(0, bytes(4096))
        disk.read(0, 512)
        handler.hold = True
        pending = disk.disk.operations.read(0, [memoryview(bytearray(1024))])
        assert disk.disk.tell("statistics", {})["read"]["in_flight"] == 1
        clock.pass_by(0.003)
        handler.release()
        assert pending is not None
        handler.hold, handler.error = False, TaskSetFull()
        with pytest.raises(TaskSetFull):
            disk.flush()
        told = disk.disk.tell("statistics", {"action": "reset"})
        assert told["write"] == {
            "count": 1,
            "bytes": 4096,
            "errors": 0,
            "in_flight": 0,
            "seconds": 0,
            "latency_us": {"1": 1},
        }
        assert told["read"] | {"seconds": 0} == {
            "count": 2, "bytes": 1536, "errors": 0, "in_flight": 0, "seconds": 0, "latency_us": {"1": 1, "4096": 1}
        }  # fmt: skip
        assert told["read"]["seconds"] == pytest.approx(0.003)
        assert told["flush"]["errors"] == 1
        assert disk.disk.tell("statistics", {})["read"]["count"] == 0
        with pytest.raises(ConfigError, match="show or reset"):
            disk.disk.tell("statistics", {"action": "forget"})


def test_an_operation_that_ends_with_an_error_later_is_counted_as_one(clock: HandClock) -> None:
    handler = Memory()
    with upon(Statistics(clock), handler=handler) as disk:
        handler.hold = True
        assert disk.disk.operations.flush is not None
        disk.disk.operations.flush()
        handler.held.popleft()[0].set_exception(OSError())
        told = disk.disk.tell("statistics", {})["flush"]
        assert (told["errors"], told["in_flight"]) == (1, 0)
