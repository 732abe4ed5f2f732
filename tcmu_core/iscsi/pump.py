"""The pump: takes the requests that the inbox holds, in order, and has each answered (RFC 7143 4.2.2).

Its plain form has the two frequent cases written out, a read whose data fits one Data-In and a write whose data came
with the command; everything else, and every PDU of a connection with digests, goes through `_next`. Responses are
written into the outbox, reads directly behind the room for their header.

Rules: commands run in the order of CmdSN (4.2.2.1), immediate ones at once; a PDU that can't be accepted is answered
with Reject (7.3), one whose framing can't be trusted ends the connection, as error recovery level 0 has it (7.1.4.1).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from functools import partial

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.budget import ALIGNMENT
from tcmu_core.iscsi.commands import Commands
from tcmu_core.iscsi.constants import ATTRIBUTE, BHS, RESERVED_TAG, SERIAL, Opcode, RejectReason
from tcmu_core.iscsi.direction import directions
from tcmu_core.iscsi.errors import ConnectionEnded, DigestError, PduError
from tcmu_core.iscsi.management import TaskManagement
from tcmu_core.iscsi.pending import Task
from tcmu_core.iscsi.requests import Requests
from tcmu_core.iscsi.responses import finish
from tcmu_core.iscsi.session import MOVES, Event, Session, State
from tcmu_core.scsi.command import Command, Nexus
from tcmu_core.scsi.lun import format_lun, parse_lun
from tcmu_core.scsi.opcodes import Direction

log = logging.getLogger("tcmu.iscsi")

BATCH = 256  # PDUs handled before other connections get their turn
SLICE = 0.002  # seconds after which they get it all the same: what a command costs is not to be seen by its PDU
LOOK = 4  # PDUs between two looks at the clock, where most of them cost microseconds
IMMEDIATE_COMMANDS = 16  # beyond the window
ROOM = 512  # bytes that any answer without data fits in, and the sense data of a command
HEAVY = 1 << 20  # bytes: a command of more is the last of its batch
SEGMENTS = 256  # ... and so is one of more segments

Known = tuple[Callable[[Command], bool], Nexus, bytes, int]
"""A logical unit: `execute`, the nexus, for each operation code which way its data goes, and the bits of an offset of
data that are to be zero.
"""


class Next(Enum):
    """What became of the next PDU."""

    GO_ON = auto()  # it was handled
    DONE = auto()  # there is none, or the session has ended
    LATER = auto()  # it, or the one behind it, must wait


GO_ON, DONE, LATER = Next.GO_ON, Next.DONE, Next.LATER
_ECHOED = {Opcode.NOP_OUT, Opcode.TEXT_REQUEST}
IN, OUT = int(Direction.IN), int(Direction.OUT)  # a member takes longer to compare
_AT_WORK = {State.PUMPING}
_PUMP, _REST, _STALL = MOVES[Event.PUMP], MOVES[Event.REST], MOVES[Event.STALL]


class Pump:
    """The pump of one session: call `run` when input has come, and again while the session is stalled."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._commands = Commands(session)
        self._writes = self._commands.writes
        self._most = session.limits.queue_depth + IMMEDIATE_COMMANDS
        requests = Requests(session)
        management = TaskManagement(session, self._writes, self._replay)
        self._handlers: dict[type[p.Pdu], Callable[..., None]] = {
            p.ScsiCommand: self._commands.begin,
            p.TaskManagementRequest: management.answer,
            p.TextRequest: requests.text,
            p.LogoutRequest: requests.logout,
            p.NopOut: requests.nop_out,
        }
        self._sampler = session.sampler
        self._until = 0.0  # seconds by the session's clock, when the batch has taken long enough
        self._luns: dict[bytes, Known] = {}
        self._timed: dict[bytes, Known] = {}  # the same, with a clock
        if session.attachment is not None:
            for lun in session.attachment.it.luns:
                self._know(lun)
        digests = session.framing.header_digest or session.framing.data_digest
        self.run: Callable[[], None] = self._digests if digests else self._plain

    def _know(self, lun: int) -> None:
        """Have what is needed of a logical unit at hand."""
        attachment = self._session.attachment
        assert attachment is not None
        execute, nexus = attachment.it.luns[lun]
        engine = attachment.target.luns[lun]
        ways = directions(engine.table)
        skew = min(engine.device.buffer_alignment, ALIGNMENT) - 1
        self._luns[format_lun(lun)] = execute, nexus, ways, skew
        self._timed[format_lun(lun)] = self._sampler.timed(execute), nexus, ways, skew
        nexus.on_clear = partial(self._cleared, lun)
        nexus.outgoing = self._sampler.follow

    def _look_for(self, raw: bytes) -> None:
        """Know a logical unit that was added to the target meanwhile."""
        attachment = self._session.attachment
        if raw not in self._luns and attachment is not None:
            lun = parse_lun(raw)
            if lun is not None and lun in attachment.it.luns:
                self._know(lun)

    def _cleared(self, lun: int) -> int:
        """Another initiator has cleared the task set of a logical unit, or it was taken away.

        Returns how many commands ended here by that.
        """
        attachment = self._session.attachment
        raw = format_lun(lun)
        if attachment is None or lun not in attachment.it.luns:  # a write whose data is still to come is answered then
            self._luns.pop(raw, None)
            self._timed.pop(raw, None)
            return 0
        count = self._writes.drop(raw, told=attachment.target.luns[lun].unit.modes.task_aborted_status)
        self._session.announce()
        return count

    def _begin(self) -> bool:
        """Begin a batch, unless output or commands must go first."""
        session = self._session
        outbox = session.outbox
        if session.state not in _PUMP:
            return False
        if outbox.queued > outbox.limit or session.blocked:
            session.move(Event.STALL)
            return False
        session.move(Event.PUMP)
        if session.held and not self._replay():
            self._rest(stalled=True)
            return False
        return True

    def _is_late(self) -> bool:
        """Return whether the batch has taken long enough."""
        return self._session.clock() > self._until

    def _rest(self, stalled: bool) -> None:
        """End a batch."""
        session = self._session
        session.state = (_STALL if stalled else _REST)[session.state]
        if session.finished:
            finished, session.finished = session.finished, []
            for task in finished:
                self._commands.complete(task)
        if len(session.tasks) + len(session.transfers) > self._most:
            session.end("more commands than the window allows")
        session.outbox.close_run()
        if self._sampler.ended:
            session.stamp()
        self._sampler.on = False

    def _plain(self) -> None:
        session = self._session
        timed = self._sampler.begin(left_over=session.state is State.STALLED)
        inbox, outbox = session.inbox, session.outbox
        self._until = session.clock() + SLICE
        if outbox.queued or session.held or session.tasks:  # what `_begin` looks after
            if not self._begin():
                return
        else:
            state = _PUMP.get(session.state)
            if state is None:
                return
            session.state = state
        unpack, pack_data, pack_response = p.SCSI_COMMAND.unpack_from, p.DATA_IN.pack_into, p.SCSI_RESPONSE.pack_into
        luns, tasks, transfers = self._timed if timed else self._luns, session.tasks, session.transfers
        done = self._commands.done
        parameters = session.parameters
        single = min(parameters.max_segment, parameters.max_burst)
        immediate = min(parameters.first_burst, session.limits.segment) if parameters.immediate_data else 0
        window = session.limits.queue_depth - 1 - len(transfers)
        memory = inbox.memory
        view, pos, end = memory.view, inbox.start, inbox.end
        arena = outbox.memory
        out, room, cursor = arena.view, arena.size, outbox.cursor
        stat_sn, exp_cmd_sn = session.stat_sn, session.exp_cmd_sn
        in_order = not session.held
        stalled = False
        clock, until = session.clock, self._until
        for number in range(BATCH):
            if end - pos < BHS:
                inbox.need = BHS
                break
            if number % LOOK == LOOK - 1 and clock() > until:
                stalled = True
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
                execute, nexus, ways, skew = luns[lun]
                if flags & 0xE0 == 0xC0 and not lengths and expected <= single and ways[cdb[0]] == IN:
                    if cursor + expected + 52 + skew > room:
                        outbox.cursor = cursor
                        if not outbox.make_room(expected + 52 + skew):
                            in_order = False  # `_next` knows whether it waits
                            continue
                        arena, cursor = outbox.memory, outbox.cursor
                        out, room = arena.view, arena.size
                    if skew:  # what lies before an answer that begins later is not sent
                        outbox.cursor = cursor
                        cursor += -(cursor + BHS) & skew
                        outbox.skip(cursor)
                    exp_cmd_sn = (exp_cmd_sn + 1) & SERIAL
                    pos += BHS
                    data = cursor + BHS
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
                        session.stat_sn, session.exp_cmd_sn, outbox.cursor = stat_sn, exp_cmd_sn, cursor
                        finish(session, Task(command, itt, lun, expected, True, [(cursor, data, expected)], arena))
                        stat_sn, cursor = session.stat_sn, outbox.cursor
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
                    continue
                if (
                    lengths == expected <= immediate
                    and (flags & 0xE0 == 0xA0 or (flags & 0xC0 == 0x80 and not expected))
                    and (ways[cdb[0]] == OUT or not expected)
                ):
                    data = pos + BHS
                    padded = (data + expected + 3) & ~3
                    if padded > end:
                        inbox.need = padded - pos
                        break
                    if cursor + BHS > room:
                        outbox.cursor = cursor
                        if not outbox.make_room(BHS):
                            in_order = False
                            continue
                        arena, cursor = outbox.memory, outbox.cursor
                        out, room = arena.view, arena.size
                    exp_cmd_sn = (exp_cmd_sn + 1) & SERIAL
                    pos = padded
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
                        session.stat_sn, session.exp_cmd_sn, outbox.cursor = stat_sn, exp_cmd_sn, cursor
                        finish(session, Task(command, itt, lun, expected, False, []))
                        stat_sn, cursor = session.stat_sn, outbox.cursor
                        continue
                    memory.pins += 1
                    tasks[itt] = command.context = Task(command, itt, lun, expected, False, [], pins=[memory])
                    continue
            # Anything else: with all that is in locals given back first, and taken again afterwards.
            inbox.start = pos
            outbox.cursor = cursor
            session.stat_sn, session.exp_cmd_sn = stat_sn, exp_cmd_sn
            going_on = self._next()
            pos = inbox.start
            cursor = outbox.cursor
            arena = outbox.memory
            out, room = arena.view, arena.size
            stat_sn, exp_cmd_sn = session.stat_sn, session.exp_cmd_sn
            in_order = not session.held
            window = session.limits.queue_depth - 1 - len(transfers)
            if going_on is not GO_ON or clock() > until:
                stalled = going_on is not DONE
                break
            single = min(session.parameters.max_segment, session.parameters.max_burst)  # a text request may change it
        else:
            stalled = True
        inbox.start = pos
        outbox.cursor = cursor
        session.stat_sn, session.exp_cmd_sn = stat_sn, exp_cmd_sn
        self._rest(stalled)

    def _digests(self) -> None:
        self._sampler.begin(left_over=self._session.state is State.STALLED)
        self._until = self._session.clock() + SLICE
        if not self._begin():
            return
        going_on = GO_ON
        for _ in range(BATCH):
            going_on = self._next()
            if going_on is not GO_ON or self._is_late():
                break
        self._rest(going_on is not DONE)

    def _next(self) -> Next:
        """Handle one PDU, if there is one and it may be handled now."""
        session = self._session
        if session.state not in _AT_WORK:
            return DONE
        inbox = session.inbox
        view, start = inbox.memory.view, inbox.start
        if inbox.end - start < BHS:
            inbox.need = BHS
            return DONE
        framing = session.framing
        header = view[start : start + BHS]
        if p.LENGTHS.unpack_from(view, start)[0] & 0xFFFFFF > session.limits.segment:
            session.reject(header, RejectReason.PROTOCOL_ERROR)
            session.end("a data segment longer than MaxRecvDataSegmentLength")
            return DONE
        size = framing.size(view, start)
        if inbox.end - start < size:
            inbox.need = size
            return DONE
        # Room for the answer: a ping brings its own data back. A command asks for more where it reads.
        if not session.outbox.make_room(size + ROOM if view[start] & 0x3F in _ECHOED else ROOM) and session.must_wait():
            return LATER
        heavy = False
        try:
            pdu = framing.decode(view, start)
            if isinstance(pdu, p.ScsiCommand):
                self._look_for(pdu.lun)
                if (pdu.immediate or pdu.cmd_sn == session.exp_cmd_sn) and self._commands.must_wait(pdu):
                    return LATER
                heavy = pdu.expected_length > min(HEAVY, SEGMENTS * session.parameters.max_segment)
            self._accept(pdu)
        except DigestError:
            session.reject(header, RejectReason.DATA_DIGEST_ERROR)
            self._writes.corrupted(header)
        except PduError as error:
            log.debug("%s: rejected: %s", session.outcome.initiator, error)
            session.reject(header, error.reason)
            if error.fatal:
                session.end(str(error))
        except ConnectionEnded as error:
            session.end(str(error))
        inbox.start = start + size
        waits = bool(session.held) and not self._replay()
        if session.ended is not None:
            return DONE
        return LATER if heavy or waits else GO_ON

    def _accept(self, pdu: p.Pdu) -> None:
        session = self._session
        if isinstance(pdu, p.DataOut):
            if pdu.itt not in session.transfers and session.held.add_data(pdu):
                return
            self._writes.data_out(pdu)
            return
        if isinstance(pdu, p.SnackRequest):
            raise PduError("there is no SNACK at error recovery level 0", RejectReason.SNACK_REJECT)
        handler = self._handlers.get(type(pdu))
        if handler is None:
            raise PduError(f"{pdu.OPCODE.name} is not for a target in full-feature phase")
        if pdu.immediate:
            if isinstance(pdu, p.ScsiCommand) and session.busy >= session.limits.queue_depth + IMMEDIATE_COMMANDS:
                raise PduError("too many commands", RejectReason.IMMEDIATE_COMMAND_REJECT)
            handler(pdu)
            return
        cmd_sn: int = pdu.cmd_sn  # type: ignore[attr-defined]  # each of the handlers' PDUs has one
        ahead = (cmd_sn - session.exp_cmd_sn) & SERIAL
        if ahead == 0:
            session.exp_cmd_sn = (session.exp_cmd_sn + 1) & SERIAL
            handler(pdu)
        elif ahead < session.limits.queue_depth - session.busy:
            session.held.add(cmd_sn, pdu)
        # else 4.2.2.1: outside of the window: silently ignored

    def _replay(self) -> bool:
        """Handle what waited for its turn, as far as that has come now; False if it has to wait longer."""
        session = self._session
        held = session.held
        for _ in range(BATCH):
            pdus = held.get(session.exp_cmd_sn)
            if pdus is None or session.ended is not None:
                return True
            if self._is_late() or (pdus and isinstance(pdus[0], p.ScsiCommand) and self._commands.must_wait(pdus[0])):
                return False
            held.pop(session.exp_cmd_sn)
            session.exp_cmd_sn = (session.exp_cmd_sn + 1) & SERIAL
            for pdu in pdus:  # a request and its data; none if it was aborted before it came
                try:
                    if isinstance(pdu, p.DataOut):
                        self._writes.data_out(pdu)
                    else:
                        self._handlers[type(pdu)](pdu)
                except PduError as error:
                    session.reject(p.LAYOUTS[pdu.OPCODE].encode(pdu), error.reason)
        return False
