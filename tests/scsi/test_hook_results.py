"""What a hook returns or raises means the same on every path, and never more than the end of its own command."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from tcmu_core import hookimpl
from tcmu_core.scsi.command import Command, Status
from tests.scsi.harness import BLOCK, Memory, Rig, cdb10, make_rig

INTERNAL = (4, 0x44, 0)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("even this fails")

    __repr__ = __str__


class Told(Memory):
    """Memory whose data hooks return or raise what they are told."""

    answer: Callable[[], Any] = staticmethod(lambda: None)

    def _answer(self, work: Any) -> Any:
        return self.answer()


def ended_with(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def failed_with(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def throw(error: BaseException) -> Any:
    raise error


def cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    return future


async def coroutine() -> None:
    pass


class Disguised:
    """A result that does not even say what it is."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("nobody asks me")


class Deaf(Future[Any]):
    """A Future that can't be waited for."""

    def add_done_callback(self, fn: Any) -> None:
        raise RuntimeError("no callbacks here")


PATHS = {
    "fast": (cdb10(0x2A, 0, 1), b"x" * BLOCK),
    "general": (cdb10(0x2A, 0, 1, 8), b"x" * BLOCK),
    "flush": ("35 0 0 0 0 0 0 0 0 0", b""),
    "several steps": (bytes([0x89]) + bytes(12) + bytes([1, 0, 0]), bytes(2 * BLOCK)),
    "write same": (bytes([0x41]) + bytes(7) + bytes([1, 0]), b"x" * BLOCK),
}
WRONG = {
    "bytes": lambda: b"secret",
    "a number": lambda: 512,
    "zero": lambda: 0,
    "False": lambda: False,
    "a status": lambda: Status.GOOD,
    "a generator": lambda: (None for _ in ()),
    "a coroutine": coroutine,
    "a future of a number": lambda: ended_with(512),
    "a future of bytes": lambda: ended_with(b"secret"),
    "a cancelled future": cancelled,
    "what hides its type": Disguised,
    "a future that can't be waited for": Deaf,
    "SystemExit": lambda: throw(SystemExit(3)),
    "KeyboardInterrupt": lambda: throw(KeyboardInterrupt()),
    "GeneratorExit": lambda: throw(GeneratorExit()),
    "StopIteration": lambda: throw(StopIteration()),
    "CancelledError": lambda: throw(asyncio.CancelledError()),
    "an exception that can't be printed": lambda: throw(Unprintable()),
    "a future of SystemExit": lambda: failed_with(SystemExit(3)),
    "a future of GeneratorExit": lambda: failed_with(GeneratorExit()),
    "a future of CancelledError": lambda: failed_with(asyncio.CancelledError()),
    "a future of one that can't be printed": lambda: failed_with(Unprintable()),
}


def send(rig: Rig, path: str) -> Any:
    command, ended = rig.start(*PATHS[path])
    rig.engine.device.shutdown()
    rig.turn()
    assert ended == [command]
    return command


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("what", WRONG)
def test_what_a_hook_must_not_do_is_a_hardware_error(
    what: str, path: str, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig(Told(), threads=threads)
    rig.nexus()
    rig.memory.answer = WRONG[what]
    with caplog.at_level(logging.ERROR):
        command = send(rig, path)
    assert command.status == Status.CHECK_CONDITION
    assert (command.sense[2] & 15, command.sense[12], command.sense[13]) == INTERNAL
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text
    assert rig.engine.idle


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("path", PATHS)
def test_a_future_is_awaited_wherever_it_comes_from(path: str, threads: int) -> None:
    rig = make_rig(Told(), threads=threads)
    rig.nexus()
    pending: list[Future[Any]] = []

    def later() -> Future[Any]:
        pending.append(Future())
        return pending[-1]

    rig.memory.answer = later
    command, ended = rig.start(*PATHS[path])
    for _ in range(5):
        rig.engine.device.shutdown()
        rig.turn()
        if not pending:
            break
        assert not ended
        pending.pop().set_result(None)
    rig.turn()
    assert ended == [command]


@pytest.mark.parametrize("error", [None, OSError(5, "broken")])
def test_a_future_that_ends_with_another_is_awaited_by_a_fast_path_too(error: OSError | None) -> None:
    rig = make_rig(Told())
    nexus = rig.nexus().luns[0][1]
    nexus.attentions.clear()
    first, second = Future[Any](), Future[Any]()
    rig.memory.answer = lambda: first
    ended: list[Command] = []
    command = Command(cdb10(0x28, 0, 1), [memoryview(bytearray(BLOCK))], BLOCK, nexus, ended.append)
    assert 0x28 in rig.engine.fast
    assert not rig.engine.execute(command)
    first.set_result(second)
    rig.turn()
    assert not ended
    second.set_exception(error) if error is not None else second.set_result(None)
    rig.turn()
    assert ended == [command]
    assert command.status == (Status.GOOD if error is None else Status.CHECK_CONDITION)
    assert command.sense[12:13] == (b"" if error is None else b"\x11")  # UNRECOVERED READ ERROR
    assert rig.engine.idle


def test_a_transport_that_fails_at_one_command_does_not_keep_the_others_from_their_end() -> None:
    rig = make_rig(Told())
    nexus = rig.nexus().luns[0][1]
    nexus.attentions.clear()
    pending: list[Future[Any]] = []

    def later() -> Future[Any]:
        pending.append(Future())
        return pending[-1]

    rig.memory.answer = later
    ended: list[Command] = []

    def fails(command: Command) -> None:
        raise ZeroDivisionError

    for done in (fails, ended.append):
        assert not rig.engine.execute(Command(cdb10(0x28, 0, 1), [memoryview(bytearray(BLOCK))], BLOCK, nexus, done))
    for future in pending:
        future.set_result(None)
    with pytest.raises(ZeroDivisionError):
        rig.turn()
    rig.turn()
    assert len(ended) == 1
    assert rig.engine.idle


@pytest.mark.parametrize(
    ("answer", "status"), [(0, 0), (Status.BUSY, 8), (True, 2), (False, 2), ("GOOD", 2), (b"", 2), (77, 2)]
)
@pytest.mark.parametrize("late", [False, True])
def test_handle_cmd_answers_with_a_status_and_nothing_else(answer: Any, status: int, late: bool) -> None:

    class Own(Memory):
        @hookimpl
        def handle_cmd(self, command: Any) -> Any:
            return ended_with(answer) if late else answer

    assert make_rig(Own()).send("c1 0 0 0 0 0").status == status
