"""handle_cmd, what handlers raise and return, and every kind of failure as the initiator hears it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from tcmu_core import (
    Command,
    Device,
    MediumError,
    NotHandled,
    Opcode,
    Status,
    TaskSetFull,
    hookimpl,
)
from tcmu_core.scsi import failures
from tests.scsi.harness import BLOCK, Memory, cdb10, make_rig


class Answering(Memory):
    """Answers by a function that a test sets."""

    def __init__(self, answer: Callable[[Command], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[int] = []

    @hookimpl
    def handle_cmd(self, command: Command) -> Any:
        self.seen.append(command.cdb[0])
        return self.answer(command)


def put(command: Command) -> Status:
    command.put(b"hello")
    return Status.GOOD


def refuse(command: Command) -> Status:
    raise NotHandled


def later(value: Any) -> Callable[[Command], Future[Any]]:
    def answer(command: Command) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(value)
        return future

    return answer


@pytest.mark.parametrize(
    "answer", [lambda command: None, lambda command: NotHandled, refuse, later(None), later(NotHandled)]
)
def test_what_is_not_handled_is_the_engines(answer: Callable[[Command], Any]) -> None:
    rig = make_rig(Answering(answer))
    rig.nexus()
    got = rig.send(cdb10(0x28, 0, 1), room=BLOCK)
    expected = (5, 0x20, 0) if answer is refuse else (0, 0, 0)
    assert got.error == expected or got.data == bytes(BLOCK)


def test_handle_cmd_sees_every_cdb_first() -> None:
    handler = Answering(lambda command: None)
    rig = make_rig(handler)
    for cdb in ("0 0 0 0 0 0", "12 0 0 0 24 0", cdb10(0x28, 0, 1), "c1 0 0 0 0 0"):
        rig.send(cdb, room=BLOCK)
    assert handler.seen == [0x00, 0x12, 0x28, 0xC1]


def test_handle_cmd_answers_with_data_and_status() -> None:
    assert make_rig(Answering(put)).good("c1 0 0 0 0 0", room=64) == b"hello"
    assert make_rig(Answering(later(Status.BUSY))).send("c1 0 0 0 0 0").status == Status.BUSY


def test_a_command_that_the_handler_announces_is_reported_and_checked() -> None:
    class Vendor(Answering):
        @hookimpl
        def open(self, device: Device) -> None:
            super().open(device)
            device.opcodes = (Opcode(0xC1, "BLINK", bytes.fromhex("ff 00 00 00 03 00")),)

    rig = make_rig(Vendor(lambda command: put(command) if command.cdb[0] == 0xC1 else None))
    assert rig.good("a3 c 1 c1 0 0 0 0 1 0 0 0", room=64) == bytes.fromhex("00 03 00 06 c1 00 00 00 03 00")
    assert rig.good("c1 0 0 0 1 0", room=64) == b"hello"


# -- errors ------------------------------------------------------------------------------------------------------------

ERRORS = [
    (OSError(errno.EIO, "i/o"), 0x02, (3, 0x11, 0), (3, 0x0C, 0)),
    (OSError(errno.ENOSPC, "full"), 0x02, (7, 0x27, 7), (7, 0x27, 7)),
    (OSError(errno.EROFS, "ro"), 0x02, (7, 0x27, 0), (7, 0x27, 0)),
    (OSError(errno.ETIMEDOUT, "late"), 0x02, (4, 0x3E, 2), (4, 0x3E, 2)),
    (OSError(errno.EAGAIN, "again"), 0x08, (0, 0, 0), (0, 0, 0)),
    (OSError(errno.ENOMEM, "memory"), 0x28, (0, 0, 0), (0, 0, 0)),
    (OSError(errno.ENOMEDIUM, "none"), 0x02, (2, 0x3A, 0), (2, 0x3A, 0)),
    (OSError(errno.ENOTCONN, "gone"), 0x02, (2, 4, 0), (2, 4, 0)),
    (MediumError(), 0x02, (3, 0x11, 0), (3, 0x11, 0)),
    (TaskSetFull(), 0x28, (0, 0, 0), (0, 0, 0)),
    (ZeroDivisionError("oops"), 0x02, (4, 0x44, 0), (4, 0x44, 0)),
    (KeyError("oops"), 0x02, (4, 0x44, 0), (4, 0x44, 0)),
]


@pytest.mark.parametrize(("error", "status", "reading", "writing"), ERRORS, ids=[repr(row[0]) for row in ERRORS])
def test_what_a_hook_raises_is_what_the_initiator_hears(
    error: Exception, status: int, reading: tuple[int, int, int], writing: tuple[int, int, int]
) -> None:
    rig = make_rig()
    rig.memory.error = error
    read, write = rig.send(cdb10(0x28, 0, 1), room=BLOCK), rig.send(cdb10(0x2A, 0, 1), bytes(BLOCK))
    assert (read.status, read.error) == (status, reading)
    assert (write.status, write.error) == (status, writing)
    rig.memory.error = None
    assert rig.good(cdb10(0x28, 0, 1), room=BLOCK) == bytes(BLOCK)


def test_an_unexpected_exception_is_logged_with_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    rig = make_rig()
    rig.memory.error = ZeroDivisionError("oops")
    with caplog.at_level(logging.ERROR):
        rig.send(cdb10(0x28, 0, 1), room=BLOCK)
        rig.send(cdb10(0x28, 0, 1), room=BLOCK)
    first, second = caplog.records
    assert "READ(10)" in first.message
    assert first.exc_info
    assert not second.exc_info


def test_a_full_disk_does_not_fill_the_log_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=lambda: now))
    rig = make_rig()
    rig.memory.error = OSError(errno.ENOSPC, "No space left on device")
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            rig.send(cdb10(0x2A, 0, 1), bytes(BLOCK))
        assert len(caplog.records) == failures.AT_FIRST
        rig.send(cdb10(0x28, 0, 1), room=BLOCK)  # another command says so too
        assert len(caplog.records) == failures.AT_FIRST + 1
        now += failures.AGAIN_SECONDS
        for _ in range(100):
            rig.send(cdb10(0x2A, 0, 1), bytes(BLOCK))
    assert len(caplog.records) == failures.AT_FIRST + 2
    assert caplog.records[-1].message.endswith("No space left on device; so did 92 like it meanwhile")


@pytest.mark.parametrize("value", [512, "done", b"data", True])
def test_a_hook_that_returns_something_else_is_an_error_and_not_a_status(value: Any) -> None:
    class Wrong(Memory):
        @hookimpl
        def read(self, offset: int, buffers: list[memoryview]) -> Any:
            return value

    rig = make_rig(Wrong())
    assert rig.send(cdb10(0x28, 0, 1), room=BLOCK).error == (4, 0x44, 0)


def test_level_5_logs_every_cdb_by_name(caplog: pytest.LogCaptureFixture) -> None:
    rig = make_rig()
    rig.engine.trace = True
    with caplog.at_level(5):
        rig.send(cdb10(0x28, 7, 1), room=BLOCK)
        rig.send("c1 0 0 0 0 0")
    assert [record.message for record in caplog.records if record.levelno == 5][:2] == [
        "28 0 0 0 0 7 0 0 1 0 READ(10) lba 7 blocks 1",
        "c1 0 0 0 0 0 opcode C1h",
    ]
