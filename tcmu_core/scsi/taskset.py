"""The task set: what is in flight on a unit, what it touches, and who waits for whom (SAM-5 clause 8).

The rules, which stand here and nowhere else:

* A command has ended when its last data hook has returned, and not before. One that was aborted, reset or left behind
  by its nexus ends no earlier: until then its blocks are *fenced*, and nothing that overlaps them runs.
* A command asks once, before it does anything: for what it touches shared with others, or alone. An ORDERED one asks
  for everything alone. So nobody who has something waits for more, and no order of commands can deadlock.
* EXTENDED COPY asks on every unit that it touches before it begins, in the order of their LUNs, for the same reason.
* Who waits is served in the order of arrival, as far as spans overlap; HEAD OF QUEUE does not wait for those who wait.

A command that runs to its end inside `execute` never comes here, unless it must be alone: it can't overlap anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from tcmu_core.scsi.command import Command

Span = tuple[int, int]  # first LBA, and the LBA after the last
Spans = tuple[Span, ...] | Callable[[Command], tuple[Span, ...]]
EVERYTHING: Span = (-2, 1 << 64)
MEDIUM: Span = (0, 1 << 64)
REGISTRATIONS: Span = (-1, 0)  # of no block: the persistent reservations, which one command at a time changes
CACHE: Span = (-2, -1)  # of no block: what a flush empties, for which an ORDERED command alone makes it wait


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


def touch(some: Iterable[Span], others: tuple[Span, ...]) -> bool:
    """Return whether any of some spans shares a block with any of others."""
    return any(overlap(one, other) for one in some for other in others)


class Task:
    """One command in the set: the spans that it touches, whether it must be alone there, and what it waits for.

    The spans may be told by a function: most commands end before anybody asks for them.
    """

    turn: Future[None] | None = None  # set while it waits for its turn
    parked = False  # all that it does from now on is wait: an abort may end it at once
    shielded = False  # what it does now must not be broken off
    watchers: Sequence[Callable[[], object]] = ()

    def __init__(self, command: Command, spans: Spans, alone: bool = False) -> None:
        self.command = command
        self.alone = alone
        self._spans = spans

    @property
    def spans(self) -> tuple[Span, ...]:
        """What it touches."""
        if not isinstance(self._spans, tuple):
            self._spans = self._spans(self.command)
        return self._spans

    @spans.setter
    def spans(self, spans: tuple[Span, ...]) -> None:
        self._spans = spans

    def meets(self, other: Task) -> bool:
        """Return whether the two can't go on at the same time."""
        if not (self.alone or other.alone):
            return False
        return touch(self.spans, other.spans)


class TaskSet:
    """The tasks of one unit."""

    def __init__(self) -> None:
        self.active: dict[Command, Task] = {}  # those that run, and those that wait
        self._waiting: list[Task] = []  # in the order of their arrival
        self._alone = 0  # how many that run must be alone, or are fenced

    @property
    def contended(self) -> bool:
        """Return whether a new command may have to wait."""
        return bool(self._alone or self._waiting)

    def enter(self, command: Command, spans: Spans) -> None:
        """Note that `command`, which nothing stands against, is in flight."""
        if command not in self.active:
            self.active[command] = Task(command, spans)

    def admit(
        self, command: Command, spans: tuple[Span, ...], *, alone: bool, ahead: bool = False
    ) -> Future[None] | None:
        """Take `command` in: None when it may run now, or a future of when it may. `ahead`: HEAD OF QUEUE."""
        task = Task(command, spans, alone)
        stands_against = self._stands_against(task, () if ahead else self._waiting)
        self.active[command] = task
        if not stands_against:
            self._alone += alone
            return None
        task.turn = Future()
        self._waiting.insert(0 if ahead else len(self._waiting), task)
        return task.turn

    def step_back(self, command: Command) -> None:
        """Take back what `command` has, before it ends: from now on it only waits, and an abort may end it at once."""
        task = self.active[command]
        spans, task.spans, task.parked = task.spans, (), True
        self._alone -= task.alone
        task.alone = False
        self._grant(spans)

    def shield(self, command: Command, on: bool) -> None:
        """Note that what `command` does now must not be broken off, or that it may be again."""
        if command in self.active:
            self.active[command].shielded = on

    def shielded(self, command: Command) -> bool:
        """Return whether what `command` does now must not be broken off."""
        task = self.active.get(command)
        return task is not None and task.shielded

    def fence(self, command: Command, spans: tuple[Span, ...] | None) -> None:
        """Keep everybody off the blocks that an aborted command may still write, and off no others, until it ends.

        None: off all that it has asked for.
        """
        task = self.active.get(command)
        if task is None or task.turn is not None:
            return
        spans = task.spans if spans is None else spans
        freed, task.spans = task.spans, spans
        self._alone += bool(spans) - task.alone
        task.alone = bool(spans)
        self._grant(freed)

    def watch(self, command: Command, then: Callable[[], object]) -> None:
        """Call `then()` when `command` has ended; at once when it is not in flight."""
        task = self.active.get(command)
        if task is not None:
            task.watchers = (*task.watchers, then)
        else:
            then()

    def end(self, command: Command) -> Sequence[Callable[[], object]]:
        """Forget `command`, let go on who waited for it, and return what those who watched it want to have called."""
        task = self.active.pop(command, None)
        if task is None:
            return ()
        if task.turn is not None:
            self._waiting.remove(task)
            task.turn.cancel()
        else:
            self._alone -= task.alone
        if self._waiting:
            self._grant(task.spans)
        return task.watchers

    def is_waiting(self, command: Command) -> bool:
        """Return whether `command` only waits: for its turn, or for what is not its own."""
        task = self.active.get(command)
        return task is not None and (task.parked or task.turn is not None)

    def _stands_against(self, task: Task, before: Iterable[Task]) -> bool:
        if task.alone or self._alone:
            for other in self.active.values():
                if other.turn is None and task.meets(other):
                    return True
        return any(task.meets(other) for other in before)

    def _grant(self, freed: tuple[Span, ...]) -> None:
        """Let run who waited for `freed`, in the order of arrival, and may now."""
        turns: list[Future[None]] = []
        still: list[Task] = []
        for task in self._waiting:
            if not touch(task.spans, freed) or self._stands_against(task, still):
                still.append(task)
                continue
            assert task.turn is not None
            turns.append(task.turn)
            task.turn = None
            self._alone += task.alone
        self._waiting = still
        for turn in turns:
            turn.set_result(None)
