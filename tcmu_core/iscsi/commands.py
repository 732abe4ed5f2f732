"""SCSI commands of a session: from the PDU to the engine, and their way back (RFC 7143 11.3)."""

from __future__ import annotations

from functools import partial

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import ATTRIBUTE, BHS, COMMAND_READ, COMMAND_WRITE, FINAL, RESERVED_TAG, RejectReason
from tcmu_core.iscsi.errors import PduError
from tcmu_core.iscsi.pending import Task, lay_out
from tcmu_core.iscsi.responses import finish
from tcmu_core.iscsi.session import Session, State
from tcmu_core.iscsi.transfer import Transfer
from tcmu_core.iscsi.writes import Writes
from tcmu_core.scsi import sense
from tcmu_core.scsi.command import Command, Status
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.lun import parse_lun
from tcmu_core.scsi.opcodes import Direction

MOST_SEGMENTS = 2048  # of one command: enough for 16 MiB in the segments that nobody has to ask for (RFC 7143 13.12)
NOWHERE = 131328  # bytes: what a LUN that there is not answers at most, REPORT LUNS of every one

_PUMPING, _LEAVING, _CLOSED = State.PUMPING, State.LEAVING, State.CLOSED  # looking a member up takes longer


class Commands:
    """The commands of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.writes = Writes(session, self._run_write)

    # -- on the way in ------------------------------------------------------------------------------------------------

    def begin(self, pdu: p.ScsiCommand) -> None:
        """Take a SCSI Command; `room_for` has found room for what it reads.

        Raises:
            PduError: it can't be one.
        """
        session = self._session
        if session.attachment is None:
            raise PduError("no SCSI in a discovery session")
        if pdu.itt == RESERVED_TAG:
            raise PduError("a command needs a tag", RejectReason.INVALID_PDU_FIELD)
        if pdu.itt in session.tasks or pdu.itt in session.transfers:
            raise PduError("this tag is in use", RejectReason.TASK_IN_PROGRESS)
        extra = p.parse_ahs(pdu.ahs)
        cdb = pdu.cdb + extra.cdb
        if pdu.flags & COMMAND_WRITE:
            # No more is asked for than the CDB can move; what comes unasked is the initiator's to choose.
            moved = self._moved(Direction.OUT, pdu.lun, cdb, pdu.expected_length)
            length = min(pdu.expected_length, max(moved, session.parameters.first_burst))
            self.writes.begin(Transfer(session.account, pdu, cdb, length, extra.read_length), pdu)
            return
        if pdu.data or not pdu.flags & FINAL:
            raise PduError("write data for a command that does not write", RejectReason.INVALID_PDU_FIELD)
        self._read(pdu, cdb, self._read_length(pdu))

    def must_wait(self, pdu: p.ScsiCommand) -> bool:
        """Return whether a read has to wait, because there is no room in the outbox for its Data-In."""
        session = self._session
        length = self._read_length(pdu)
        return length > 0 and not session.outbox.make_room(self._room(length)) and session.must_wait()

    def _read_length(self, pdu: p.ScsiCommand) -> int:
        """Return how many bytes of Data-In a command may have."""
        if not pdu.flags & COMMAND_READ or pdu.flags & COMMAND_WRITE:
            return 0
        return self._moved(Direction.IN, pdu.lun, pdu.cdb, pdu.expected_length)

    def _moved(self, way: Direction, lun: bytes, cdb: bytes, expected: int) -> int:
        """Return how many bytes a command can move that is sent with its data going this way.

        An initiator that sends a write as a read must not have memory of ours written to its disk, nor one that sends
        a read as a write be told GOOD for data that it never got: such a command runs without data.
        """
        engine = self._engine(lun)
        most = self._session.limits.transfer
        if way is Direction.IN:
            most = min(most, MOST_SEGMENTS * self._session.parameters.max_segment)
        if engine is None:
            return min(expected, NOWHERE if way is Direction.IN else most)
        direction, limit = engine.expects(cdb)
        if direction is not way and direction is not Direction.ANY:
            return 0
        return min(expected, most if limit is None else min(limit, most))

    def _is_handlers_own(self, lun: bytes, cdb: bytes) -> bool:
        """Return whether the handler alone knows what a command does with its data."""
        engine = self._engine(lun)
        if engine is None or engine.unit.operations.handle_cmd is None:
            return False
        return engine.expects(cdb)[0] is Direction.ANY

    def _engine(self, lun: bytes) -> Engine | None:
        """Return the unit of a LUN, None where there is none."""
        attachment = self._session.attachment
        number = parse_lun(lun)
        return attachment.target.luns.get(number) if attachment is not None and number is not None else None

    def _room(self, length: int) -> int:
        """Return how many bytes of outbox Data-In of `length` bytes takes at most."""
        parameters = self._session.parameters
        segments = length // parameters.max_segment + length // parameters.max_burst + 2
        return length + segments * (BHS + 12)

    def _lay_out(self, at: int, length: int) -> tuple[list[tuple[int, int, int]], int]:
        parameters, framing = self._session.parameters, self._session.framing
        return lay_out(
            at, length, parameters.max_segment, parameters.max_burst, framing.header_digest, framing.data_digest
        )

    def _read(self, pdu: p.ScsiCommand, cdb: bytes, length: int) -> None:
        session = self._session
        outbox = session.outbox
        if length and not outbox.make_room(self._room(length)):  # and nothing of its own to wait for
            session.economize()
            command = self._command(cdb, [], 0, pdu.lun, pdu.itt, pdu.flags)
            command.status = Status.BUSY
            command.nexus.tally.count(command)
            finish(session, Task(command, pdu.itt, pdu.lun, pdu.expected_length, True, []))
            return
        segments, end = self._lay_out(outbox.cursor, length)
        memory = outbox.memory
        buffers = [memory.view[data : data + count] for _at, data, count in segments]
        if self._is_handlers_own(pdu.lun, cdb):
            for buffer in buffers:  # what an earlier answer has left there is nobody's to read, or to write to a disk
                buffer[:] = bytes(len(buffer))
        command = self._command(cdb, buffers, length, pdu.lun, pdu.itt, pdu.flags)
        task = Task(command, pdu.itt, pdu.lun, pdu.expected_length, True, segments, memory)
        if self._execute(command, pdu.lun):
            finish(session, task)
            return
        if segments:
            memory.pins += 1
            outbox.skip(end)
        else:
            task.memory = None
        self._pend(task)

    def _run_write(self, transfer: Transfer) -> None:
        """Run a write whose data is complete, or answer for one that has failed before that."""
        buffers, length = transfer.pieces, transfer.received
        if not self._moved(Direction.OUT, transfer.lun, transfer.cdb, 1):
            buffers, length = [], 0
        command = self._command(transfer.cdb, buffers, length, transfer.lun, transfer.itt, transfer.flags)
        task = Task(command, transfer.itt, transfer.lun, transfer.expected_length, False, [])
        task.exp_data_sn = transfer.r2t_sn
        task.bidi = transfer.bidi
        if transfer.failed is not None:
            command.status = transfer.failed.status
            if command.status == Status.CHECK_CONDITION:
                engine = self._engine(transfer.lun)
                descriptor = engine is not None and engine.unit.modes.descriptor_sense
                command.sense = sense.encode(transfer.failed, descriptor=descriptor)
            command.nexus.tally.count(command)
        elif not self._execute(command, transfer.lun):
            task.pins, transfer.pins = transfer.pins, []
            transfer.drop()
            self._pend(task)
            return
        finish(self._session, task)
        command.buffers = []
        transfer.drop()

    def _command(self, cdb: bytes, buffers: list[memoryview], length: int, lun: bytes, itt: int, flags: int) -> Command:
        attachment = self._session.attachment
        assert attachment is not None
        number = parse_lun(lun)
        found = attachment.it.luns.get(number) if number is not None else None
        nexus = found[1] if found is not None else attachment.it.nowhere
        return Command(cdb, buffers, length, nexus, self.done, itt, flags & ATTRIBUTE)

    def _execute(self, command: Command, lun: bytes) -> bool:
        attachment = self._session.attachment
        assert attachment is not None
        execute = partial(attachment.it.execute, parse_lun(lun))
        sampler = self._session.sampler
        return sampler.run(execute, command) if sampler.on else execute(command)

    def _pend(self, task: Task) -> None:
        task.command.context = task
        self._session.tasks[task.itt] = task

    # -- on the way out -----------------------------------------------------------------------------------------------

    def done(self, command: Command) -> None:
        """A command has ended that did not end at once."""
        session = self._session
        if session.sampler.pending:
            session.sampler.done(command)
        if session.state is _PUMPING or session.state is _LEAVING:
            session.finished.append(command.context)
            return
        self.complete(command.context)
        outbox = session.outbox
        if outbox.cursor != outbox.run:
            outbox.close_run()
        if session.sampler.ended:
            session.stamp()
        session.notify()

    def complete(self, task: Task) -> None:
        """Forget a command that has ended, and answer for it unless it was aborted."""
        session, command = self._session, task.command
        if session.tasks.get(task.itt) is task:
            del session.tasks[task.itt]
        session.blocked = False
        if session.state is not _CLOSED:
            if command.aborted and command.silent:
                session.widen(1)
            else:
                finish(session, task, pending=True)
        task.unpin()
        command.context = None  # no circle keeps its buffers from being free at once
        if self.writes.waiting:
            self.writes.ask_again()
