"""SCSI commands of a session: from the PDU to the engine, and their way back (RFC 7143 11.3)."""

from __future__ import annotations

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import ATTRIBUTE, COMMAND_READ, COMMAND_WRITE, FINAL, RESERVED_TAG, RejectReason
from tcmu_core.iscsi.direction import DIRECTION, IN, OUT
from tcmu_core.iscsi.errors import PduError
from tcmu_core.iscsi.pending import Task, lay_out
from tcmu_core.iscsi.responses import finish
from tcmu_core.iscsi.session import Session, State
from tcmu_core.iscsi.transfer import Transfer
from tcmu_core.iscsi.writes import Writes
from tcmu_core.scsi import sense
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.lun import parse_lun


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
        length = min(pdu.expected_length, session.limits.transfer)
        if pdu.flags & COMMAND_WRITE:
            self.writes.begin(Transfer(pdu, cdb, length, extra.read_length), pdu)
            return
        if pdu.data or not pdu.flags & FINAL:
            raise PduError("write data for a command that does not write", RejectReason.INVALID_PDU_FIELD)
        if not pdu.flags & COMMAND_READ or DIRECTION[cdb[0]] == OUT:
            length = 0
        self._read(pdu, cdb, length)

    def room_for(self, pdu: p.ScsiCommand, *, force: bool = False) -> bool:
        """Have room in the outbox for all the Data-In that a read may need."""
        session = self._session
        _segments, end = self._lay_out(0, min(pdu.expected_length, session.limits.transfer))
        return session.outbox.make_room(end, force=force)

    def _lay_out(self, at: int, length: int) -> tuple[list[tuple[int, int, int]], int]:
        parameters, framing = self._session.parameters, self._session.framing
        return lay_out(
            at, length, parameters.max_segment, parameters.max_burst, framing.header_digest, framing.data_digest
        )

    def _read(self, pdu: p.ScsiCommand, cdb: bytes, length: int) -> None:
        session = self._session
        outbox = session.outbox
        segments, end = self._lay_out(outbox.cursor, length)
        memory = outbox.memory
        buffers = [memory.view[data : data + count] for _at, data, count in segments]
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
        if DIRECTION[transfer.cdb[0]] == IN:
            buffers, length = [], 0
        command = self._command(transfer.cdb, buffers, length, transfer.lun, transfer.itt, transfer.flags)
        task = Task(command, transfer.itt, transfer.lun, transfer.expected_length, False, [])
        task.exp_data_sn = transfer.r2t_sn
        task.bidi = transfer.bidi
        if transfer.failed is not None:
            command.status = transfer.failed.status
            command.sense = sense.encode(transfer.failed)
        elif not self._execute(command, transfer.lun):
            task.pins = list(transfer.pins)
            self._pend(task)
            return
        transfer.unpin()
        finish(self._session, task)

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
        return attachment.it.execute(parse_lun(lun), command)

    def _pend(self, task: Task) -> None:
        task.command.context = task
        self._session.tasks[task.itt] = task
        self._session.reserved += task.reserved

    # -- on the way out -----------------------------------------------------------------------------------------------

    def done(self, command: Command) -> None:
        """A command has ended that did not end at once."""
        session = self._session
        if session.state is State.PUMPING or session.state is State.LEAVING:
            session.finished.append(command.context)
            return
        self.complete(command.context)
        session.outbox.close_run()
        session.notify()

    def complete(self, task: Task) -> None:
        """Forget a command that has ended, and answer for it unless it was aborted."""
        session = self._session
        if session.tasks.get(task.itt) is task:
            del session.tasks[task.itt]
        session.reserved -= task.reserved
        if not session.closed and not task.command.silent:
            finish(session, task, pending=True)
        task.unpin()
