"""Commands that take several steps: they wait for Futures, make room for others, go on on nobody's behalf."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any

from tcmu_core.disk.device import Device
from tcmu_core.errors import HardwareError, text_of
from tcmu_core.scsi.admission import spans_of
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.management import TaskManager
from tcmu_core.scsi.opcodes import Table, describe
from tcmu_core.scsi.steps import PAUSE, Abort, Ask, OnItsOwn, Shielded, Steps, checked, not_a_result


class Stepper(TaskManager):
    """The side of an engine that carries a command from one of its steps to the next."""

    device: Device
    table: Table

    def __init__(self) -> None:
        self._carried: dict[Command, Future[Any] | None] = {}  # what goes on on nobody's behalf, and its last hook's
        self._paused: deque[tuple[Command, Steps]] = deque()
        self._started: dict[Command, float] = {}  # monotonic seconds at which `slow` first saw them

    @abstractmethod
    def fail(self, command: Command, error: BaseException) -> None:
        """Give `command` the status and sense that `error` means."""

    def _step(self, command: Command, steps: Steps, future: Future[Any] | None, *, asked: bool = False) -> bool:
        """Run `steps` until it waits for something or ends; True when it has ended, with status and sense set.

        `future` is what it waited for: a data hook's, which must end with None, or one that it has `asked` for.
        """
        tasks = self.unit.tasks
        while True:
            if command.aborted and not tasks.shielded(command):
                self._break_off(command, steps)
                return True
            try:
                waiting = self._resumed(steps, future, asked)
            except StopIteration as end:
                if end.value is not None:
                    command.status = end.value
                return True
            except BaseException as error:
                self.fail(command, error)
                return True
            asked, future = False, None
            tasks.shield(command, False)
            if waiting is None:
                continue
            if waiting is PAUSE:
                self._enter(command)
                self._paused.append((command, steps))
                if len(self._paused) == 1:
                    self.post(self._next_paused)
                return False
            try:  # what a hook returned may be anything, a Future that is none inside too
                future, asked = self._to_wait_for(command, waiting)
                if future is None or future.done():
                    continue
                self._enter(command)
                if command in self._carried:
                    self._carried[command] = future
                future.add_done_callback(
                    lambda done, asked=asked: self.post(self._resume, command, steps, done, asked)  # type: ignore[misc]
                )
            except BaseException as error:
                self.fail(command, error)
                self._break_off(command, steps)
                return True
            return False

    def _to_wait_for(self, command: Command, waiting: Any) -> tuple[Future[Any] | None, bool]:
        """Return the Future that a step waits for, None for none; and whether it has asked for the result."""
        if isinstance(waiting, OnItsOwn):
            self.post(self._carry, Command(command.cdb, [], 0, command.nexus), waiting.steps)
            return None, False
        if isinstance(waiting, Abort):
            return self._abort_for(command, waiting.commands), False
        if isinstance(waiting, Shielded):
            if waiting.future is None:
                return None, False
            self._enter(command)
            self.unit.tasks.shield(command, True)
            return checked(waiting.future), False
        if isinstance(waiting, Ask):
            return checked(waiting.future), True
        return checked(waiting), False

    def _resumed(self, steps: Steps, future: Future[Any] | None, asked: bool) -> Any:
        """Let `steps` go on with what became of `future`; return what it waits for next."""
        if future is None:
            return steps.send(None)
        if future.cancelled():
            return steps.throw(HardwareError("the handler has cancelled what the command waits for"))
        error = future.exception()
        if error is not None:
            return steps.throw(error)
        result = future.result()
        if isinstance(result, Future):  # a hook that ran elsewhere has returned what it would have returned here
            return Ask(result) if asked else result
        if result is not None and not asked:
            return steps.throw(not_a_result(result))
        return steps.send(result)

    def _break_off(self, command: Command, steps: Steps) -> None:
        try:
            steps.close()
        except BaseException as error:
            self.device.log.error("%s: breaking it off failed: %s", describe(command.cdb, self.table), text_of(error))

    def _enter(self, command: Command) -> None:
        """Take a command that does not end at once into the task set, if it is nobody's own."""
        if command not in self._carried:
            self.unit.tasks.enter(command, spans_of(command))
        self.gate()

    def _next_paused(self) -> None:
        """Let one of the long commands go on: one chunk of one of them in each turn of the loop."""
        command, steps = self._paused.popleft()
        if self._paused:
            self.post(self._next_paused)
        self._resume(command, steps, None)

    def _resume(self, command: Command, steps: Steps, future: Future[Any] | None, asked: bool = False) -> None:
        if command in self._carried:
            if self._step(command, steps, future, asked=asked):
                del self._carried[command]
            self.gate()
        elif command not in self.unit.tasks.active:  # it was aborted while it waited
            self._break_off(command, steps)
        elif self._step(command, steps, future, asked=asked):
            self._end(command)

    def _carry(self, command: Command, steps: Steps) -> None:
        """Run steps that belong to no initiator's command any more: no reset and no lost nexus ends them."""
        self._carried[command] = None
        if self._step(command, steps, None):
            del self._carried[command]
        self.gate()

    def _end(self, command: Command, *, harmless: bool = False) -> None:
        """A command has ended that did not end at once: give its status, then tell those who waited for its end.

        `harmless`: it has changed nothing of the unit but the task set.
        """
        tasks = self.unit.tasks
        command.nexus.tally.count(command)
        changed = not harmless or tasks.contended
        watchers = tasks.end(command)
        if self._started:
            self._started.pop(command, None)
        if changed:
            self.gate()
        command.done(command)
        if watchers:
            self._call(watchers)

    def _call(self, callbacks: Iterable[Callable[[], object]]) -> None:
        for callback in callbacks:
            callback()

    def slow(self, seconds: float, now: float | None = None) -> list[Command]:
        """Return the commands that were in flight `seconds` ago already, each once; look every now and then."""
        now = time.monotonic() if now is None else now
        active = self.unit.tasks.active
        self._started = {command: self._started.get(command, now) for command in active}
        found = [command for command, since in self._started.items() if now - since >= seconds]
        for command in found:
            self._started[command] = float("inf")
        return found

    def _end_carried(self) -> None:
        """Have what belongs to no initiator end when its hook has returned, and wait for that."""
        for command, pending in self._carried.items():
            command.aborted = True
            if pending is not None:
                wait((pending,))
