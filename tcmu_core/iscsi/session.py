"""A session in full-feature phase (RFC 7143): PDUs in, commands to the target, responses out; no socket.

`pump` handles what the inbox holds. Its plain form has the two frequent cases written out, a read whose data fits one
Data-In and a write whose data came with the command; everything else, and every PDU of a connection with digests, goes
through `_next`. Responses are written into the outbox, reads directly behind the room for their header.

Rules: commands run in the order of CmdSN (4.2.2.1), immediate ones at once; a PDU that can't be accepted is answered
with Reject (7.3), one whose framing can't be trusted ends the connection, as error recovery level 0 has it (7.1.4.1).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.buffers import Inbox, Outbox
from tcmu_core.iscsi.constants import (
    ATTRIBUTE,
    BHS,
    COMMAND_READ,
    COMMAND_WRITE,
    FINAL,
    RESERVED_TAG,
    SERIAL,
    AsyncEvent,
    LogoutReason,
    LogoutResponse,
    RejectReason,
)
from tcmu_core.iscsi.direction import DIRECTION, IN, OUT
from tcmu_core.iscsi.discovery import TextExchange, send_targets
from tcmu_core.iscsi.errors import ConnectionEnded, DigestError, PduError
from tcmu_core.iscsi.held import Held
from tcmu_core.iscsi.login import Outcome
from tcmu_core.iscsi.management import TaskManagement
from tcmu_core.iscsi.negotiation import When, negotiate
from tcmu_core.iscsi.pending import Task, lay_out
from tcmu_core.iscsi.responses import finish
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.iscsi.transfer import Transfer
from tcmu_core.iscsi.writes import Writes
from tcmu_core.scsi import sense
from tcmu_core.scsi.command import Command, Nexus
from tcmu_core.scsi.lun import format_lun, parse_lun
from tcmu_core.scsi.target import ITNexus, Target

log = logging.getLogger("tcmu.iscsi")

BATCH = 256  # PDUs handled before other connections get their turn
IMMEDIATE_COMMANDS = 16  # beyond the window
HEAVY = 1 << 20  # bytes: a command of more is the last of its batch

Listing = Callable[[str], Iterable[tuple[str, Iterable[str]]]]  # targets and addresses that an initiator may see


@dataclass(frozen=True, slots=True)
class Attachment:
    """The target that a normal session is connected to."""

    target: Target
    it: ITNexus


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
        self._luns: dict[bytes, tuple[Callable[[Command], bool], Nexus]] = {}
        self._held = Held(self.limits.memory // 8)
        self._reserved = 0  # bytes of pending commands
        self._finished: list[Task] = []  # ended while pump ran
        self.pumping = False
        self._tag = 0
        self._ping: int | None = None
        self.heard = True  # set with each input
        self._listing = listing
        self._text = TextExchange(self._reply, self.limits.login_text)
        self._management = TaskManagement(self)
        self.writes = Writes(self)
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

    @property
    def blocked(self) -> bool:
        """Whether the session waits for pending commands to end before it takes more."""
        return self._reserved > self.limits.memory

    # -- input --------------------------------------------------------------------------------------------------------

    def _pump_plain(self) -> None:
        inbox, outbox = self.inbox, self.outbox
        if outbox.queued > outbox.limit or self.blocked or self.ended is not None:
            self.stalled = self.ended is None
            return
        self.stalled = False
        self.pumping = True
        if self._held:
            self._replay()
        unpack, pack_data, pack_response = p.SCSI_COMMAND.unpack_from, p.DATA_IN.pack_into, p.SCSI_RESPONSE.pack_into
        luns, tasks, transfers = self._luns, self.tasks, self.writes.transfers
        done, direction = self._done, DIRECTION
        parameters = self.parameters
        single = min(parameters.max_segment, parameters.max_burst)
        immediate = min(parameters.first_burst, self.limits.segment) if parameters.immediate_data else 0
        window = self.limits.queue_depth - 1 - len(transfers)
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
            if (
                opcode == 0x01
                and cmd_sn == exp_cmd_sn
                and in_order
                and lun in luns
                and itt not in tasks
                and itt not in transfers
            ):
                if flags & 0xE0 == 0xC0 and not lengths and expected <= single and direction[cdb[0]] != OUT:
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
                        finish(self, Task(command, itt, lun, expected, True, [(cursor, data, expected)], arena))
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
                if (
                    (flags & 0xE0 == 0xA0 or (flags & 0xC0 == 0x80 and not expected))
                    and lengths == expected <= immediate
                    and direction[cdb[0]] != IN
                ):
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
                        finish(self, Task(command, itt, lun, expected, False, []))
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
            window = self.limits.queue_depth - 1 - len(transfers)
            if not going_on or self.ended is not None:
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
        if outbox.queued > outbox.limit or self.blocked or self.ended is not None:
            self.stalled = self.ended is None
            return
        self.stalled = False
        self.pumping = True
        if self._held:
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
        if self._busy() > self.limits.queue_depth + IMMEDIATE_COMMANDS:
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
            if isinstance(pdu, p.ScsiCommand) and pdu.expected_length > HEAVY:
                self.stalled = True
        except DigestError:
            self.reject(header, RejectReason.DATA_DIGEST_ERROR)
            self.writes.corrupted(header)
        except PduError as error:
            log.debug("%s: rejected: %s", self.outcome.initiator, error)
            self.reject(header, error.reason)
            if error.fatal:
                self.end(str(error))
        except ConnectionEnded as error:
            self.end(str(error))
        inbox.start = start + size
        return not self.stalled

    def _accept(self, pdu: p.Pdu) -> None:
        if isinstance(pdu, p.DataOut):
            if pdu.itt not in self.writes.transfers and self._held.add_data(pdu):
                return
            self.writes.data_out(pdu)
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
        elif ahead < self.limits.queue_depth - self._busy():
            self._held.add(cmd_sn, pdu)
        # else 4.2.2.1: outside of the window: silently ignored

    def _replay(self) -> None:
        """Handle what waited for its turn."""
        while self.ended is None:
            held = self._held.pop(self.exp_cmd_sn)
            if held is None:
                return
            if not held:  # aborted before it came
                self.exp_cmd_sn = (self.exp_cmd_sn + 1) & SERIAL
            for pdu in held:
                try:
                    if isinstance(pdu, p.ScsiCommand) and pdu.flags & COMMAND_READ:
                        self._room_for(pdu, force=True)
                    self._accept(pdu)
                except PduError as error:
                    self.reject(p.LAYOUTS[pdu.OPCODE].encode(pdu), error.reason)

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
        if pdu.itt in self.tasks or pdu.itt in self.writes.transfers:
            raise PduError("this tag is in use", RejectReason.TASK_IN_PROGRESS)
        extra = p.parse_ahs(pdu.ahs)
        cdb = pdu.cdb + extra.cdb
        length = min(pdu.expected_length, self.limits.transfer)
        if pdu.flags & COMMAND_WRITE:
            self.writes.begin(Transfer(pdu, cdb, length, extra.read_length), pdu)
            return
        if pdu.data or not pdu.flags & FINAL:
            raise PduError("write data for a command that does not write", RejectReason.INVALID_PDU_FIELD)
        if not pdu.flags & COMMAND_READ or DIRECTION[cdb[0]] == OUT:
            length = 0
        outbox = self.outbox
        segments, end = self._lay_out(outbox.cursor, length)
        memory = outbox.memory
        buffers = [memory.view[data : data + count] for _at, data, count in segments]
        command = self._command(cdb, buffers, length, pdu.lun, pdu.itt, pdu.flags)
        task = Task(command, pdu.itt, pdu.lun, pdu.expected_length, True, segments, memory)
        if self._execute(command, pdu.lun):
            finish(self, task)
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
        if not self.closed and not task.command.silent:
            finish(self, task, pending=True)
        task.unpin()

    def run_write(self, transfer: Transfer) -> None:
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
        finish(self, task)

    def _cleared(self, lun: bytes) -> None:
        """Another initiator has cleared the task set of a LUN."""
        self.writes.drop(lun)

    def drop_held(self, cmd_sn: int, before: int) -> bool:
        """Count a command as received and aborted that did not come yet and has a CmdSN below `before` (11.6.1)."""
        ahead = (cmd_sn - self.exp_cmd_sn) & SERIAL
        if ahead >= min((before - self.exp_cmd_sn) & SERIAL, self.limits.queue_depth - self._busy()):
            return False
        self._held.abort(cmd_sn)
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

    def _busy(self) -> int:
        return len(self.tasks) + len(self.writes.transfers)

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
        self.writes.drop()
        self._held.clear()
        if self.attachment is not None:
            for _execute, nexus in self.attachment.it.luns.values():
                nexus.on_clear = None
            self.attachment.target.disconnect(self.attachment.it)


def _lun(raw: bytes) -> int:
    number = parse_lun(raw)
    return -1 if number is None else number
