"""Writes whose data comes in parts: unsolicited Data-Out, R2Ts, and what is wrong with either (RFC 7143 4.2.4)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tcmu_core.errors import AbortedCommand, Busy, CommandError, TaskAborted
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import FINAL, RESERVED_TAG, Opcode, RejectReason
from tcmu_core.iscsi.errors import PduError
from tcmu_core.iscsi.session import Session
from tcmu_core.iscsi.transfer import Transfer
from tcmu_core.scsi.lun import parse_lun


class UnexpectedData(AbortedCommand):
    """Unsolicited data that was not agreed on (RFC 7143 11.4.7.2)."""

    asc, ascq = 0x0C, 0x0C


class WrongAmount(AbortedCommand):
    """Not the amount of data that the command announced (RFC 7143 11.4.7.2)."""

    asc, ascq = 0x0C, 0x0D


class DataCorrupted(AbortedCommand):
    """A data digest was wrong (RFC 7143 11.4.7.2)."""

    asc, ascq = 0x47, 0x05


class Writes:
    """Looks after the transfers of one session. A complete one, or one that has failed, goes to `run`.

    A transfer that may ask for data has memory promised for all of it; those for which there is none wait for others of
    the session to end, and where there are no others, are told to come again (BUSY).
    """

    def __init__(self, session: Session, run: Callable[[Transfer], None]) -> None:
        self._session = session
        self._run = run
        self._dropped: deque[int] = deque(maxlen=1024)  # tags of aborted transfers, whose data may still come
        self._admitted = 0  # transfers that may ask for data
        self.waiting: deque[Transfer] = deque()  # those that may not yet

    def begin(self, transfer: Transfer, pdu: p.ScsiCommand) -> None:
        """Take a write command with the data that came along."""
        parameters = self._session.parameters
        more = not pdu.flags & FINAL  # unsolicited Data-Out will follow
        first = min(parameters.first_burst, transfer.want)
        if (pdu.data and not parameters.immediate_data) or (more and parameters.initial_r2t):
            transfer.failed = UnexpectedData()
        elif len(pdu.data) > first or (more and len(pdu.data) == first):
            transfer.failed = WrongAmount()
        elif more and not transfer.promise(first):
            self._session.economize()
            transfer.failed = Busy()
        else:
            assert isinstance(pdu.data, memoryview)
            transfer.keep(pdu.data, self._session.inbox.memory)
            transfer.asked = transfer.received
        if more:
            transfer.unsolicited(first)
        self._go_on(transfer)

    def data_out(self, pdu: p.DataOut) -> None:
        """Take one Data-Out.

        Raises:
            PduError: it belongs to no command.
        """
        transfer = self._session.transfers.get(pdu.itt)
        if transfer is None:
            if pdu.itt in self._dropped:
                return
            raise PduError("Data-Out for no command", RejectReason.INVALID_PDU_FIELD)
        try:
            transfer.take(pdu, self._session.inbox.memory)
        except PduError as error:
            # 7.3: the Reject first, then, once all data that is under way has come, the command's own status.
            self._session.reject(p.LAYOUTS[Opcode.DATA_OUT].encode(pdu), error.reason)
            if error.reason != RejectReason.PROTOCOL_ERROR:
                return
            self._fail(transfer, WrongAmount())
            transfer.swallow(pdu)
        self._go_on(transfer)

    def corrupted(self, header: memoryview) -> None:
        """Fail the command whose Data-Out had a wrong digest (7.8); other PDUs are just not there."""
        if header[0] & 0x3F != Opcode.DATA_OUT:
            return
        pdu = p.LAYOUTS[Opcode.DATA_OUT].decode(header, 0, b"", b"")
        assert isinstance(pdu, p.DataOut)
        transfer = self._session.transfers.get(pdu.itt)
        if transfer is not None:
            self._fail(transfer, DataCorrupted())
            transfer.swallow(pdu)
            self._go_on(transfer)

    def drop(self, lun: bytes | None = None, itt: int | None = None, *, told: bool = False) -> int:
        """Forget commands whose data has not come yet: of one LUN, one tag, or all. Return how many there were.

        `told`: they are answered with TASK ABORTED, since it was another initiator's wish (SPC-4 7.5.8: TAS).
        """
        number = None if lun is None else parse_lun(lun)  # it may be written in two ways
        found = [
            transfer
            for transfer in self._session.transfers.values()
            if (lun is None or parse_lun(transfer.lun) == number) and itt in {None, transfer.itt}
        ]
        for transfer in found:
            transfer.drop()
            self._dropped.append(transfer.itt)
            self._forget(transfer)
            if told:
                transfer.failed = TaskAborted()
                self._run(transfer)
        if found:
            if not told:
                self._session.widen(len(found))
            self.ask_again()
        return len(found)

    def pass_over(self, itt: int) -> None:
        """Take no notice of what still comes of a command that was aborted before its turn."""
        self._dropped.append(itt)

    def ask_again(self) -> None:
        """Ask for the data of transfers that wait, as far as there is memory now."""
        for _ in range(len(self.waiting)):
            if not self._ask(self.waiting[0]):
                return
            self.waiting.popleft()

    def _fail(self, transfer: Transfer, error: CommandError) -> None:
        transfer.failed = transfer.failed or error
        transfer.drop()

    def _go_on(self, transfer: Transfer) -> None:
        """Do what the state of a transfer asks for: run or fail the command, ask for more data, or wait."""
        complete = transfer.received == transfer.want or transfer.failed is not None
        if complete and not transfer.bursts:
            self._forget(transfer)
            transfer.settle()
            self._run(transfer)
            self.ask_again()
            return
        self._session.transfers[transfer.itt] = transfer
        if not complete and not self._ask(transfer):
            self.waiting.append(transfer)

    def _forget(self, transfer: Transfer) -> None:
        if self._session.transfers.pop(transfer.itt, None) is not None and transfer.admitted:
            self._admitted -= 1

    def _ask(self, transfer: Transfer) -> bool:
        """Send the R2Ts that a transfer may have outstanding (11.8); False if it has to wait for memory."""
        session = self._session
        if session.closed or session.transfers.get(transfer.itt) is not transfer or transfer.failed is not None:
            return True
        if transfer.bursts and transfer.bursts[0].ttt == RESERVED_TAG:
            return True
        if not transfer.admitted:
            if not transfer.promise(transfer.want):
                if self._admitted or session.tasks:
                    return False
                session.economize()
                self._fail(transfer, Busy())
                self._forget(transfer)
                self._run(transfer)
                return True
            transfer.admitted = True
            self._admitted += 1
        parameters = session.parameters
        while transfer.asked < transfer.want and len(transfer.bursts) < parameters.max_outstanding_r2t:
            r2t_sn = transfer.r2t_sn
            burst = transfer.ask(session.new_tag(), parameters.max_burst)
            session.send(
                p.ReadyToTransfer(
                    lun=transfer.lun,
                    itt=transfer.itt,
                    ttt=burst.ttt,
                    stat_sn=session.stat_sn,
                    exp_cmd_sn=session.exp_cmd_sn,
                    max_cmd_sn=session.max_cmd_sn(),
                    r2t_sn=r2t_sn,
                    offset=burst.offset,
                    length=burst.end - burst.offset,
                )
            )
        return True
