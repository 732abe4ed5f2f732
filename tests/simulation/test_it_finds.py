"""Proof that the simulation finds faults: each mend undone, it fails within few schedules, and shrinks to few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from tcmu_core.disk import layers
from tcmu_core.iscsi import budget
from tcmu_core.scsi import engine, table
from tcmu_core.scsi.command import Command, TaskAttribute
from tcmu_core.scsi.commands import block, copy
from tcmu_core.scsi.reservations import Reservations
from tcmu_core.scsi.steps import Steps
from tcmu_core.scsi.taskset import TaskSet, touch
from tcmu_core.scsi.unit import Unit
from tests.simulation import world
from tests.simulation.search import explore

ENOUGH = 40_000  # schedules, in which it has to find it
MOST_STEPS = 10  # of what is left when the failure is shrunk


@pytest.fixture(autouse=True)
def disks() -> Iterator[None]:
    """Open the disks anew: a mend may be undone where they are opened."""
    world.forget()
    yield
    world.forget()


def not_fenced(patch: pytest.MonkeyPatch) -> None:
    """What a lost nexus may still write keeps nobody off."""
    patch.setattr(TaskSet, "fence", lambda self, *args: None)


def answered_before_its_hook_has_returned(patch: pytest.MonkeyPatch) -> None:
    """PREEMPT AND ABORT does not wait for those that it aborts."""

    def at_once(self: engine.Engine, command: Command, victims: list[Command]) -> Future[None]:
        self._abort_all(victims, lambda: None, by=command.nexus)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    patch.setattr(engine.Engine, "_abort_for", at_once)


def asks_twice(patch: pytest.MonkeyPatch) -> None:
    """COMPARE AND WRITE has its place already, and asks for its blocks again, behind those who wait."""
    rows = [replace(row, run=_again(row.run)) if row.name == "COMPARE AND WRITE" else row for row in table.ROWS]
    patch.setattr(table, "ROWS", tuple(rows))
    patch.setattr(table, "_of_type", table._of_type.__wrapped__)


def _again(run: Any) -> Callable[[Unit, Command], Steps]:
    def steps(unit: Unit, command: Command) -> Steps:
        task = unit.tasks.active.get(command)
        own = ((command.lba, command.lba + command.count),)
        if task is not None and any(touch(other.spans, own) for other in unit.tasks._waiting):
            yield Future()  # they wait for it, and it for them
        yield from run(unit, command)

    return steps


def copies_past_the_task_set(patch: pytest.MonkeyPatch) -> None:
    """EXTENDED COPY asks nobody."""

    def enter(self: copy.Visit) -> Steps:
        return
        yield

    patch.setattr(copy.Visit, "enter", enter)


def takes_effect_unsaved(patch: pytest.MonkeyPatch) -> None:
    """PERSISTENT RESERVE OUT takes effect before it is stored."""
    save = Reservations.save

    def unsaved(self: Reservations, draft: Any) -> Future[None] | None:
        before = self.now
        self.commit(draft)
        assert self.now is not before
        return save(self, draft)

    patch.setattr(Reservations, "save", unsaved)


def good_for_what_was_not_done(patch: pytest.MonkeyPatch) -> None:
    """A write whose data ends inside a block writes the whole ones alone."""
    patch.setattr(block, "partial", lambda command, size: False)


def drops_what_a_thread_returns(patch: pytest.MonkeyPatch) -> None:
    """The Future that a hook returns on a thread is dropped."""

    def dropped(future: Future[Any]) -> Future[Any]:
        outer: Future[Any] = Future()
        future.add_done_callback(lambda done: outer.set_result(None))
        return outer

    patch.setattr(layers, "chained", dropped)


def an_abort_does_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A command that is aborted counts as ended while its hook runs."""
    patch.setattr(TaskSet, "is_waiting", lambda self, command: command in self.active)


def a_flush_is_left_out(patch: pytest.MonkeyPatch) -> None:
    """FUA is not looked at."""
    patch.setattr(block, "fua", lambda command: False)


def nobody_counts(patch: pytest.MonkeyPatch) -> None:
    """A session may keep as much as it likes."""
    patch.setattr(budget.Account, "allows", lambda self, size: True)


def ordered_is_simple(patch: pytest.MonkeyPatch) -> None:
    """The task attribute is not looked at."""
    turn_of = engine.turn_of

    def simple(unit: Unit, command: Command, row: Any) -> Any:
        if command.attribute == TaskAttribute.ORDERED:
            command.attribute = TaskAttribute.SIMPLE
        return turn_of(unit, command, row)

    patch.setattr(engine, "turn_of", simple)


UNDONE = [
    (not_fenced, "engine", "ghost"),
    (not_fenced, "session", "ghost"),
    (answered_before_its_hook_has_returned, "engine", "unfinished or late"),
    (asks_twice, "engine", "hung"),
    (asks_twice, "session", "hung"),
    (copies_past_the_task_set, "engine", "atomic"),
    (copies_past_the_task_set, "session", "atomic"),
    (takes_effect_unsaved, "engine", "reserved"),
    (good_for_what_was_not_done, "engine", "unwritten"),
    (drops_what_a_thread_returns, "engine", "unfinished"),
    (an_abort_does_not_wait, "engine", "unfinished"),
    (an_abort_does_not_wait, "session", "unfinished"),
    (an_abort_does_not_wait, "ring", "unfinished"),
    (good_for_what_was_not_done, "ring", "unwritten"),
    (a_flush_is_left_out, "engine", "volatile"),
    (nobody_counts, "memory", "memory"),
    (ordered_is_simple, "engine", "order"),
]


@pytest.mark.parametrize(("undo", "level", "kind"), UNDONE, ids=lambda value: getattr(value, "__name__", value))
def test_a_mend_undone_is_found(
    undo: Callable[[pytest.MonkeyPatch], None], level: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undo(monkeypatch)
    count, failure = explore(level, range(ENOUGH))
    assert failure is not None, f"{count} schedules found nothing"
    assert failure.kind in kind.split(" or "), str(failure)
    assert len(failure.schedule.steps) <= MOST_STEPS, str(failure)
