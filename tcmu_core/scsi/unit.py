"""LogicalUnit: takes commands, checks what the standards ask, runs them against the backend, gives status and sense."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol

from tcmu_core.errors import (
    CommandError,
    HardwareError,
    InvalidFieldInCdb,
    InvalidOpcode,
    MediumNotPresent,
    NotHandled,
    NotReadyStopped,
    TaskAborted,
    UnitAttention,
    WriteProtected,
    from_oserror,
)
from tcmu_core.log import DEBUG_SCSI_CMD
from tcmu_core.scsi import hot, sense
from tcmu_core.scsi.attention import CAPACITY_CHANGED, COMMANDS_CLEARED, LUN_RESET, POWER_ON, establish
from tcmu_core.scsi.command import Command, Initiator, Nexus, Status, TaskAttribute
from tcmu_core.scsi.copy import CopyResults
from tcmu_core.scsi.decode import describe, span_of
from tcmu_core.scsi.identity import Identity
from tcmu_core.scsi.mode import ModePages
from tcmu_core.scsi.opcodes import Access, Op, Opcode
from tcmu_core.scsi.reservations import AptplStore, Reservations
from tcmu_core.scsi.steps import PAUSE, Steps, checked, follow
from tcmu_core.scsi.table import table_for
from tcmu_core.scsi.tasks import EVERYTHING, TaskSet, countdown

if TYPE_CHECKING:
    from tcmu_core.backend import Backend
    from tcmu_core.scsi.background import Background
    from tcmu_core.scsi.target import Target

_ORDERED = int(TaskAttribute.ORDERED)  # looking a member up costs a tenth of a microsecond, for each command
_SCSI_2_LUN = 0xE0 << 32  # bits 7 to 5 of byte 1 of a 6-byte CDB


class Post(Protocol):
    """Calls `fn(*args)` on the loop's thread, soon; may be called from any thread."""

    def __call__(self, fn: Callable[..., object], *args: Any) -> None:
        """Arrange the call."""


