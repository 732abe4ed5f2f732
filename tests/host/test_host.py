"""A host: what it opens, answers, changes and ends."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tcmu_core.disk.device import Change
from tcmu_core.errors import ConfigError, HandlerError, MediumError, WriteProtected
from tcmu_core.host.host import Host, errno_of
from tcmu_core.host.messages import Ask, Changed, Ping, Pong, Reconfigure, Status
from tcmu_core.kernel.configfs import ConfigfsError
from tcmu_core.scsi.command import Command, Initiator
from tests.host.conftest import Open


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("of no number"), errno.EIO),
        (FileNotFoundError(errno.ENOENT, "none"), errno.ENOENT),
        (ConfigError("wrong"), errno.EINVAL),
        (ValueError("wrong"), errno.EINVAL),
        (NotImplementedError(), errno.EOPNOTSUPP),
        (WriteProtected(), errno.EROFS),
        (MediumError(), errno.EIO),
        (HandlerError("none"), errno.ENOENT),
        (MemoryError(), errno.ENOMEM),
        (RuntimeError("moody"), errno.EIO),
        (ConfigfsError("writing", OSError(errno.EBUSY, "busy")), errno.EBUSY),
    ],
)
def test_each_exception_has_its_errno(error: BaseException, code: int) -> None:
    assert errno_of(error) == code


def test_a_handler_that_broke_has_the_errno_of_what_it_raised() -> None:
    for cause, code in ((RuntimeError("moody"), errno.EIO), (OSError(errno.ENOSPC, "full"), errno.ENOSPC)):
        error = HandlerError("it broke")
        error.__cause__ = cause
        assert errno_of(error) == code


def read(host: Host) -> Command:
    """Have an initiator read a block, which takes as long as the handler likes."""
    engine = host.engines[0]
    nexus = engine.attach(Initiator("someone", b""))
    nexus.attentions.clear()
    cdb = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    command = Command(cdb, [memoryview(bytearray(512))], 512, nexus, lambda _command: None, 7)
    assert not engine.execute(command)
    return command


def turn(host: Host, seconds: float) -> None:
    host.loop.call_later(seconds, host.loop.stop)
    host.loop.run()


def test_it_says_what_it_serves(served: Open) -> None:
    host = served("x", size=1 << 20)
    status = host.answer(Ask())
    assert isinstance(status, Status)
    (disk,) = status.disks
    assert (disk.lun, disk.handler, disk.name, disk.cfgstring, disk.size) == (0, "patient", "d", "x", 1 << 20)
    assert (status.missing, status.in_flight) == ((), 0)
    assert status.addresses
    read(host)
    assert host.engines[0].unit.tasks.active


def test_it_answers_a_ping(served: Open) -> None:
    assert isinstance(served().answer(Ping()), Pong)


def test_a_command_that_takes_longer_than_the_cfgstring_allows_is_reported_once(
    served: Open, caplog: pytest.LogCaptureFixture
) -> None:
    host = served(";tcmur_cmd_time_out=1;x")
    read(host)
    turn(host, 2.0)
    assert caplog.text.count("command 7 (28 00 00 00 00 00 00 00 01 00) takes longer than 1 s") == 1
    assert host.engines[0].device.cfgstring == "x"


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (Change(size=2 << 20), 0, ""),
        (Change(size=512), errno.ENOSPC, "full"),
        (Change(size=1000), errno.EINVAL, "not whole blocks"),
        (Change(cfgstring="y"), 0, ""),
        (Change(cfgstring=";tcmur_cmd_time_out=soon;y"), errno.EINVAL, "soon"),
        (Change(write_cache=False), 0, ""),
        (Change(write_cache=True), errno.EINVAL, "nothing here can be flushed"),
    ],
)
def test_a_change_is_answered_with_what_came_of_it(served: Open, change: Change, code: int, says: str) -> None:
    host = served("x", size=1 << 20)
    answer: Any = host.answer(Reconfigure(change, 0, 3))
    assert isinstance(answer, Changed)
    assert (answer.id, answer.errno) == (3, code)
    assert says in answer.reason
    assert answer.disk is not None
    assert answer.disk.size == (change.size if change.size and not code else 1 << 20)
    assert answer.disk.cfgstring == (change.cfgstring if change.cfgstring and not code else "x")


def test_a_change_of_what_is_not_there_is_refused(served: Open) -> None:
    answer: Any = served().answer(Reconfigure(Change(size=512), 5))
    assert (answer.errno, answer.reason, answer.disk) == (errno.ENODEV, "no LUN 5 here", None)


@pytest.mark.parametrize("waits", [False, True], ids=["idle", "busy"])
def test_a_drain_says_whether_all_commands_have_ended(served: Open, waits: bool) -> None:
    host = served()
    if waits:
        read(host)
    ended: list[bool] = []

    def then(idle: bool) -> None:
        ended.append(idle)
        host.loop.stop()

    host.drain(0.05, 0.05, then)
    host.loop.run()
    assert ended == [not waits]
