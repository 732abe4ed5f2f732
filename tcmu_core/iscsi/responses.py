"""Responses of SCSI commands: Data-In with collapsed status, SCSI Response, residual counts (RFC 7143 11.4, 11.7)."""

from __future__ import annotations

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import (
    BHS,
    BIDI_UNDERFLOW,
    DATA_STATUS,
    FINAL,
    OVERFLOW,
    RESERVED_TAG,
    SERIAL,
    UNDERFLOW,
    Opcode,
)
from tcmu_core.iscsi.pending import Task
from tcmu_core.iscsi.session import Session
from tcmu_core.scsi.command import Status

# Looking a member up takes a tenth of a microsecond, for each response.
_DATA_IN, _SCSI_RESPONSE = int(Opcode.DATA_IN), int(Opcode.SCSI_RESPONSE)


def finish(session: Session, task: Task, *, pending: bool = False) -> None:
    """Write the response of a command that has ended, with its data if it read any (11.4, 11.7)."""
    command = task.command
    expected = task.expected_length
    if (
        pending
        and not command.status
        and len(task.segments) == 1
        and command.transferred == expected == command.wanted
        and not session.framing.header_digest
        and not session.framing.data_digest
    ):
        _whole(session, task, expected)
        return
    moved = command.transferred if command.status == Status.GOOD else 0
    flags = FINAL
    residual = 0
    if command.status == Status.GOOD and command.wanted > expected:
        flags |= OVERFLOW
        residual = command.wanted - expected
    elif moved < expected:
        flags |= UNDERFLOW
        residual = expected - moved
    if task.reading and moved:
        _data_in(session, task, moved, flags, residual & SERIAL, pending)
        return
    if task.bidi:
        flags |= BIDI_UNDERFLOW
    _response(session, task, flags, residual & SERIAL)


def _whole(session: Session, task: Task, count: int) -> None:
    """Put the header before the data of a read that is one Data-In, and all that was asked for.

    Most of those that did not end at once are that, and `_data_in` takes twice as long for it.
    """
    at = task.segments[0][0]
    memory = task.memory
    assert memory is not None
    view, stat_sn = memory.view, session.stat_sn
    p.DATA_IN.pack_into(
        view, at, _DATA_IN, FINAL | DATA_STATUS, 0, count, task.lun, task.itt, RESERVED_TAG, stat_sn,
        session.exp_cmd_sn, session.max_cmd_sn(), 0, 0, 0,
    )  # fmt: skip
    session.stat_sn = (stat_sn + 1) & SERIAL
    end = at + BHS + count
    if count & 3:
        padded = (end + 3) & ~3
        view[end:padded] = bytes(padded - end)
        end = padded
    session.outbox.push(view[at:end])


def _response(session: Session, task: Task, flags: int, residual: int) -> None:
    """Write a SCSI Response, with the sense data if there is any (11.4)."""
    command = task.command
    if command.sense:
        session.respond(
            p.ScsiResponse(
                flags=flags,
                status=command.status,
                itt=task.itt,
                exp_data_sn=task.exp_data_sn,
                bidi_residual=task.bidi or 0,
                residual=residual,
                data=len(command.sense).to_bytes(2, "big") + bytes(command.sense),
            )
        )
        return
    # Each write that does not end at once has one: without an object for it, which takes ten times as long.
    header = p.SCSI_RESPONSE.pack(
        _SCSI_RESPONSE, flags, 0, command.status, 0, task.itt, 0, session.stat_sn, session.exp_cmd_sn,
        session.max_cmd_sn(), task.exp_data_sn, task.bidi or 0, residual,
    )  # fmt: skip
    session.write(header + p.digest(header) if session.framing.header_digest else header)
    session.stat_sn = (session.stat_sn + 1) & SERIAL


def _data_in(session: Session, task: Task, moved: int, flags: int, residual: int, pending: bool) -> None:
    """Put headers before the data of a read; the last one carries the status (11.7.1)."""
    memory = task.memory
    assert memory is not None
    view = memory.view
    max_burst = session.parameters.max_burst
    framing = session.framing
    done = 0
    first = at = task.segments[0][0]
    for data_sn, (at, data, room) in enumerate(task.segments):
        count = min(room, moved - done)
        last = done + count == moved
        final = last or (done + count) % max_burst == 0
        exp_cmd_sn, max_cmd_sn = session.exp_cmd_sn, session.max_cmd_sn()
        p.DATA_IN.pack_into(
            view, at, Opcode.DATA_IN, (flags | DATA_STATUS) if last else FINAL * final, 0, count, task.lun,
            task.itt, RESERVED_TAG, session.stat_sn if last else 0, exp_cmd_sn, max_cmd_sn, data_sn, done,
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
    session.stat_sn = (session.stat_sn + 1) & SERIAL
    if pending:
        session.outbox.push(view[first:at])
    else:
        session.outbox.cursor = at
