"""Engine: takes commands, checks what the standards ask, runs them on a unit, gives status and sense."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, Protocol

from tcmu_core.disk.device import Change
from tcmu_core.disk.disk import Disk
from tcmu_core.errors import (
    CommandError,
    HardwareError,
    InvalidFieldInCdb,
    InvalidOpcode,
    NotHandled,
    TcmuError,
    UnitAttention,
    WriteProtected,
    from_oserror,
    text_of,
)
from tcmu_core.log import DEBUG_SCSI_CMD
from tcmu_core.scsi import hot, sense
from tcmu_core.scsi.alua import Arrangement
from tcmu_core.scsi.attention import (
    ACCESS_STATE_CHANGED,
    CAPACITY_CHANGED,
    COMMANDS_CLEARED,
    INQUIRY_CHANGED,
    LUN_RESET,
    MEDIUM_CHANGED,
    establish,
)
from tcmu_core.scsi.command import Command, Initiator, Nexus, Status, TaskAttribute
from tcmu_core.scsi.commands.block import partial
from tcmu_core.scsi.following import Followed, Follower
from tcmu_core.scsi.opcodes import Access, Direction, Op, Opcode, Table, Touches, describe, find
from tcmu_core.scsi.reservations import StateStore
from tcmu_core.scsi.steps import PAUSE, Abort, Ask, OnItsOwn, Shielded, Steps, checked, not_a_result
from tcmu_core.scsi.table import every_row, table_for
from tcmu_core.scsi.taskset import CACHE, EVERYTHING, MEDIUM, REGISTRATIONS, Span, countdown
from tcmu_core.scsi.transition import Transition
from tcmu_core.scsi.unit import Unit

_ORDERED = int(TaskAttribute.ORDERED)  # looking a member up costs a tenth of a microsecond, for each command
_UNKNOWN = Opcode(0x00, "a command that no standard tells of", b"", access=Access.WRITE)
_SCSI_2_LUN = 0xE0 << 32  # bits 7 to 5 of byte 1 of a 6-byte CDB


class Post(Protocol):
    """Calls `fn(*args)` on the loop's thread, soon; may be called from any thread."""

    def __call__(self, fn: Callable[..., object], *args: Any) -> None:
        """Arrange the call."""