class LogicalUnit:
    """A SCSI logical unit on top of an open backend.

    Everything but what a Future's completion triggers runs on the loop's thread; `post` brings that there too.
    """

    def __init__(self, backend: Backend, *, post: Post, aptpl: AptplStore | None = None) -> None:
        self.backend = backend
        self.device = backend.device
        self.post = post
        self.nexuses: list[Nexus] = []
        self.tasks = TaskSet()
        self.identity = Identity(self.device)
        self.modes = ModePages(self.device)
        self.reservations = Reservations(self, aptpl)
        self.copies = CopyResults()
        self.target: Target | None = None
        self.lun = 0
        self.started = True
        self.loaded = True  # START STOP UNIT ejects the medium of a removable disk, and loads it again
        self.background: Background | None = None  # a sanitize or format operation that outlives its command
        self.prevented: set[Nexus] = set()
        self._carried: Command | None = None
        self._trace = False
        self._reported: set[tuple[str, str, int]] = set()  # exceptions whose traceback was logged already
        self.fast: dict[int, hot.Fast] = {}  # by operation code; empty while each command must be looked at
        self._no_fast: dict[int, hot.Fast] = {}
        self._all_fast: dict[int, hot.Fast] = {}
        self.device.changed = self._changed
        self.device.prevented = lambda: bool(self.prevented)
        self.refresh()

    # -- what is derived from the device ------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Derive everything anew after the device, a mode page, a reservation or the state of the unit changed."""
        device = self.device
        self.block_size = device.block_size
        self.blocks = device.blocks
        self.read_only = device.read_only
        self.max_blocks = (device.max_transfer_length or hot.DEFAULT_MAX_TRANSFER) // device.block_size
        self.table = table_for(self)
        self.write_cache = self.modes.write_cache and self.backend.flush is not None
        self._all_fast = hot.fast_paths(self)
        self.gate()

    def gate(self) -> None:
        """Open the fast path while nothing stands in its way, and close it otherwise."""
        clear = (
            self.started
            and self.loaded
            and not self._trace
            and self.background is None
            and self.backend.handle_cmd is None
            and not self.reservations.active
            and not self.tasks.contended
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

    @property
    def idle(self) -> bool:
        """Whether no command is in flight."""
        return not self.tasks.active

    @property
    def write_protected(self) -> bool:
        """Whether writes are refused: a read-only device, or the SWP bit."""
        return self.read_only or self.modes.software_write_protect

    # -- nexuses and unit attentions ----------------------------------------------------------------------------------

    def attach(self, initiator: Initiator) -> Nexus:
        """Make a new I_T_L nexus; its first command gets POWER ON, RESET, OR BUS DEVICE RESET OCCURRED."""
        nexus = Nexus(initiator)
        nexus.attentions.append(POWER_ON)
        self.nexuses.append(nexus)
        return nexus

    def detach(self, nexus: Nexus) -> None:
        """End an I_T_L nexus: abort its commands, drop its RESERVE(6) and its PREVENT (SAM-5 6.3.4)."""
        for command in [command for command in self.tasks.active if command.nexus is nexus]:
            self.abort(command, lambda: None)
        if nexus in self.nexuses:
            self.nexuses.remove(nexus)
        self.prevented.discard(nexus)
        self.reservations.nexus_lost(nexus)
        self.gate()

    def twin(self, nexus: Nexus) -> Nexus:
        """Return the nexus of the same initiator port with this unit, for a nexus with a unit beside it."""
        return next((own for own in self.nexuses if own.initiator == nexus.initiator), nexus)

    def attention(self, asc: int, ascq: int, *, but: Nexus | None = None) -> None:
        """Establish a unit attention for every nexus but one."""
        for nexus in self.nexuses:
            if nexus is not but:
                establish(nexus, (asc, ascq))

    def _changed(self, asc: int, ascq: int, but: Nexus | None) -> None:
        self.post(functools.partial(self._tell, asc, ascq, but))

    def _tell(self, asc: int, ascq: int, but: Nexus | None) -> None:
        if (asc, ascq) == CAPACITY_CHANGED:  # the handler has noticed that its storage has another size
            self.refresh()
        self.attention(asc, ascq, but=but)

    # -- running commands ---------------------------------------------------------------------------------------------

    def execute(self, command: Command) -> bool:
        """Run a command. True: it has ended. False: `command.done(command)` will be called on the loop's thread."""
        try:
            fast = self.fast.get(command.cdb[0])
            if fast is not None and not command.nexus.attentions and command.attribute < _ORDERED:
                result = fast(command.cdb, 0, command.length, command.buffers)
                if result is not NotHandled:
                    command.transferred = command.wanted = command.length
                    return result is None or self._begin(command, result)
            result = self._dispatch(command)
            if result is None:
                return True
            if isinstance(result, Status):
                command.status = result
                return True
            return self._begin(command, result)
        except Exception as error:
            self.fail(command, error)
            return True

    def proceed(self, command: Command, result: Any) -> bool:
        """Go on with a command whose fast path returned or raised `result`; what `execute` returns."""
        if result is NotHandled:
            return self.execute(command)
        if isinstance(result, Exception):
            self.fail(command, result)
            return True
        command.transferred = command.wanted = command.length
        try:
            return self._begin(command, result)
        except Exception as error:
            self.fail(command, error)
            return True

    def run(self, row: Opcode, command: Command) -> Any:
        """Check one command against the state of the unit and run it; what `Opcode.run` returns."""
        self.admit(row, command)
        if row.run is None:
            raise InvalidOpcode(f"{row.name}: the handler announces it and does not answer it")
        return row.run(self, command)

    def admit(self, row: Opcode, command: Command) -> None:
        """Raise what the CDB's reserved bits, a reservation, or the unit's state say against a command."""
        cdb = command.cdb
        excess = int.from_bytes(cdb[: len(row.usage)], "big") & ~int.from_bytes(row.usage, "big")
        if excess and row.code == Op.INQUIRY:
            # Linux finds a unit's standard by an INQUIRY of SCSI-2, which has the LUN in byte 1 (SCSI-2 7.2.2).
            excess &= ~_SCSI_2_LUN
        if excess:
            bit = excess.bit_length() - 1  # the highest reserved bit that is set, counted from the CDB's end
            raise InvalidFieldInCdb("a reserved bit is set", field=(len(row.usage) - 1 - bit // 8, bit % 8))
        self.reservations.check(command.nexus, row.access, cdb)
        if row.ready:
            if self.background is not None:
                raise self.background.not_ready()
            if not self.loaded:
                raise MediumNotPresent
            if not self.started:
                raise NotReadyStopped
        if row.protected and self.write_protected:
            raise WriteProtected

    def find(self, cdb: bytes) -> Opcode:
        """Return the table's row for a CDB; raises InvalidOpcode, or InvalidFieldInCdb for the service action."""
        row = self.table.get((cdb[0], None))
        if row is not None:
            return row
        row = self.table.get((cdb[0], cdb[1] & 0x1F))
        if row is not None:
            return row
        if any(code == cdb[0] for code, _ in self.table):
            raise InvalidFieldInCdb("there is no such service action", field=(1, 4))
        raise InvalidOpcode

    def _dispatch(self, command: Command) -> Any:
        if self._trace:
            self.device.log.log(DEBUG_SCSI_CMD, "%s", describe(command.cdb, self.table))
        if command.attribute == TaskAttribute.ORDERED and self.tasks.active:
            return self._in_order(command)
        if self.tasks.contended:
            turn = self.tasks.admit(command, span_of(command.cdb))
            if turn is not None:
                return self._after(turn, command)
        return self._attended(command)

    def _after(self, turn: Future[None], command: Command) -> Steps:
        yield turn
        return (yield from follow(self._attended(command)))

    def _in_order(self, command: Command) -> Steps:
        yield self.tasks.lock(command, EVERYTHING)
        return (yield from follow(self._attended(command)))

    def _attended(self, command: Command) -> Any:
        """Report a unit attention if one waits, let the handler look, then run the command."""
        attentions = command.nexus.attentions
        cdb = command.cdb
        if attentions:
            row = self.table.get((cdb[0], None)) or self.table.get((cdb[0], cdb[1] & 0x1F))
            if row is None or row.attention:
                raise UnitAttention.of(*attentions.popleft())
        if self.backend.handle_cmd is not None:
            row = self.table.get((cdb[0], None)) or self.table.get((cdb[0], cdb[1] & 0x1F))
            if row is not None and row.run is None:  # the handler answers it; what stands against it is ours to say
                self.admit(row, command)
            answer: Any = self.backend.handle_cmd(command)
            if isinstance(answer, Future):
                return self._handled(answer, command)
            if answer is not None and answer is not NotHandled:
                return Status(answer)
        return self.run(self.find(cdb), command)

    def _handled(self, answer: Future[Any], command: Command) -> Steps:
        """Wait for the handler's own answer to a command, and pass the command on if there is none."""
        status = yield answer
        if status is not None and status is not NotHandled:
            return Status(status)
        return (yield from follow(self.run(self.find(command.cdb), command)))

    # -- commands that take several steps -----------------------------------------------------------------------------

    def _begin(self, command: Command, result: Any) -> bool:
        """Follow a Future or a generator to its end; True when that comes at once."""
        self.tasks.enter(command, span_of(command.cdb))
        if self._step(command, follow(result), None):
            self._end(command)
            return True
        return False

    def _step(self, command: Command, steps: Steps, future: Future[Any] | None) -> bool:
        """Run `steps` until it waits for a Future or ends; True when it has ended, with status and sense set."""
        while True:
            if command.aborted:
                steps.close()
                return True
            try:
                if future is None:
                    waiting = steps.send(None)
                elif future.cancelled():
                    waiting = steps.throw(TaskAborted())
                else:
                    error = future.exception()
                    waiting = steps.throw(error) if error is not None else steps.send(future.result())
            except StopIteration as end:
                if isinstance(end.value, Status):
                    command.status = end.value
                return True
            except Exception as error:
                self.fail(command, error)
                return True
            if waiting is None:
                future = None
                continue
            waiting = checked(waiting)
            if waiting is PAUSE:
                self.gate()
                self.post(self._resume, command, steps, None)
                return False
            if not waiting.done():
                self.gate()
                waiting.add_done_callback(lambda done: self.post(self._resume, command, steps, done))
                return False
            future = waiting

    def _resume(self, command: Command, steps: Steps, future: Future[Any] | None) -> None:
        if command is self._carried:
            self._step(command, steps, future)
            self.gate()
        elif command not in self.tasks.active:  # it was aborted while it waited
            steps.close()
        elif self._step(command, steps, future):
            self._end(command)
            command.done(command)
            self.tasks.ended(command)

    def carry(self, command: Command, steps: Steps) -> None:
        """Run steps that belong to no initiator's command any more: a background operation (no reset aborts it)."""
        self._carried = command
        if not self._step(command, steps, None):
            self.gate()

    def _end(self, command: Command) -> None:
        self.tasks.end(command)
        self.gate()

    def fail(self, command: Command, error: BaseException) -> None:
        """Give `command` the status and sense that `error` means, and log what is nobody's request."""
        if isinstance(error, OSError):
            row = self.table.get((command.cdb[0], None))
            self.device.log.error("%s failed: %s", describe(command.cdb, self.table), error)
            error = from_oserror(error, writing=row is not None and row.access is Access.WRITE)
        elif isinstance(error, NotHandled):
            error = InvalidOpcode()
        elif isinstance(error, CancelledError):
            error = TaskAborted()
        elif not isinstance(error, CommandError):
            self._report(command, error)
            error = HardwareError(str(error))
        assert isinstance(error, CommandError)
        command.status = error.status
        command.transferred = 0
        if error.status == Status.CHECK_CONDITION:
            command.sense = sense.encode(error, descriptor=self.modes.descriptor_sense)
        if self._trace:
            self.device.log.log(DEBUG_SCSI_CMD, "%s: %s", describe(command.cdb, self.table), error)

    def _report(self, command: Command, error: BaseException) -> None:
        """Log an exception that is no SCSI error: with its traceback the first time, in one line from then on."""
        frames = traceback.extract_tb(error.__traceback__)
        place = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
        key = (type(error).__name__, *place)
        what = describe(command.cdb, self.table)
        if key in self._reported:
            self.device.log.error("%s failed again: %r", what, error)
            return
        self._reported.add(key)
        self.device.log.error("%s failed: %r", what, error, exc_info=error)

    # -- task management (SAM-5 clause 7) -----------------------------------------------------------------------------

    def abort(self, command: Command, then: Callable[[], object]) -> None:
        """ABORT TASK: `then()` is called when the command has ended; it gets no status."""
        command.aborted = True
        self.tasks.watch(command, then)
        if self.tasks.is_waiting(command):  # no hook has its buffers: nothing to wait for
            self._end(command)
            self.post(self._ended, command)

    def _ended(self, command: Command) -> None:
        command.done(command)
        self.tasks.ended(command)

    def abort_task_set(self, nexus: Nexus, then: Callable[[], object]) -> None:
        """ABORT TASK SET: abort every command of this nexus."""
        self._abort_all([command for command in self.tasks.active if command.nexus is nexus], then)

    def clear_task_set(self, nexus: Nexus | None, then: Callable[[], object]) -> None:
        """CLEAR TASK SET: abort every command; other nexuses hear of it (SAM-5 7.5)."""
        told = {command.nexus for command in self.tasks.active if command.nexus is not nexus}
        for other in self.nexuses:
            if other is not nexus and other.on_clear is not None:
                other.on_clear()
        for other in self.nexuses:
            if other in told:
                establish(other, COMMANDS_CLEARED)
        self._abort_all(list(self.tasks.active), then)

    def reset(self, nexus: Nexus | None, then: Callable[[], object]) -> None:
        """LOGICAL UNIT RESET (SAM-5 6.3.3): abort everything, release RESERVE(6), start the unit, tell every nexus."""
        for other in self.nexuses:
            if other is not nexus and other.on_clear is not None:
                other.on_clear()
        self._abort_all(list(self.tasks.active), then)
        self.reservations.release_legacy()
        self.started = True
        self.prevented.clear()
        self.modes.reset()
        self.attention(*LUN_RESET)
        self.refresh()

    def _abort_all(self, commands: list[Command], then: Callable[[], object]) -> None:
        one_ended = countdown(len(commands), then)
        for command in commands:
            self.abort(command, one_ended)

    # -- changes of the device ----------------------------------------------------------------------------------------

    def resize(self, size: int) -> None:
        """Give the unit a new size in bytes, after the handler took it; every nexus hears of it."""
        if size == self.device.size and self.blocks == self.device.blocks:
            return
        self.device.size = size
        self.refresh()
        self.attention(*CAPACITY_CHANGED)

    def close(self) -> None:
        """Flush what is cached and close the backend; call it when the unit is idle."""
        if self._carried is not None:
            self._carried.aborted = True
        flush = self.backend.flush
        if flush is not None and not self.read_only:
            try:
                pending = flush()
                if pending is not None:
                    pending.result()
            except Exception as error:
                self.device.log.error("the last flush failed: %s", error)
        self.backend.close()
