"""A session in full-feature phase (RFC 7143): PDUs in, commands to the target, responses out; no socket.

`pump` handles what the inbox holds. Its plain form has the two frequent cases written out, a read whose data fits one
Data-In and a write whose data came with the command; everything else, and every PDU of a connection with digests, goes
through `_next`. Responses are written into the outbox, reads directly behind the room for their header.

Rules: commands run in the order of CmdSN (4.2.2.1), immediate ones at once; a PDU that can't be accepted is answered
with Reject (7.3), one whose framing can't be trusted ends the connection, as error recovery level 0 has it (7.1.4.1).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from tcmu_core.errors import AbortedCommand
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.buffers import Inbox, Outbox
from tcmu_core.iscsi.constants import (
    ATTRIBUTE,
    BHS,
    BIDI_UNDERFLOW,
    COMMAND_READ,
    COMMAND_WRITE,
    DATA_STATUS,
    FINAL,
    OVERFLOW,
    RESERVED_TAG,
    SERIAL,
    UNDERFLOW,
    AsyncEvent,
    LogoutReason,
    LogoutResponse,
    Opcode,
    RejectReason,
)
from tcmu_core.iscsi.discovery import TextExchange, send_targets
from tcmu_core.iscsi.errors import ConnectionEnded, DigestError, PduError
from tcmu_core.iscsi.login import Outcome
from tcmu_core.iscsi.management import TaskManagement
from tcmu_core.iscsi.negotiation import When, negotiate
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.iscsi.tasks import Task, lay_out
from tcmu_core.iscsi.transfer import Transfer
from tcmu_core.scsi import sense
from tcmu_core.scsi.command import Command, Nexus, Status
from tcmu_core.scsi.target import ITNexus, Target, format_lun, parse_lun

log = logging.getLogger("tcmu.iscsi")

BATCH = 256  # PDUs handled before other connections get their turn
IMMEDIATE_COMMANDS = 16  # beyond the window

Listing = Callable[[str], Iterable[tuple[str, Iterable[str]]]]  # targets and addresses that an initiator may see


@dataclass(frozen=True, slots=True)
class Attachment:
    """The target that a normal session is connected to."""

    target: Target
    it: ITNexus


class _UnexpectedData(AbortedCommand):
    """Unsolicited data that was not agreed on (RFC 7143 11.4.7.2)."""

    asc, ascq = 0x0C, 0x0C


class _WrongAmount(AbortedCommand):
    """Not the amount of data that the command announced (RFC 7143 11.4.7.2)."""

    asc, ascq = 0x0C, 0x0D


class _DataCorrupted(AbortedCommand):
    """A data digest was wrong (RFC 7143 11.4.7.2)."""

    asc, ascq = 0x47, 0x05


class Session:
    """One session on its one connection.

    `notify` is called when there is output or an end that did not come from `pump`. `ended` is the reason why the
    connection closes once the output is sent; `stalled` says that `pump` has more to do when the output is sent or a
    command has ended.
    """

    def __init__(
        self,
        settings: PortalSettings,
        outcome: Outcome,
        inbox: Inbox,
        outbox: Outbox,
        attachment: Attachment | None,
        listing: Listing,
        notify: Callable[[], object],
        reset_target: Callable[[Target], object] = lambda target: None,
    ) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.outcome = outcome
        self.parameters = outcome.parameters
        self.inbox = inbox
        self.outbox = outbox
        self.attachment = attachment
        self.notify = notify
        self.reset_target = reset_target
        self.ended: str | None = None
        self.closed = False
        self.stalled = False
        self.exp_cmd_sn = outcome.cmd_sn
        self.stat_sn = outcome.stat_sn
        self.tasks: dict[int, Task] = {}  # in the engine's hands, by initiator task tag
        self.transfers: dict[int, Transfer] = {}  # waiting for data, by initiator task tag
        self.dropped: deque[int] = deque(maxlen=1024)  # tags of aborted transfers, whose data may still come
        self._luns: dict[bytes, tuple[Callable[[Command], bool], Nexus]] = {}
        self._held: dict[int, list[p.Pdu]] = {}  # by CmdSN: what came before its turn
        self._held_bytes = 0
        self._reserved = 0  # bytes of pending commands
        self._incoming = 0  # bytes of transfers that may ask for data
        self._waiting: deque[Transfer] = deque()  # those that may not yet
        self._finished: list[Task] = []  # ended while pump ran
        self.pumping = False
        self._tag = 0
        self._ping: int | None = None
        self.heard = True  # set with each input
        self._listing = listing
        self._text = TextExchange(self._reply, self.limits.login_text)
        self._management = TaskManagement(self)
        self.framing = p.Framing(self.parameters.header_digest == "CRC32C", self.parameters.data_digest == "CRC32C")
        self._handlers: dict[type[p.Pdu], Callable[..., None]] = {
            p.ScsiCommand: self._scsi_command,
            p.TaskManagementRequest: self._management.answer,
            p.TextRequest: self._text_request,
            p.LogoutRequest: self._logout_request,
            p.NopOut: self._nop_out,
        }
        if attachment is not None:
            for lun, found in attachment.it.luns.items():
                raw = format_lun(lun)
                self._luns[raw] = found
                found[1].on_clear = partial(self._cleared, raw)
        digests = self.framing.header_digest or self.framing.data_digest
        self.pump: Callable[[], None] = self._pump_digests if digests else self._pump_plain

    # -- input --------------------------------------------------------------------------------------------------------

    def _pump_plain(self) -> None:
        inbox, outbox = self.inbox, self.outbox
        if outbox.queued > outbox.limit or self._reserved > self.limits.memory or self.ended is not None:
            self.stalled = self.ended is None
            return
        self.stalled = False
        self.pumping = True
        if self._held or self._waiting:
            self._replay()
        unpack, pack_data, pack_response = p.SCSI_COMMAND.unpack_from, p.DATA_IN.pack_into, p.SCSI_RESPONSE.pack_into
        luns, tasks, done = self._luns, self.tasks, self._done
        parameters = self.parameters
        single = min(parameters.max_segment, parameters.max_burst)
        immediate = min(parameters.first_burst, self.limits.segment) if parameters.immediate_data else 0
        window = self.limits.queue_depth - 1 - len(self.transfers)
        memory = inbox.memory
        view, pos, end = memory.view, inbox.start, inbox.end
        arena = outbox.memory
        out, room, cursor = arena.view, arena.size, outbox.cursor
        stat_sn, exp_cmd_sn = self.stat_sn, self.exp_cmd_sn
        in_order = not self._held
        for _ in range(BATCH):
            if end - pos < BHS:
                inbox.need = BHS
                break
            opcode, flags, lengths, lun, itt, expected, cmd_sn, _, cdb = unpack(view, pos)
            if opcode == 0x01 and cmd_sn == exp_cmd_sn and in_order and lun in luns and itt not in tasks:
                if flags & 0xE0 == 0xC0 and not lengths and expected <= single:
                    if cursor + expected + 52 > room:
                        outbox.cursor = cursor
                        if not outbox.make_room(expected + 52):
                            self.stalled = True
                            break
                        arena, cursor = outbox.memory, outbox.cursor
                        out, room = arena.view, arena.size
                    exp_cmd_sn = (exp_cmd_sn + 1) & SERIAL
                    pos += BHS
                    data = cursor + BHS
                    execute, nexus = luns[lun]
                    command = Command(cdb, [out[data : data + expected]], expected, nexus, done, itt, flags & ATTRIBUTE)
                    if execute(command):
                        if not command.status and command.transferred == expected == command.wanted and expected:
                            pack_data(
                                out, cursor, 0x25, 0x81, 0, expected, lun, itt, RESERVED_TAG, stat_sn, exp_cmd_sn,
                                (exp_cmd_sn + window - len(tasks)) & SERIAL, 0, 0, 0,
                            )  # fmt: skip
                            stat_sn = (stat_sn + 1) & SERIAL
                            cursor = data + expected
                            if expected & 3:
                                padded = (cursor + 3) & ~3
                                out[cursor:padded] = bytes(padded - cursor)
                                cursor = padded
                            continue
                        self.stat_sn, self.exp_cmd_sn, outbox.cursor = stat_sn, exp_cmd_sn, cursor
                        self._finish(Task(command, itt, lun, expected, True, [(cursor, data, expected)], arena))
                        stat_sn, cursor = self.stat_sn, outbox.cursor
                        arena = outbox.memory
                        out, room = arena.view, arena.size
                        continue
                    outbox.cursor = cursor
                    cursor = (data + expected + 3) & ~3
                    outbox.skip(cursor)
                    arena.pins += 1
                    tasks[itt] = command.context = Task(
                        command, itt, lun, expected, True, [(data - BHS, data, expected)], arena
                    )
                    self._reserved += expected + BHS
                    continue
                if flags & 0xC0 == 0x80 and lengths == expected <= immediate:
                    data = pos + BHS
                    padded = (data + expected + 3) & ~3
                    if padded > end:
                        inbox.need = padded - pos
                        break
                    if cursor + BHS > room:
                        outbox.cursor = cursor
                        if not outbox.make_room(BHS):
                            self.stalled = True
                            break
                        arena, cursor = outbox.memory, outbox.cursor
                        out, room = arena.view, arena.size
                    exp_cmd_sn = (exp_cmd_sn + 1) & SERIAL
                    pos = padded
                    execute, nexus = luns[lun]
                    buffers = [view[data : data + expected]] if expected else []
                    command = Command(cdb, buffers, expected, nexus, done, itt, flags & ATTRIBUTE)
                    if execute(command):
                        if not command.status and command.transferred == expected == command.wanted:
                            pack_response(
                                out, cursor, 0x21, 0x80, 0, 0, 0, itt, 0, stat_sn, exp_cmd_sn,
                                (exp_cmd_sn + window - len(tasks)) & SERIAL, 0, 0, 0,
                            )  # fmt: skip
                            stat_sn = (stat_sn + 1) & SERIAL
                            cursor += BHS
                            continue
                        self.stat_sn, self.exp_cmd_sn, outbox.cursor = stat_sn, exp_cmd_sn, cursor
                        self._finish(Task(command, itt, lun, expected, False, []))
                        stat_sn, cursor = self.stat_sn, outbox.cursor
                        continue
                    memory.pins += 1
                    tasks[itt] = command.context = Task(command, itt, lun, expected, False, [], pins=[memory])
                    self._reserved += expected + BHS
                    continue
            # Anything else: with all that is in locals given back first, and taken again afterwards.
            inbox.start = pos
            outbox.cursor = cursor
            self.stat_sn, self.exp_cmd_sn = stat_sn, exp_cmd_sn
            going_on = self._next()
            pos = inbox.start
            cursor = outbox.cursor
            arena = outbox.memory
            out, room = arena.view, arena.size
            stat_sn, exp_cmd_sn = self.stat_sn, self.exp_cmd_sn
            in_order = not self._held
            window = self.limits.queue_depth - 1 - len(self.transfers)
            if not going_on:
                break
            single = min(self.parameters.max_segment, self.parameters.max_burst)  # a text request may change it
        else:
            self.stalled = True
        inbox.start = pos
        outbox.cursor = cursor
        self.stat_sn, self.exp_cmd_sn = stat_sn, exp_cmd_sn
        self._end_pump()

    def _pump_digests(self) -> None:
        outbox = self.outbox
        if outbox.queued > outbox.limit or self._reserved > self.limits.memory or self.ended is not None:
            self.stalled = self.ended is None
            return
        self.stalled = False
        self.pumping = True
        if self._held or self._waiting:
            self._replay()
        for _ in range(BATCH):
            if not self._next():
                break
        else:
            self.stalled = True
        self._end_pump()

    def _end_pump(self) -> None:
        self.pumping = False
        while self._finished:
            self._complete(self._finished.pop(0))
        if len(self.tasks) + len(self.transfers) > self.limits.queue_depth + IMMEDIATE_COMMANDS:
            self.end("more commands than the window allows")
        self.outbox.close_run()

    def _next(self) -> bool:
        """Handle one PDU; False when there is none, or none may be handled now."""
        if self.ended is not None:
            return False
        inbox = self.inbox
        view, start = inbox.memory.view, inbox.start
        if inbox.end - start < BHS:
            inbox.need = BHS
            return False
        framing = self.framing
        if p.LENGTHS.unpack_from(view, start)[0] & 0xFFFFFF > self.limits.segment:
            self.reject(view[start : start + BHS], RejectReason.PROTOCOL_ERROR)
            self.end("a data segment longer than MaxRecvDataSegmentLength")
            return False
        size = framing.size(view, start)
        if inbox.end - start < size:
            inbox.need = size
            return False
        header = view[start : start + BHS]
        try:
            pdu = framing.decode(view, start)
            if isinstance(pdu, p.ScsiCommand) and pdu.flags & COMMAND_READ and not self._room_for(pdu):
                self.stalled = True
                return False
            self._accept(pdu)
        except DigestError:
            self.reject(header, RejectReason.DATA_DIGEST_ERROR)
            self._data_corrupted(header)
        except PduError as error:
            log.debug("%s: rejected: %s", self.outcome.initiator, error)
            self.reject(header, error.reason)
            if error.fatal:
                self.end(str(error))
        except ConnectionEnded as error:
            self.end(str(error))
        inbox.start = start + size
        return True

    def _accept(self, pdu: p.Pdu) -> None:
        if isinstance(pdu, p.DataOut):
            self._data_out(pdu)
            return
        if isinstance(pdu, p.SnackRequest):
            raise PduError("there is no SNACK at error recovery level 0", RejectReason.SNACK_REJECT)
        handler = self._handlers.get(type(pdu))
        if handler is None:
            raise PduError(f"{pdu.OPCODE.name} is not for a target in full-feature phase")
        if pdu.immediate:
            if isinstance(pdu, p.ScsiCommand) and self._busy() >= self.limits.queue_depth + IMMEDIATE_COMMANDS:
                raise PduError("too many commands", RejectReason.IMMEDIATE_COMMAND_REJECT)
            handler(pdu)
            return
        cmd_sn: int = pdu.cmd_sn  # type: ignore[attr-defined]  # each of the handlers' PDUs has one
        ahead = (cmd_sn - self.exp_cmd_sn) & SERIAL
        if ahead == 0:
            self.exp_cmd_sn = (self.exp_cmd_sn + 1) & SERIAL
            handler(pdu)
            if self._held:
                self._replay()
        elif ahead < self.limits.queue_depth - self._busy() and cmd_sn not in self._held:
            self._held[cmd_sn] = [self._hold(pdu)]
        # else 4.2.2.1: outside of the window, or there already: silently ignored

    def _hold(self, pdu: p.Pdu) -> p.Pdu:
        self._held_bytes += len(pdu.data) + BHS
        if self._held_bytes > self.limits.memory // 8:
            raise PduError("too much that is out of order", fatal=True)
        return replace(pdu, data=memoryview(bytearray(pdu.data)))

    def _replay(self) -> None:
        """Handle what waited for its turn: held PDUs, and transfers that want to ask for data."""
        while self.exp_cmd_sn in self._held and self.ended is None:
            held = self._held.pop(self.exp_cmd_sn)
            if not held:  # aborted before it came
                self.exp_cmd_sn = (self.exp_cmd_sn + 1) & SERIAL
            for pdu in held:
                self._held_bytes -= len(pdu.data) + BHS
                try:
                    if isinstance(pdu, p.ScsiCommand) and pdu.flags & COMMAND_READ:
                        self._room_for(pdu, force=True)
                    self._accept(replace(pdu, immediate=False))
                except PduError as error:
                    self.reject(p.LAYOUTS[pdu.OPCODE].encode(pdu), error.reason)
        for _ in range(len(self._waiting)):
            self._ask(self._waiting.popleft())

    # -- SCSI commands ------------------------------------------------------------------------------------------------

    def _room_for(self, pdu: p.ScsiCommand, *, force: bool = False) -> bool:
        """Have room in the outbox for all the Data-In that a read may need."""
        length = min(pdu.expected_length, self.limits.transfer)
        _segments, end = self._lay_out(0, length)
        return self.outbox.make_room(end, force=force)

    def _lay_out(self, at: int, length: int) -> tuple[list[tuple[int, int, int]], int]:
        parameters, framing = self.parameters, self.framing
        return lay_out(
            at, length, parameters.max_segment, parameters.max_burst, framing.header_digest, framing.data_digest
        )

    def _scsi_command(self, pdu: p.ScsiCommand) -> None:
        if self.attachment is None:
            raise PduError("no SCSI in a discovery session")
        if pdu.itt == RESERVED_TAG:
            raise PduError("a command needs a tag", RejectReason.INVALID_PDU_FIELD)
        if pdu.itt in self.tasks or pdu.itt in self.transfers:
            raise PduError("this tag is in use", RejectReason.TASK_IN_PROGRESS)
        extra = p.parse_ahs(pdu.ahs)
        cdb = pdu.cdb + extra.cdb
        length = min(pdu.expected_length, self.limits.transfer)
        if pdu.flags & COMMAND_WRITE:
            self._begin_write(Transfer(pdu, cdb, length, extra.read_length), pdu)
            return
        if pdu.data or not pdu.flags & FINAL:
            raise PduError("write data for a command that does not write", RejectReason.INVALID_PDU_FIELD)
        if not pdu.flags & COMMAND_READ:
            length = 0
        outbox = self.outbox
        segments, end = self._lay_out(outbox.cursor, length)
        memory = outbox.memory
        buffers = [memory.view[data : data + count] for _at, data, count in segments]
        command = self._command(cdb, buffers, length, pdu.lun, pdu.itt, pdu.flags)
        task = Task(command, pdu.itt, pdu.lun, pdu.expected_length, True, segments, memory)
        if self._execute(command, pdu.lun):
            self._finish(task)
            return
        if segments:
            memory.pins += 1
            outbox.skip(end)
        else:
            task.memory = None
        self._pend(task)

    def _command(self, cdb: bytes, buffers: list[memoryview], length: int, lun: bytes, itt: int, flags: int) -> Command:
        assert self.attachment is not None
        found = self.attachment.it.luns.get(_lun(lun))
        nexus = found[1] if found is not None else self.attachment.it.nowhere
        return Command(cdb, buffers, length, nexus, self._done, itt, flags & ATTRIBUTE)

    def _execute(self, command: Command, lun: bytes) -> bool:
        assert self.attachment is not None
        number = parse_lun(lun)
        return self.attachment.it.execute(number, command)

    def _pend(self, task: Task) -> None:
        task.command.context = task
        self.tasks[task.itt] = task
        self._reserved += task.reserved

    def _done(self, command: Command) -> None:
        """A command has ended that did not end at once."""
        task = command.context
        if self.pumping:
            self._finished.append(task)
            return
        self._complete(task)
        self.outbox.close_run()
        self.notify()

    def _complete(self, task: Task) -> None:
        if self.tasks.get(task.itt) is task:
            del self.tasks[task.itt]
        self._reserved -= task.reserved
        if not self.closed and not task.command.aborted:
            self._finish(task, pending=True)
        task.unpin()
        if self._waiting and not self.closed:
            self._replay()

    def _finish(self, task: Task, *, pending: bool = False) -> None:
        """Write the response of a command that has ended, with its data if it read any (11.4, 11.7)."""
        command = task.command
        expected = task.expected_length
        moved = command.transferred if command.status == Status.GOOD else 0
        flags = FINAL
        residual = 0
        if command.status == Status.GOOD and command.wanted > expected:
            flags |= OVERFLOW
            residual = command.wanted - expected
        elif moved < expected:
            flags |= UNDERFLOW
            residual = expected - moved
        data_sn = task.exp_data_sn
        if task.reading and moved:
            self._data_in(task, moved, flags, residual & SERIAL, pending)
            return
        bidi = 0
        if task.bidi:
            flags |= BIDI_UNDERFLOW
            bidi = task.bidi
        body = b""
        if command.sense:
            body = len(command.sense).to_bytes(2, "big") + bytes(command.sense)
        self.respond(
            p.ScsiResponse(
                flags=flags,
                status=command.status,
                itt=task.itt,
                exp_data_sn=data_sn,
                bidi_residual=bidi,
                residual=residual & SERIAL,
                data=body,
            )
        )

    def _data_in(self, task: Task, moved: int, flags: int, residual: int, pending: bool) -> None:
        """Put headers before the data of a read; the last one carries the status (11.7.1)."""
        memory = task.memory
        assert memory is not None
        view = memory.view
        max_burst = self.parameters.max_burst
        framing = self.framing
        done = 0
        first = at = task.segments[0][0]
        for data_sn, (at, data, room) in enumerate(task.segments):
            count = min(room, moved - done)
            last = done + count == moved
            final = last or (done + count) % max_burst == 0
            exp_cmd_sn, max_cmd_sn = self.exp_cmd_sn, self.max_cmd_sn()
            p.DATA_IN.pack_into(
                view, at, Opcode.DATA_IN, (flags | DATA_STATUS) if last else FINAL * final, 0, count, task.lun,
                task.itt, RESERVED_TAG, self.stat_sn if last else 0, exp_cmd_sn, max_cmd_sn, data_sn, done,
                residual if last else 0,
            )  # fmt: skip
            if framing.header_digest:
                view[at + BHS : data] = p.digest(view[at : at + BHS])
            end = data + count
            padded = (end + 3) & ~3
            view[end:padded] = bytes(padded - end)
            if framing.data_digest:
                view[padded : padded + 4] = p.digest(view[data:padded])
                padded += 4
            done += count
            at = padded
            if last:
                break
        self.stat_sn = (self.stat_sn + 1) & SERIAL
        if pending:
            self.outbox.push(view[first:at])
        else:
            self.outbox.cursor = at

    # -- writes whose data comes in parts -----------------------------------------------------------------------------

    def _begin_write(self, transfer: Transfer, pdu: p.ScsiCommand) -> None:
        parameters = self.parameters
        more = not pdu.flags & FINAL  # unsolicited Data-Out will follow
        first = min(parameters.first_burst, transfer.want)
        if (pdu.data and not parameters.immediate_data) or (more and parameters.initial_r2t):
            transfer.failed = _UnexpectedData()
        elif len(pdu.data) > first or (more and len(pdu.data) == first):
            transfer.failed = _WrongAmount()
        else:
            assert isinstance(pdu.data, memoryview)
            transfer.keep(pdu.data, self.inbox.memory)
            transfer.asked = transfer.received
        if more:
            transfer.unsolicited(first)
        self._go_on(transfer)

    def _go_on(self, transfer: Transfer) -> None:
        """Do what the state of a transfer asks for: run the command, fail it, or ask for more data."""
        complete = transfer.received == transfer.want or transfer.failed is not None
        if not complete or transfer.bursts:
            if transfer.itt not in self.transfers:
                self.transfers[transfer.itt] = transfer
            if not complete:
                self._ask(transfer)
            return
        if self.transfers.pop(transfer.itt, None) is not None:
            self._let_go(transfer)
        command = self._command(
            transfer.cdb, transfer.pieces, transfer.received, transfer.lun, transfer.itt, transfer.flags
        )
        task = Task(command, transfer.itt, transfer.lun, transfer.expected_length, False, [])
        task.exp_data_sn = transfer.r2t_sn
        task.bidi = transfer.bidi
        if transfer.failed is not None:
            command.status = transfer.failed.status
            command.sense = sense.encode(transfer.failed)
            transfer.unpin()
            self._finish(task)
        elif self._execute(command, transfer.lun):
            transfer.unpin()
            self._finish(task)
        else:
            task.pins = list(transfer.pins)
            self._pend(task)

    def _ask(self, transfer: Transfer) -> None:
        """Send the R2Ts that a transfer may have outstanding (11.8)."""
        if self.transfers.get(transfer.itt) is not transfer or transfer.failed is not None:
            return
        if transfer.bursts and transfer.bursts[0].ttt == RESERVED_TAG:
            return
        if not transfer.admitted:
            if self._incoming and self._incoming + transfer.want > self.limits.memory:
                if transfer not in self._waiting:
                    self._waiting.append(transfer)
                return
            transfer.admitted = True
            self._incoming += transfer.want
        parameters = self.parameters
        while transfer.asked < transfer.want and len(transfer.bursts) < parameters.max_outstanding_r2t:
            r2t_sn = transfer.r2t_sn
            burst = transfer.ask(self.new_tag(), parameters.max_burst)
            self.send(
                p.ReadyToTransfer(
                    lun=transfer.lun,
                    itt=transfer.itt,
                    ttt=burst.ttt,
                    stat_sn=self.stat_sn,
                    exp_cmd_sn=self.exp_cmd_sn,
                    max_cmd_sn=self.max_cmd_sn(),
                    r2t_sn=r2t_sn,
                    offset=burst.offset,
                    length=burst.end - burst.offset,
                )
            )

    def _let_go(self, transfer: Transfer) -> None:
        if transfer.admitted:
            transfer.admitted = False
            self._incoming -= transfer.want

    def _busy(self) -> int:
        return len(self.tasks) + len(self.transfers)

    def _data_out(self, pdu: p.DataOut) -> None:
        transfer = self.transfers.get(pdu.itt)
        if transfer is None:
            for held in self._held.values():
                if getattr(held[0], "itt", None) == pdu.itt:
                    held.append(self._hold(pdu))
                    return
            if pdu.itt in self.dropped:
                return
            raise PduError("Data-Out for no command", RejectReason.INVALID_PDU_FIELD)
        try:
            transfer.take(pdu, self.inbox.memory)
        except PduError as error:
            self.reject(p.LAYOUTS[Opcode.DATA_OUT].encode(pdu), error.reason)
            if error.reason != RejectReason.PROTOCOL_ERROR:
                return
            transfer.failed = transfer.failed or _WrongAmount()
            transfer.swallow(pdu)
        self._go_on(transfer)

    def _data_corrupted(self, header: memoryview) -> None:
        """Fail the command whose Data-Out had a wrong digest (7.8); other PDUs are just not there."""
        if header[0] & 0x3F != Opcode.DATA_OUT:
            return
        pdu = p.LAYOUTS[Opcode.DATA_OUT].decode(header, 0, b"", b"")
        assert isinstance(pdu, p.DataOut)
        transfer = self.transfers.get(pdu.itt)
        if transfer is not None:
            transfer.failed = transfer.failed or _DataCorrupted()
            transfer.swallow(pdu)
            self._go_on(transfer)

    def drop_transfers(self, lun: bytes | None = None, itt: int | None = None) -> int:
        """Forget commands whose data has not come yet: of one LUN, one tag, or all. Return how many there were."""
        found = [t for t in self.transfers.values() if lun in {None, t.lun} and itt in {None, t.itt}]
        for transfer in found:
            del self.transfers[transfer.itt]
            self._let_go(transfer)
            transfer.unpin()
            self.dropped.append(transfer.itt)
        return len(found)

    def _cleared(self, lun: bytes) -> None:
        """Another initiator has cleared the task set of a LUN."""
        self.drop_transfers(lun)

    def drop_held(self, cmd_sn: int, before: int) -> bool:
        """Count a command as received and aborted that did not come yet and has a CmdSN below `before` (11.6.1)."""
        ahead = (cmd_sn - self.exp_cmd_sn) & SERIAL
        if ahead >= min((before - self.exp_cmd_sn) & SERIAL, self.limits.queue_depth - self._busy()):
            return False
        for pdu in self._held.pop(cmd_sn, ()):
            self._held_bytes -= len(pdu.data) + BHS
        self._held[cmd_sn] = []
        self._replay()
        return True

    # -- everything else that an initiator asks -----------------------------------------------------------------------

    def _nop_out(self, pdu: p.NopOut) -> None:
        """Answer a ping; the answer to one of ours has no tag, and has been heard (11.18)."""
        if pdu.itt != RESERVED_TAG:
            self.respond(p.NopIn(lun=pdu.lun, itt=pdu.itt, data=bytes(pdu.data[: self.parameters.max_segment])))

    def _text_request(self, pdu: p.TextRequest) -> None:
        flags, ttt, data = self._text.answer(pdu, self.parameters.max_segment)
        self.respond(p.TextResponse(flags=flags, lun=pdu.lun, itt=pdu.itt, ttt=ttt, data=data))

    def _reply(self, pairs: dict[str, str]) -> Iterable[tuple[str, str]]:
        asked = pairs.pop("SendTargets", None)
        discovery = self.attachment is None
        self.parameters, answers = negotiate(
            pairs, self.parameters, self.settings, phase=When.FULL_FEATURE, discovery=discovery
        )
        targets: Iterable[tuple[str, str]] = ()
        if asked is not None:
            targets = send_targets(asked, self.outcome.target, self._listing(self.outcome.initiator))
        return [*answers.items(), *targets]

    def _logout_request(self, pdu: p.LogoutRequest) -> None:
        reason = pdu.reason & 0x7F
        if reason == LogoutReason.REMOVE_FOR_RECOVERY:
            response = LogoutResponse.NO_RECOVERY
        elif reason == LogoutReason.CLOSE_CONNECTION and pdu.cid != self.outcome.cid:
            response = LogoutResponse.NO_CID
        elif reason > LogoutReason.REMOVE_FOR_RECOVERY:
            raise PduError(f"logout reason {reason}", RejectReason.INVALID_PDU_FIELD)
        else:
            response = LogoutResponse.CLOSED
        self.respond(p.LogoutResponsePdu(response=response, itt=pdu.itt))
        if response == LogoutResponse.CLOSED:
            self.end("logout")

    # -- output -------------------------------------------------------------------------------------------------------

    def max_cmd_sn(self) -> int:
        """Return MaxCmdSN: what is in flight narrows the window, so that it never moves back (4.2.2.1)."""
        return (self.exp_cmd_sn + self.limits.queue_depth - 1 - self._busy()) & SERIAL

    def new_tag(self) -> int:
        """Return a target transfer tag."""
        self._tag = self._tag % 0x7FFFFFFF + 1
        return self._tag

    def send(self, pdu: p.Pdu) -> None:
        """Write a PDU as it is."""
        if not self.closed:
            self.outbox.append(self.framing.encode(pdu))

    def respond(
        self,
        pdu: p.ScsiResponse | p.NopIn | p.TaskManagementResponse | p.TextResponse | p.LogoutResponsePdu | p.Reject
        | p.AsyncMessage,
    ) -> None:  # fmt: skip
        """Write a PDU that carries the next StatSN."""
        self.send(replace(pdu, stat_sn=self.stat_sn, exp_cmd_sn=self.exp_cmd_sn, max_cmd_sn=self.max_cmd_sn()))
        self.stat_sn = (self.stat_sn + 1) & SERIAL

    def reject(self, header: p.Buffer, reason: RejectReason) -> None:
        """Reject the PDU of this basic header segment (11.17)."""
        self.respond(p.Reject(reason=reason, data=bytes(header[:BHS])))

    def end(self, reason: str) -> None:
        """Have the connection closed when all output is sent."""
        if self.ended is None:
            self.ended = reason

    def ask_logout(self, seconds: int) -> None:
        """Ask the initiator to log out within `seconds` (11.9.1)."""
        self.respond(p.AsyncMessage(event=AsyncEvent.LOGOUT_REQUEST, parameter3=seconds))
        self.outbox.close_run()

    def check_alive(self) -> float | None:
        """Look after a silent peer: return in how many seconds to look again, None when it has not answered a ping."""
        if self.heard:
            self.heard = False
            self._ping = None
            return self.limits.nop_interval
        if self._ping is not None:
            return None
        self._ping = self.new_tag()
        self.send(
            p.NopIn(ttt=self._ping, stat_sn=self.stat_sn, exp_cmd_sn=self.exp_cmd_sn, max_cmd_sn=self.max_cmd_sn())
        )
        self.outbox.close_run()
        return self.limits.nop_timeout

    def close(self) -> None:
        """Leave the target: commands are aborted, nothing more is written."""
        if self.closed:
            return
        self.closed = True
        self.end("closed")
        self.drop_transfers()
        self._held.clear()
        if self.attachment is not None:
            for _execute, nexus in self.attachment.it.luns.values():
                nexus.on_clear = None
            self.attachment.target.disconnect(self.attachment.it)


def _lun(raw: bytes) -> int:
    number = parse_lun(raw)
    return -1 if number is None else number
