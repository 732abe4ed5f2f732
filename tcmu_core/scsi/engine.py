"""Engine: takes commands, checks what the standards ask, runs them on a unit, gives status and sense."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from tcmu_core.disk.device import StateStore
from tcmu_core.disk.disk import Disk
from tcmu_core.errors import InvalidFieldInCdb, InvalidOpcode, NotHandled, TcmuError, UnitAttention, text_of
from tcmu_core.log import DEBUG_SCSI_CMD
from tcmu_core.posix import Completion
from tcmu_core.scsi import hot
from tcmu_core.scsi.admission import admit, decode, permit, spans_of, turn_of
from tcmu_core.scsi.changes import Changes
from tcmu_core.scsi.command import Command, TaskAttribute
from tcmu_core.scsi.failures import Failures
from tcmu_core.scsi.following import Follower, Reader
from tcmu_core.scsi.management import Post
from tcmu_core.scsi.opcodes import Direction, Opcode, Table, describe, find
from tcmu_core.scsi.steps import Ask, Steps, status_of
from tcmu_core.scsi.table import every_row, table_for
from tcmu_core.scsi.taskset import Span, countdown
from tcmu_core.scsi.unit import Unit

LANDINGS = 16  # commands that end in one turn of the loop, when their hooks have returned
_ORDERED = int(TaskAttribute.ORDERED)  # looking a member up costs a tenth of a microsecond, for each command


class Engine(Changes):
    """Runs commands on the unit of an open disk.

    Everything but what a Future's completion triggers runs on the loop's thread; `post` brings that there too.
    """

    def __init__(self, disk: Disk, *, post: Post, store: StateStore | None = None) -> None:
        super().__init__()
        self.disk = disk
        self.device = disk.device
        self.unit = Unit(disk, store=store)
        self.post = post
        self._failures = Failures(disk, self.unit)
        self.table: Table
        self._laws: Table  # of every command that there could be
        self.fast: dict[int, hot.Fast] = {}  # by operation code; empty while each command must be looked at
        self._no_fast: dict[int, hot.Fast] = {}
        self._all_fast: dict[int, hot.Fast] = {}
        self._over: hot.Over | None = None
        self._version = -1  # of the unit, when table and fast paths were made
        self._trace = False
        self._follower: Follower | None = None
        self._air: deque[tuple[Command, Future[Any]]] = deque()  # what has returned to `_land`
        self._landing = False  # whether that is posted
        self._unwatch = store.watch(self._stored_elsewhere) if store is not None else _nothing
        self.device.changed = self._notified
        self.device.prevented = lambda: bool(self.unit.prevented)
        self.refresh()

    def refresh(self) -> None:
        """Derive everything anew after the device or a mode page changed."""
        self.unit.refresh()
        self.gate()

    def gate(self) -> None:
        """Open the fast path while nothing stands in its way, and close it otherwise."""
        unit = self.unit
        if unit.version != self._version:
            self._version = unit.version
            self.table = unit.table = table_for(unit)
            self._laws = every_row(unit)
            self._all_fast = self._fast_paths()
        clear = (
            unit.started
            and unit.loaded
            and not self._trace
            and self._follower is None
            and unit.background is None
            and unit.operations.handle_cmd is None
            and not unit.reservations.active
            and not unit.tasks.contended
            and not unit.access.closed
        )
        self.fast = self._all_fast if clear else self._no_fast

    def count(self, over: hot.Over | None) -> None:
        """Have what `over` makes of the fast paths stand in for them, so that a transport that calls them counts."""
        self._over = over
        self._all_fast = self._fast_paths()
        self.gate()

    def _fast_paths(self) -> dict[int, hot.Fast]:
        paths = hot.fast_paths(self.unit)
        return paths if self._over is None else self._over(paths)

    @property
    def trace(self) -> bool:
        """Whether each CDB is logged, decoded by name."""
        return self._trace

    @trace.setter
    def trace(self, value: bool) -> None:
        self._trace = value
        self.gate()

    def follow(self, reader: Reader) -> None:
        """Tell `reader` of each command that comes from now on, as it ends; no fast path until it is let go."""
        if self._follower is None:
            self._follower = Follower(time.monotonic)
        self._follower.readers.append(reader)
        self.gate()

    def unfollow(self, reader: Reader) -> None:
        """Tell `reader` nothing any more."""
        if self._follower is not None and reader in self._follower.readers:
            self._follower.readers.remove(reader)
            if not self._follower.readers:
                self._follower = None
        self.gate()

    @property
    def idle(self) -> bool:
        """Whether no command is in flight."""
        return not self.unit.tasks.active

    def expects(self, cdb: bytes) -> tuple[Direction, int | None]:
        """Return which way a CDB's data goes on this unit, and how many bytes it can move; None: nobody knows."""
        row = find(self.table, cdb)
        if row is None:
            return (Direction.NONE, 0) if self.unit.operations.handle_cmd is None else (Direction.ANY, None)
        if row.direction is Direction.NONE:
            return Direction.NONE, 0
        return row.direction, row.most(cdb, self.unit.block_size)

    # -- running commands ---------------------------------------------------------------------------------------------

    def execute(self, command: Command) -> bool:
        """Run a command. True: it has ended. False: `command.done(command)` will be called on the loop's thread."""
        nexus, opcode = command.nexus, command.cdb[0]
        try:
            fast = self.fast.get(opcode)
            if fast is not None and not nexus.attentions and command.attribute < _ORDERED:
                length = command.length
                result = fast(command.cdb, 0, length, command.buffers)
                if result is None:
                    command.transferred = command.wanted = length
                    tally = nexus.tally
                    tally.commands[opcode] += 1
                    tally.moved[opcode] += length
                    return True
                if result is not hot.PASS:
                    command.transferred = command.wanted = length
                    return self._pending(command, result)
        except BaseException as error:
            self.fail(command, error)
            nexus.tally.count(command)
            return True
        return self._general(command)

    def proceed(self, command: Command, result: Any) -> bool:
        """Go on with a command whose fast path returned or raised `result`; what `execute` returns."""
        if result is hot.PASS:
            return self._general(command)
        if isinstance(result, BaseException):
            self.fail(command, result)
            command.nexus.tally.count(command)
            return True
        command.transferred = command.wanted = command.length
        return self._pending(command, result)

    def _pending(self, command: Command, result: Any) -> bool:
        """Wait for what the hook of a fast path returned: its end is the command's."""
        try:
            waits = isinstance(result, Future) and not (result.ended if type(result) is Completion else result.done())
            if waits:
                self.unit.tasks.enter(command, self._spans)
                result.add_done_callback(partial(self._returned, command))
        except BaseException as error:  # a Future that is none inside
            self._decode(command)
            self.fail(command, error)
            return self._ended_at_once(command)
        if waits:
            return False
        self._decode(command)
        return self._first(command, _waiting(result))

    def _spans(self, command: Command) -> tuple[Span, ...]:
        self._decode(command)
        return spans_of(command)

    def _returned(self, command: Command, hook: Future[Any]) -> None:
        """The hook of a fast path has returned; on any thread. Those that do so together land together."""
        self._air.append((command, hook))
        if not self._landing:
            self._landing = True
            self.post(self._land)

    def _land(self) -> None:
        """End the commands whose hooks have returned, as many as may be before others have their turn."""
        self._landing = False  # before the first is taken: one that comes from now on posts for itself
        air, active = self._air, self.unit.tasks.active
        try:
            for _ in range(min(len(air), LANDINGS)):
                command, hook = air.popleft()
                if command not in active:
                    continue  # it was aborted while it waited
                if command.aborted or (hook.error is None if type(hook) is Completion else _is_well(hook)):
                    self._end(command, harmless=True)
                else:
                    self._decode(command)
                    self._resume(command, _waiting(hook), None)
        finally:  # a transport that fails at one of them leaves the others as they are
            if air and not self._landing:
                self._landing = True
                self.post(self._land)

    def _general(self, command: Command) -> bool:
        """Run a command by the general path."""
        if self._follower is not None:
            self._follower.arrived(command)
        try:
            row = self._decode(command)
            if self._trace:
                self.device.log.log(DEBUG_SCSI_CMD, "%s", describe(command.cdb, self.table))
            turn = turn_of(self.unit, command, row)
            if turn is not None:
                steps = self._after(turn, command)
            else:
                result = self._attended(command)
                if not hasattr(result, "send"):
                    if result is not None:
                        command.status = result
                    return self._ended_at_once(command)
                steps = result
        except BaseException as error:
            self.fail(command, error)
            return self._ended_at_once(command)
        return self._first(command, steps)

    def _first(self, command: Command, steps: Steps) -> bool:
        """Run the first of several steps; True when they were all."""
        return self._step(command, steps, None) and self._ended_at_once(command)

    def _ended_at_once(self, command: Command) -> bool:
        if self._follower is not None:
            self._follower.ended(command)
        command.nexus.tally.count(command)
        self._call(self.unit.tasks.end(command))
        self.gate()
        return True

    def _decode(self, command: Command) -> Opcode | None:
        return decode(self.table, command)

    def _after(self, turn: Future[None], command: Command) -> Steps:
        yield turn
        if self._follower is not None:
            self._follower.started(command)
        command.begun = time.perf_counter_ns()
        result = self._attended(command)
        return (yield from result) if hasattr(result, "send") else result

    def _attended(self, command: Command) -> Any:
        """Report a unit attention if one waits, let the handler look, then run the command."""
        attentions, row = command.nexus.attentions, command.row
        if attentions and (row is None or row.attention):
            raise UnitAttention.of(*attentions.popleft())
        handle = self.unit.operations.handle_cmd
        if handle is not None:
            # What stands against a command is ours to say, whoever answers it.
            if row is not None and row.run is None:
                admit(self.unit, row, command)
            else:
                permit(self.unit, self._laws, command)
            answer: Any = handle(command)
            if isinstance(answer, Future):
                return self._handled(answer, command)
            if answer is not None and answer is not NotHandled:
                return status_of(answer, command)
        return self.run(command)

    def _handled(self, answer: Future[Any], command: Command) -> Steps:
        """Wait for the handler's own answer to a command, and pass the command on if there is none."""
        status = yield Ask(answer)
        if status is not None and status is not NotHandled:
            return status_of(status, command)
        result = self.run(command)
        return (yield from result) if hasattr(result, "send") else result

    def run(self, command: Command) -> Any:
        """Check one command against the state of the unit and run it; what `Opcode.run` returns."""
        row = command.row
        if row is None:
            if any(code == command.cdb[0] for code, _ in self.table):
                raise InvalidFieldInCdb("there is no such service action", field=(1, 4))
            raise InvalidOpcode
        admit(self.unit, row, command)
        if row.run is None:
            raise InvalidOpcode(f"{row.name}: the handler announces it and does not answer it")
        return row.run(self.unit, command)

    def fail(self, command: Command, error: BaseException) -> None:
        """Give `command` the status and sense that `error` means."""
        self._failures.give(command, error)
        if self._trace:
            self.device.log.log(DEBUG_SCSI_CMD, "%s: %s", describe(command.cdb, self.table), text_of(error))

    def drain(self, then: Callable[[], object]) -> None:
        """Call `then()` when no command is in flight, a copy that another unit has begun included."""
        tasks = self.unit.tasks
        in_flight = list(tasks.active)
        if not in_flight:
            then()
            return
        one_ended = countdown(len(in_flight), lambda: self.drain(then))
        for command in in_flight:
            tasks.watch(command, one_ended)

    def close(self) -> bool:
        """Flush what is cached and close the disk; call it when the unit is idle.

        What belongs to no initiator ends here, when its hook has returned: none may find the disk closed.
        Returns whether all is where it belongs: what failed is in the log.
        """
        done = True
        self._unwatch()
        self._end_carried()
        flush = self.unit.operations.flush
        if flush is not None and not self.unit.read_only:
            try:
                pending = flush()
                if pending is not None:
                    pending.result()
            except BaseException as error:
                self.device.log.error("the last flush failed: %s", text_of(error))
                done = False
        try:
            self.disk.close()
        except (TcmuError, OSError) as error:
            self.device.log.error("closing failed: %s", text_of(error))
            done = False
        return done


def _is_well(hook: Future[Any]) -> bool:
    """Return whether a hook's Future has ended as it should; what is wrong with another one the general path says."""
    try:
        return not hook.cancelled() and hook.exception() is None and hook.result() is None
    except BaseException:
        return False


def _waiting(result: Any) -> Steps:
    """Wait for what a hook returned."""
    yield result


def _nothing() -> None:
    pass
