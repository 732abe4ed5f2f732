"""The task set: commands that did not end at once, what they touch, who waits for whom (SAM-5 clause 8)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from tcmu_core.scsi.command import Command

EVERYTHING = (0, 1 << 64)
NOTHING = (0, 0)
Span = tuple[int, int]  # first LBA, and the LBA after the last


@dataclass(eq=False, slots=True)
class _Waiter:
    command: Command
    span: Span
    exclusive: bool
    turn: Future[None]


def overlap(one: Span, other: Span) -> bool:
    """Return whether two spans share a block."""
    return one[0] < other[1] and other[0] < one[1]


def countdown(count: int, then: Callable[[], object]) -> Callable[[], object]:
    """Return a function whose call number `count` calls `then()`; for a count of 0 that is done at once."""
    left = count

    def one_less() -> None:
        nonlocal left
        left -= 1
        if not left:
            then()

    if not count:
        then()
    return one_less


class TaskSet:
    """Tracks commands in flight, and gives a command a span of its own where it asks for one.

    A command that runs to its end inside `execute` never comes here: it can't overlap anything.
    """

    def __init__(self) -> None:
        self.active: dict[Command, Span] = {}
        self._locks: dict[Command, Span] = {}
        self._waiting: list[_Waiter] = []
        self._parked: set[Command] = set()
        self._watchers: dict[Command, list[Callable[[], object]]] = {}

    @property
    def contended(self) -> bool:
        """Return whether a new command may have to wait."""
        return bool(self._locks or self._waiting)

    def enter(self, command: Command, span: Span) -> None:
        """Note that `command` is in flight and touches `span`."""
        self.active[command] = span

    def admit(self, command: Command, span: Span) -> Future[None] | None:
        """Return None when `command` may touch `span` now, or a future of when it may."""
        if self._may(command, span, False, self._waiting):
            return None
        return self._wait(command, span, False)

    def lock(self, command: Command, span: Span) -> Future[None] | None:
        """Give `command` the span for itself until it ends: None when it has it now, or a future of when."""
        if self._may(command, span, True, self._waiting):
            self._locks[command] = span
            return None
        return self._wait(command, span, True)

    def unlock(self, command: Command) -> None:
        """Take back what `lock` gave, before the command ends."""
        self._locks.pop(command, None)
        self._grant()

    def park(self, command: Command) -> None:
        """Note that all that `command` does from now on is wait: an abort may end it at once."""
        self._parked.add(command)

    def watch(self, command: Command, then: Callable[[], object]) -> None:
        """Call `then()` when `command` has ended; at once when it is not in flight."""
        if command in self.active:
            self._watchers.setdefault(command, []).append(then)
        else:
            then()

    def end(self, command: Command) -> None:
        """Forget `command`, and let go on who waited for it."""
        self.active.pop(command, None)
        self._locks.pop(command, None)
        self._parked.discard(command)
        if self._waiting:
            self._waiting = [waiter for waiter in self._waiting if waiter.command is not command]
            self._grant()

    def ended(self, command: Command) -> None:
        """Call those who watch `command`; after its status is on the way."""
        for then in self._watchers.pop(command, ()):
            then()

    def is_waiting(self, command: Command) -> bool:
        """Return whether `command` only waits: for its turn, or for what is not its own."""
        return command in self._parked or any(waiter.command is command for waiter in self._waiting)

    def _wait(self, command: Command, span: Span, exclusive: bool) -> Future[None]:
        turn: Future[None] = Future()
        self._waiting.append(_Waiter(command, span, exclusive, turn))
        self._grant()  # a command that waits no longer stands in the way of one that waits to be alone
        return turn

    def _may(self, command: Command, span: Span, exclusive: bool, before: list[_Waiter]) -> bool:
        for owner, locked in self._locks.items():
            if owner is not command and overlap(locked, span):
                return False
        for waiter in before:
            if (exclusive or waiter.exclusive) and waiter.command is not command and overlap(waiter.span, span):
                return False
        if exclusive:
            waiting = {waiter.command for waiter in self._waiting}
            for owner, touched in self.active.items():
                if owner is not command and owner not in waiting and overlap(touched, span):
                    return False
        return True

    def _grant(self) -> None:
        ready: list[_Waiter] = []
        at = 0
        while at < len(self._waiting):
            waiter = self._waiting[at]
            if not self._may(waiter.command, waiter.span, waiter.exclusive, self._waiting[:at]):
                at += 1
                continue
            del self._waiting[at]
            if waiter.exclusive:
                self._locks[waiter.command] = waiter.span
            ready.append(waiter)
        for waiter in ready:
            waiter.turn.set_result(None)
