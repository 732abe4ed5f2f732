"""Commands of several steps: generators that yield what hooks return, None or a Future, and go on when it is done.

Beside that a command may yield: PAUSE, to let others run; `Ask(future)` for a Future whose result it wants, since a
data hook's Future must end with None; `Shielded(future)` for one that no abort breaks off; `OnItsOwn(steps)` to start
what belongs to no initiator any more; `Abort(commands)` to abort others and go on when they have ended.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

from tcmu_core.disk.threads import wrong_result
from tcmu_core.errors import HandlerError
from tcmu_core.scsi import sense
from tcmu_core.scsi.command import Command, Status

Steps = Generator[Any, Any, Any]

PAUSE = object()  # yielded by a long command: let others run, then go on


class Ask:
    """A Future whose result the command wants."""

    __slots__ = ("future",)

    def __init__(self, future: Future[Any]) -> None:
        self.future = future


class Shielded:
    """A Future, or None, at whose end the command goes on even if it was aborted meanwhile."""

    __slots__ = ("future",)

    def __init__(self, future: Future[Any] | None) -> None:
        self.future = future


class OnItsOwn:
    """Steps that go on when the command has ended, and that no reset and no lost nexus breaks off."""

    __slots__ = ("steps",)

    def __init__(self, steps: Steps) -> None:
        self.steps = steps


class Abort:
    """Commands to abort; the one that yields this goes on when all of them have ended."""

    __slots__ = ("commands",)

    def __init__(self, commands: list[Command]) -> None:
        self.commands = commands


def not_a_result(result: object) -> HandlerError:
    """Return the exception for what a hook must not return. It names the kind alone: what it read may be secret."""
    return HandlerError(wrong_result(result))


def checked(waiting: object) -> Future[Any]:
    """Return a hook's Future as it is; for anything else one that failed, since a hook must not return that."""
    if isinstance(waiting, Future):
        return waiting
    failed: Future[Any] = Future()
    failed.set_exception(not_a_result(waiting))
    return failed


def status_of(answer: Any, command: Command) -> Status:
    """Return the status that `handle_cmd` gave; raises for what is none, and for what no transport could send."""
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise TypeError(f"handle_cmd returned a {type(answer).__name__}: it must be None, NotHandled or a Status")
    status = Status(answer)
    told, moved, wanted = bytes(command.sense), command.transferred, command.wanted
    command.wanted = 0
    if (status == Status.CHECK_CONDITION) != (0 < len(told) <= sense.MAX_SENSE_LENGTH):
        raise ValueError(
            f"handle_cmd returned {status.name} and {len(told)} bytes of sense data: CHECK CONDITION has 1 to "
            f"{sense.MAX_SENSE_LENGTH}, no other status has any; to raise a CommandError is simpler"
        )
    if not 0 <= moved <= command.length or wanted < 0:
        raise ValueError(
            f"handle_cmd says that {moved} bytes of {wanted} were moved, where there is room for {command.length}: "
            "command.put and command.take count them"
        )
    command.wanted = wanted
    return status
