"""Task management: nexuses come and go, commands are aborted, a unit is reset (SAM-5 clauses 6 and 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from tcmu_core.scsi.admission import may_still_write
from tcmu_core.scsi.attention import COMMANDS_CLEARED, LUN_RESET, establish
from tcmu_core.scsi.command import Command, Initiator, Nexus, Status
from tcmu_core.scsi.taskset import countdown
from tcmu_core.scsi.unit import Unit


class Post(Protocol):
    """Calls `fn(*args)` on the loop's thread, soon; may be called from any thread."""

    def __call__(self, fn: Callable[..., object], *args: Any) -> None:
        """Arrange the call."""


class TaskManager(ABC):
    """The side of an engine that task management reaches: nexuses, and commands that end before their time."""

    unit: Unit
    post: Post

    @abstractmethod
    def gate(self) -> None:
        """Look at the fast path anew: what stands in its way has changed."""

    @abstractmethod
    def refresh(self) -> None:
        """Derive everything anew: the unit is as after power on."""

    def attach(self, initiator: Initiator) -> Nexus:
        """Make a new I_T_L nexus."""
        nexus = self.unit.attach(initiator)
        self.gate()
        return nexus

    def detach(self, nexus: Nexus, then: Callable[[], object] | None = None) -> None:
        """End an I_T_L nexus: abort its commands, drop its RESERVE(6) and its PREVENT (SAM-5 6.3.4).

        It is gone at once; its blocks are fenced until its commands have ended, of which `then()` tells.
        """
        self._abort_all(self._of(nexus), then or (lambda: None), by=nexus)
        self.unit.forget(nexus)
        self.gate()

    def abort(self, command: Command, then: Callable[[], object], *, by: Nexus | None = None) -> None:
        """ABORT TASK: `then()` is called when the command has ended.

        It gets no status, unless another nexus has it aborted and TAS is set (SAM-5 5.7, SPC-4 7.5.8).
        """
        tasks = self.unit.tasks
        if not command.aborted:
            command.aborted = True
            command.status = Status.GOOD
            if by is not None and by is not command.nexus and self.unit.modes.task_aborted_status:
                command.status = Status.TASK_ABORTED
        tasks.watch(command, then)
        if tasks.is_waiting(command):  # no hook has its buffers: nothing to wait for
            watchers = tasks.end(command)
            self.post(self._ended, command, watchers)
        else:
            tasks.fence(command, may_still_write(self.unit, command))
        self.gate()

    def _ended(self, command: Command, watchers: Sequence[Callable[[], object]]) -> None:
        command.nexus.tally.count(command)
        command.done(command)
        for call in watchers:
            call()

    def _of(self, nexus: Nexus) -> list[Command]:
        return [command for command in self.unit.tasks.active if command.nexus is nexus]

    def abort_task_set(self, nexus: Nexus, then: Callable[[], object]) -> None:
        """ABORT TASK SET: abort every command of this nexus."""
        self._abort_all(self._of(nexus), then, by=nexus)

    def clear_task_set(self, nexus: Nexus | None, then: Callable[[], object]) -> None:
        """CLEAR TASK SET: abort every command; other nexuses hear of it, unless they get a status (SAM-5 7.5)."""
        unit = self.unit
        told = {command.nexus for command in unit.tasks.active if command.nexus is not nexus}
        told |= self._clear_others(nexus)
        if not unit.modes.task_aborted_status:
            for other in unit.nexuses:
                if other in told:
                    establish(other, COMMANDS_CLEARED)
        self._abort_all(list(unit.tasks.active), then, by=nexus)

    def reset(self, nexus: Nexus | None, then: Callable[[], object]) -> None:
        """LOGICAL UNIT RESET (SAM-5 6.3.3): abort everything, release RESERVE(6), start the unit, tell every nexus."""
        unit = self.unit
        self._clear_others(nexus)
        self._abort_all(list(unit.tasks.active), then, by=nexus)
        unit.reservations.legacy = None
        unit.started = True
        unit.prevented.clear()
        unit.modes.reset()
        unit.attention(*LUN_RESET)
        self.refresh()

    def _clear_others(self, nexus: Nexus | None) -> set[Nexus]:
        """Have other transports drop the commands of this unit whose data has not come yet; return who had some."""
        others = [other for other in self.unit.nexuses if other is not nexus and other.on_clear is not None]
        return {other for other in others if other.on_clear is not None and other.on_clear()}

    def _abort_all(self, commands: list[Command], then: Callable[[], object], *, by: Nexus | None) -> None:
        one_ended = countdown(len(commands), then)
        for command in commands:
            self.abort(command, one_ended, by=by)

    def _abort_for(self, command: Command, victims: list[Command]) -> Future[None]:
        """Abort others on behalf of `command`; return a future of when all of them have ended."""
        ended: Future[None] = Future()
        self._abort_all(victims, lambda: ended.set_result(None), by=command.nexus)
        return ended