class Engine:
    """Runs commands on the unit of an open disk.

    Everything but what a Future's completion triggers runs on the loop's thread; `post` brings that there too.
    """

    def __init__(self, disk: Disk, *, post: Post, store: StateStore | None = None) -> None:
        self.disk = disk
        self.device = disk.device
        self.unit = Unit(disk, store=store)
        self.post = post
        self.table: Table
        self._laws: Table  # of every command that there could be
        self.fast: dict[int, hot.Fast] = {}  # by operation code; empty while each command must be looked at
        self._no_fast: dict[int, hot.Fast] = {}
        self._all_fast: dict[int, hot.Fast] = {}
        self._version = -1  # of the unit, when table and fast paths were made
        self._carried: dict[Command, Future[Any] | None] = {}  # what goes on on nobody's behalf, and its last hook's
        self._paused: deque[tuple[Command, Steps]] = deque()
        self._started: dict[Command, float] = {}  # monotonic seconds at which `slow` first saw them
        self._trace = False
        self._follower: Follower | None = None
        self._reported: set[tuple[str, str, int]] = set()  # exceptions whose traceback was logged already
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
            self._all_fast = hot.fast_paths(unit)
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
            turn = self._admit(command, row)
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

    def _spans(self, command: Command) -> tuple[Span, ...]:
        """Return what a command touches."""
        row = command.row
        if row is None or (row.run is None and row.touches is Touches.NOTHING):
            return (MEDIUM,)  # the handler alone knows
        match row.touches:
            case Touches.BLOCKS:
                return ((command.lba, command.lba + command.count),)
            case Touches.MEDIUM:
                return (MEDIUM,)
            case Touches.REGISTRATIONS:
                return (REGISTRATIONS,)
            case Touches.CACHE:
                return (CACHE,)
        return ()

    def _admit(self, command: Command, row: Opcode | None) -> Future[None] | None:
        """Take a command into the task set where that has to be; None: it may run now (see taskset.py)."""
        tasks = self.unit.tasks
        if row is not None and row.touches is Touches.OWN_WAY:
            return None
        spans, alone = self._spans(command), row is not None and row.alone
        if command.attribute == TaskAttribute.ORDERED:
            spans, alone = (EVERYTHING,), True
        elif row is not None and row.protected and row.touches is Touches.BLOCKS:
            alone = alone or partial(command, self.unit.block_size)
        if not alone and not tasks.contended:
            return None
        return tasks.admit(command, spans, alone=alone, ahead=command.attribute == TaskAttribute.HEAD_OF_QUEUE)

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
                self.admit(row, command)
            else:
                self._permit(command)
            answer: Any = handle(command)
            if isinstance(answer, Future):
                return self._handled(answer, command)
            if answer is not None and answer is not NotHandled:
                return _status(answer, command)
        return self.run(command)

    def _permit(self, command: Command) -> None:
        """Raise what a port's state, a reservation, or a person who said read-only says against a command.

        That is before a handler sees it.

        A command that is no line of the table, since the disk lacks an operation, is judged by its line all the same;
        one that nobody knows may change anything.
        """
        unit = self.unit
        row = command.row or find(self._laws, command.cdb) or _UNKNOWN
        if unit.access.closed:
            unit.access.check(command.nexus, row)
        if unit.reservations.active:
            unit.reservations.check(command.nexus, row, command.cdb)
        if row.protected and (self.disk.spec.read_only or unit.modes.software_write_protect):
            raise WriteProtected

    def _handled(self, answer: Future[Any], command: Command) -> Steps:
        """Wait for the handler's own answer to a command, and pass the command on if there is none."""
        status = yield Ask(answer)
        if status is not None and status is not NotHandled:
            return _status(status, command)
        result = self.run(command)
        return (yield from result) if hasattr(result, "send") else result

    def run(self, command: Command) -> Any:
        """Check one command against the state of the unit and run it; what `Opcode.run` returns."""
        row = command.row
        if row is None:
            if any(code == command.cdb[0] for code, _ in self.table):
                raise InvalidFieldInCdb("there is no such service action", field=(1, 4))
            raise InvalidOpcode
        self.admit(row, command)
        if row.run is None:
            raise InvalidOpcode(f"{row.name}: the handler announces it and does not answer it")
        return row.run(self.unit, command)

    def admit(self, row: Opcode, command: Command) -> None:
        """Raise what its port's state, the CDB's reserved bits, a reservation, or the unit say against a command."""
        cdb, unit = command.cdb, self.unit
        if unit.access.closed:
            unit.access.check(command.nexus, row)
        excess = int.from_bytes(cdb[: len(row.usage)], "big") & ~int.from_bytes(row.usage, "big")
        if excess and row.code == Op.INQUIRY:
            # Linux finds a unit's standard by an INQUIRY of SCSI-2, which has the LUN in byte 1 (SCSI-2 7.2.2).
            excess &= ~_SCSI_2_LUN
        if excess:
            bit = excess.bit_length() - 1  # the highest reserved bit that is set, counted from the CDB's end
            raise InvalidFieldInCdb("a reserved bit is set", field=(len(row.usage) - 1 - bit // 8, bit % 8))
        unit.reservations.check(command.nexus, row, cdb)
        if row.ready:
            unit.must_be_ready()
        if row.protected and unit.write_protected:
            raise WriteProtected

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
            self.unit.tasks.enter(command, self._spans(command))
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

    # -- errors -------------------------------------------------------------------------------------------------------

    def fail(self, command: Command, error: BaseException) -> None:
        """Give `command` the status and sense that `error` means, and log what is nobody's request.

        Whatever a hook raises is this command's error alone: SystemExit and its like end no process here, and neither
        does an exception that is itself broken: an `asc` of two bytes, an errno that is a list.
        """
        self.disk.end_child(error)
        command.sense = b""
        command.transferred = 0
        try:
            error = self._meaning(command, error)
            self._answer(command, error)
        except BaseException as broken:
            self._report(command, broken)
            self._answer(command, HardwareError(text_of(broken)))
        if self._trace:
            self.device.log.log(DEBUG_SCSI_CMD, "%s: %s", describe(command.cdb, self.table), text_of(error))

    def _meaning(self, command: Command, error: BaseException) -> CommandError:
        """Return what an exception means to the initiator; log what the owner of the storage wants to read."""
        if isinstance(error, NotHandled):
            error = InvalidOpcode()
        elif isinstance(error, OSError):
            row = find(self.table, command.cdb)
            error = from_oserror(error, writing=row is not None and row.access is Access.WRITE)
            self._log_failure(command, error)
        elif not isinstance(error, CommandError):
            self._report(command, error)
            error = HardwareError(text_of(error))
        elif error.of_storage:
            self._log_failure(command, error)
        assert isinstance(error, CommandError)
        return error

    def _answer(self, command: Command, error: CommandError) -> None:
        """Give the status and the sense data that an error has; raises for one that has none."""
        status = Status(error.status)
        if status in (Status.GOOD, Status.CONDITION_MET):
            raise ValueError(f"{status.name} is no error")
        if status == Status.CHECK_CONDITION:
            command.sense = sense.encode(error, descriptor=self.unit.modes.descriptor_sense)
        command.status = status

    def _log_failure(self, command: Command, error: BaseException) -> None:
        self.device.log.error("%s failed: %s", describe(command.cdb, self.table), text_of(error))

    def _report(self, command: Command, error: BaseException) -> None:
        """Log an exception that is no SCSI error: with its traceback the first time, in one line from then on."""
        frames = traceback.extract_tb(error.__traceback__)
        place = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
        key = (type(error).__name__, *place)
        what = describe(command.cdb, self.table)
        if key in self._reported:
            self.device.log.error("%s failed again: %s", what, text_of(error))
            return
        self._reported.add(key)
        self.device.log.error("%s failed: %s", what, text_of(error), exc_info=error)

    # -- nexuses and task management (SAM-5 clauses 6 and 7) ----------------------------------------------------------

    def attach(self, initiator: Initiator) -> Nexus:
        """Make a new I_T_L nexus."""
        nexus = self.unit.attach(initiator)
        self.gate()
        return nexus

    def detach(self, nexus: Nexus, then: Callable[[], object] | None = None) -> None:
        """End an I_T_L nexus: abort its commands, drop its RESERVE(6) and its PREVENT (SAM-5 6.3.4).

        It is gone at once; its blocks are fenced until its commands have ended, of which `then()` tells.
        """
        self._abort_all(self._of(nexus), then or _nothing, by=nexus)
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
            tasks.fence(command, self._may_still_write(command))
        self.gate()

    def _may_still_write(self, command: Command) -> tuple[Span, ...] | None:
        row = find(self.table, command.cdb)
        if row is not None and row.touches is Touches.OWN_WAY:
            return None
        return self._spans(command) if row is None or row.access is not Access.READ else ()

    def _ended(self, command: Command, watchers: list[Callable[[], object]]) -> None:
        command.nexus.tally.count(command)
        command.done(command)
        self._call(watchers)

    def _of(self, nexus: Nexus) -> list[Command]:
        return [command for command in self.unit.tasks.active if command.nexus is nexus]

    def abort_task_set(self, nexus: Nexus, then: Callable[[], object]) -> None:
        """ABORT TASK SET: abort every command of this nexus."""
        self._abort_all(self._of(nexus), then, by=nexus)

    def clear_task_set(self, nexus: Nexus | None, then: Callable[[], object]) -> None:
        """CLEAR TASK SET: abort every command; other nexuses hear of it, unless they get a status (SAM-5 7.5)."""
        unit = self.unit
        told = {command.nexus for command in unit.tasks.active if command.nexus is not nexus}
        self._clear_others(nexus)
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

    def _clear_others(self, nexus: Nexus | None) -> None:
        """Have other transports drop the commands of this unit whose data has not come yet."""
        for other in self.unit.nexuses:
            if other is not nexus and other.on_clear is not None:
                other.on_clear()

    def _abort_all(self, commands: list[Command], then: Callable[[], object], *, by: Nexus | None) -> None:
        one_ended = countdown(len(commands), then)
        for command in commands:
            self.abort(command, one_ended, by=by)

    def _abort_for(self, command: Command, victims: list[Command]) -> Future[None]:
        """Abort others on behalf of `command`; return a future of when all of them have ended."""
        ended: Future[None] = Future()
        self._abort_all(victims, lambda: ended.set_result(None), by=command.nexus)
        return ended

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

    def change(self, change: Change) -> None:
        """Have the disk take a change (bytes), and the unit and its nexuses learn of it; raises as `Disk.change`."""
        device, unit = self.device, self.unit
        size = device.size
        self.disk.change(change)
        if change.write_cache is not None:
            unit.modes.write_cache = device.write_cache
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


def _status(answer: Any, command: Command) -> Status:
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


def _nothing() -> None:
    pass
