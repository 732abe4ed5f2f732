"""Engine: takes commands, checks what the standards ask, runs them on a unit, gives status and sense."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any

from tcmu_core.disk.device import Change
from tcmu_core.disk.disk import Disk
from tcmu_core.errors import (
    HardwareError,
    InvalidFieldInCdb,
    InvalidOpcode,
    NotHandled,
    TcmuError,
    UnitAttention,
    text_of,
)
from tcmu_core.log import DEBUG_SCSI_CMD
from tcmu_core.scsi import hot
from tcmu_core.scsi.admission import admit, permit, spans_of, turn_of
from tcmu_core.scsi.alua import Arrangement
from tcmu_core.scsi.attention import (
    ACCESS_STATE_CHANGED,
    CAPACITY_CHANGED,
    INQUIRY_CHANGED,
    MEDIUM_CHANGED,
    MODE_PARAMETERS_CHANGED,
)
from tcmu_core.scsi.command import Command, Initiator, Nexus, TaskAttribute
from tcmu_core.scsi.commands.data import flushed
from tcmu_core.scsi.failures import Failures
from tcmu_core.scsi.following import Followed, Follower
from tcmu_core.scsi.management import Post, TaskManager
from tcmu_core.scsi.opcodes import Direction, Op, Opcode, Table, describe, find
from tcmu_core.scsi.reservations import StateStore
from tcmu_core.scsi.steps import PAUSE, Abort, Ask, OnItsOwn, Shielded, Steps, checked, not_a_result, status_of
from tcmu_core.scsi.table import every_row, table_for
from tcmu_core.scsi.taskset import MEDIUM, countdown
from tcmu_core.scsi.transition import Transition
from tcmu_core.scsi.unit import Unit

_ORDERED = int(TaskAttribute.ORDERED)  # looking a member up costs a tenth of a microsecond, for each command
_MODE_SELECT = bytes([Op.MODE_SELECT_6, 0x10, 0, 0, 0, 0])  # what stands for a change that a person makes
_NOBODY = Initiator("", b"")


class Engine(TaskManager):
    """Runs commands on the unit of an open disk.

    Everything but what a Future's completion triggers runs on the loop's thread; `post` brings that there too.
    """

    def __init__(self, disk: Disk, *, post: Post, store: StateStore | None = None) -> None:
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
        self._carried: dict[Command, Future[Any] | None] = {}  # what goes on on nobody's behalf, and its last hook's
        self._paused: deque[tuple[Command, Steps]] = deque()
        self._started: dict[Command, float] = {}  # monotonic seconds at which `slow` first saw them
        self._trace = False
        self._follower: Follower | None = None
        self._unwatch = store.watch(lambda: post(self._restored)) if store is not None else _nothing
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

    def follow(self, reader: Callable[[Followed], object]) -> None:
        """Tell `reader` of each command that comes from now on, as it ends; no fast path until it is let go."""
        if self._follower is None:
            self._follower = Follower(time.monotonic)
        self._follower.readers.append(reader)
        self.gate()

    def unfollow(self, reader: Callable[[Followed], object]) -> None:
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
        if row.amount is None:
            return row.direction, None
        count = row.blocks(cdb)[1] if row.blocks is not None else 0
        return row.direction, row.amount(cdb, count, self.unit.block_size)

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
        """Wait for what the hook of a fast path returned."""
        self._decode(command)
        return self._first(command, _waiting(result))

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
        """Note which row of the table the CDB is, and the blocks that it names."""
        row = command.row = find(self.table, command.cdb)
        command.lba, command.count = row.blocks(command.cdb) if row is not None and row.blocks is not None else (0, 0)
        return row

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

    # -- commands that take several steps -----------------------------------------------------------------------------

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
            if isinstance(waiting, OnItsOwn):
                self.post(self._carry, Command(command.cdb, [], 0, command.nexus), waiting.steps)
                continue
            if isinstance(waiting, Abort):
                waiting = self._abort_for(command, waiting.commands)
            elif isinstance(waiting, Shielded):
                if waiting.future is None:
                    continue
                self._enter(command)
                tasks.shield(command, True)
                waiting = waiting.future
            elif isinstance(waiting, Ask):
                asked, waiting = True, waiting.future
            waiting = checked(waiting)
            if not waiting.done():
                self._enter(command)
                if command in self._carried:
                    self._carried[command] = waiting
                waiting.add_done_callback(
                    lambda done, asked=asked: self.post(self._resume, command, steps, done, asked)  # type: ignore[misc]
                )
                return False
            future = waiting

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

    def _end(self, command: Command) -> None:
        """A command has ended that did not end at once: give its status, then tell those who waited for its end."""
        command.nexus.tally.count(command)
        watchers = self.unit.tasks.end(command)
        self._started.pop(command, None)
        self.gate()
        command.done(command)
        self._call(watchers)

    def _call(self, callbacks: Iterable[Callable[[], object]]) -> None:
        for callback in callbacks:
            callback()

    def fail(self, command: Command, error: BaseException) -> None:
        """Give `command` the status and sense that `error` means."""
        self._failures.give(command, error)
        if self._trace:
            self.device.log.log(DEBUG_SCSI_CMD, "%s: %s", describe(command.cdb, self.table), text_of(error))

    # -- changes of the device ----------------------------------------------------------------------------------------

    def _notified(self, asc: int, ascq: int, but: Nexus | None) -> None:
        self.post(self._tell, asc, ascq, but)

    def _tell(self, asc: int, ascq: int, but: Nexus | None) -> None:
        if (asc, ascq) in (CAPACITY_CHANGED, MEDIUM_CHANGED):  # the storage has another size, or may have
            self.refresh()
        self.unit.attention(asc, ascq, but=but)

    def arrange(
        self, arrangement: Arrangement, moving: Callable[[Transition], object] = lambda transition: None
    ) -> None:
        """Take other target port groups; `moving(transition)` is called where they have a long way to other states.

        While groups are on their way already, that comes first.
        """
        unit, access = self.unit, self.unit.access
        if access.transition is not None:
            access.transition.add_done_callback(lambda _: self.post(self.arrange, arrangement, moving))
            return
        before = access.arrangement
        if arrangement == before:
            return
        states = access.take(arrangement)
        access.look(unit.nexuses)
        if arrangement.tpgs != before.tpgs:
            unit.version += 1
            unit.attention(*INQUIRY_CHANGED)
        if arrangement.groups != before.groups and not states:
            unit.attention(*ACCESS_STATE_CHANGED)
        transition = Transition(unit, states, settled=self.gate)
        self.gate()
        if not transition.ended.done():
            moving(transition)

    def _restored(self) -> None:
        """Take the reservations that another process has put into the store."""
        try:
            self.unit.tell(self.unit.reservations.reload())
        except OSError as error:
            self.device.log.error("reservations that another process has changed can't be read: %s", text_of(error))
        self.gate()

    def change(self, change: Change) -> Future[None] | None:
        """Have the disk take a change (bytes), and the unit and its nexuses learn of it; raises as `Disk.change`.

        Returns None when it is done. One of the write cache takes its turn, as MODE SELECT does, and what is volatile
        has to become stable first: a Future of that, which fails with what the disk or its flush raise.
        """
        if change.write_cache is None:
            self._take(change)
            return None
        changed: Future[None] = Future()
        command = Command(_MODE_SELECT, [], 0, Nexus(_NOBODY))
        self._decode(command)
        turn = self.unit.tasks.admit(command, (MEDIUM,), alone=True)
        if self._step(command, self._switching(change, turn, changed), None):
            self._end(command)
        if not changed.done():
            return changed
        changed.result()
        return None

    def _switching(self, change: Change, turn: Future[None] | None, changed: Future[None]) -> Steps:
        """Switch the write cache while nothing else is in flight: a write knows at its end whether there is one."""
        try:
            if turn is not None:
                yield turn
            if not change.write_cache and not self.unit.read_only:
                yield Shielded(flushed(self.unit))  # what is volatile; where that fails the write cache stays
            self._take(change)
        except GeneratorExit:
            changed.set_exception(InterruptedError(errno.EINTR, "a reset of an initiator came first: set it again"))
            raise
        except BaseException as error:
            changed.set_exception(error)
        else:
            changed.set_result(None)

    def _take(self, change: Change) -> None:
        device, unit = self.device, self.unit
        size, cached = device.size, unit.modes.write_cache
        self.disk.change(change)
        if change.write_cache is not None:
            unit.modes.write_cache = device.write_cache
            if cached != device.write_cache:
                unit.attention(*MODE_PARAMETERS_CHANGED)
        if device.size != size and not device.removable:  # of another medium its handler has told already
            unit.resized()
        self.refresh()

    def resize(self, size: int) -> None:
        """Take a new size in bytes that the handler has told of; every nexus hears of it."""
        if size != self.device.size or self.unit.blocks != self.device.blocks:
            self.device.size = size
            self.unit.resized()
            self.gate()

    def slow(self, seconds: float, now: float | None = None) -> list[Command]:
        """Return the commands that were in flight `seconds` ago already, each once; look every now and then."""
        now = time.monotonic() if now is None else now
        active = self.unit.tasks.active
        self._started = {command: self._started.get(command, now) for command in active}
        found = [command for command, since in self._started.items() if now - since >= seconds]
        for command in found:
            self._started[command] = float("inf")
        return found

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
        for command, pending in self._carried.items():
            command.aborted = True
            if pending is not None:
                wait((pending,))
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


def _waiting(result: Any) -> Steps:
    """Wait for what a hook returned."""
    yield result


def _nothing() -> None:
    pass
