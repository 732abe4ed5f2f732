"""Proof that the simulation finds faults: each mend undone, it fails within few schedules, and shrinks to few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from tcmu_core.disk import layers
from tcmu_core.filters import clock
from tcmu_core.iscsi import budget
from tcmu_core.scsi import engine, hot, table, transition
from tcmu_core.scsi.command import Command, TaskAttribute
from tcmu_core.scsi.commands import block, copy
from tcmu_core.scsi.opcodes import Touches
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
    _row(patch, "COMPARE AND WRITE", lambda row: {"run": _again(row.run)})


def _row(patch: pytest.MonkeyPatch, name: str, changes: Callable[[Any], dict[str, Any]]) -> None:
    """Have another row of the table for a command."""
    rows = [replace(row, **changes(row)) if row.name == name else row for row in table.ROWS]
    patch.setattr(table, "ROWS", tuple(rows))
    patch.setattr(table, "_of_type", table._of_type.__wrapped__)


def _asks_nobody(row: Any) -> dict[str, Any]:
    return {"touches": Touches.NOTHING, "alone": False}


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


def reserve_6_stays(patch: pytest.MonkeyPatch) -> None:
    """RESERVE(6) outlives its nexus."""
    patch.setattr(Reservations, "nexus_lost", lambda self, nexus: None)


def reserve_6_asks_nobody(patch: pytest.MonkeyPatch) -> None:
    """RESERVE(6) does not wait for a registration that is being stored."""
    _row(patch, "RESERVE(6)", _asks_nobody)


def the_write_cache_goes_beneath_writes(patch: pytest.MonkeyPatch) -> None:
    """MODE SELECT does not wait for those that were begun with a write cache."""
    _row(patch, "MODE SELECT(6)", _asks_nobody)


def the_fast_path_has_a_write_cache(patch: pytest.MonkeyPatch) -> None:
    """The fast path does not look at the write cache."""
    paths = hot.fast_paths

    def cached(unit: Unit) -> dict[int, hot.Fast]:
        before, unit.write_cache = unit.write_cache, True
        found = paths(unit)
        unit.write_cache = before
        return found

    patch.setattr(hot, "fast_paths", cached)


def the_medium_goes_beneath_writes(patch: pytest.MonkeyPatch) -> None:
    """START STOP UNIT waits for nobody."""
    _row(patch, "START STOP UNIT", _asks_nobody)


def nobody_looks_for_a_medium(patch: pytest.MonkeyPatch) -> None:
    """What needs a medium runs without one."""
    patch.setattr(Unit, "must_have_medium", lambda self: None)


def groups_go_at_once(patch: pytest.MonkeyPatch) -> None:
    """A target port group that goes does not wait for what came through it."""
    patch.setattr(transition, "countdown", lambda count, then: then() or (lambda: None))


def groups_wait_for_those_who_wait_for_them(patch: pytest.MonkeyPatch) -> None:
    """A transition waits for what stands behind it too."""
    patch.setattr(transition, "_may_wait_for_it", lambda unit, command: False)


def nobody_hears_of_the_size(patch: pytest.MonkeyPatch) -> None:
    """A unit that is resized has no unit attention for anybody."""
    patch.setattr(Unit, "resized", Unit.refresh)


def the_fast_path_has_the_old_size(patch: pytest.MonkeyPatch) -> None:
    """The fast path is not made anew when the size changes."""
    resized = Unit.resized

    def same(self: Unit) -> None:
        version = self.version
        resized(self)
        self.version = version

    patch.setattr(Unit, "resized", same)


def a_filter_drops_what_is_below(patch: pytest.MonkeyPatch) -> None:
    """A filter that delays ends by its clock alone, whatever the layer below has."""
    delayed = clock.Waiting.delayed
    patch.setattr(clock.Waiting, "delayed", lambda self, pending, delay: delayed(self, None, delay))


def nobody_looks_at_the_background(patch: pytest.MonkeyPatch) -> None:
    """Commands run beside what goes on in the background."""
    patch.setattr(Unit, "must_be_ready", Unit.must_have_medium)


def nobody_tells_of_the_background(patch: pytest.MonkeyPatch) -> None:
    """REQUEST SENSE does not tell of what goes on in the background."""
    _row(patch, "REQUEST SENSE", lambda row: {"run": _without_background(row.run)})


def _without_background(run: Any) -> Callable[[Unit, Command], None]:
    def told(unit: Unit, command: Command) -> None:
        before, unit.background = unit.background, None
        run(unit, command)
        unit.background = before

    return told


UNDONE = [
    (not_fenced, "engine", "ghost"),
    (not_fenced, "session", "ghost"),
    (answered_before_its_hook_has_returned, "engine", "unfinished or late"),
    (asks_twice, "engine", "hung"),
    (asks_twice, "session", "hung"),
    (copies_past_the_task_set, "engine", "atomic or access"),
    (copies_past_the_task_set, "session", "atomic or access"),
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
    (reserve_6_stays, "engine", "reserved"),
    (reserve_6_stays, "session", "reserved"),
    (reserve_6_asks_nobody, "engine", "reserved"),
    (the_write_cache_goes_beneath_writes, "engine", "volatile or order"),
    (the_fast_path_has_a_write_cache, "engine", "volatile"),
    (the_fast_path_has_a_write_cache, "session", "volatile"),
    (the_medium_goes_beneath_writes, "engine", "medium"),
    (nobody_looks_for_a_medium, "session", "medium"),
    (groups_go_at_once, "engine", "access"),
    (groups_wait_for_those_who_wait_for_them, "engine", "hung"),
    (nobody_hears_of_the_size, "engine", "unheard"),
    (the_fast_path_has_the_old_size, "engine", "beyond"),
    (a_filter_drops_what_is_below, "engine", "unfinished"),
    (a_filter_drops_what_is_below, "ring", "unfinished"),
    (nobody_looks_at_the_background, "engine", "exclusive"),
    (nobody_tells_of_the_background, "engine", "untold"),
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
