"""A small iSCSI initiator without I/O, on the portal's own PDU codecs: commands in, bytes out, bytes in, replies out.

    initiator = Initiator("iqn.2026-01.example:me", "iqn.2026-01.example:target")
    sock.sendall(initiator.login())
    …feed what arrives to `initiator.receive(data)`, and send what `initiator.outgoing()` returns after each…

One session of one connection, error recovery level 0, without digests, authentication and unsolicited data: what is
written goes out as the target asks for it (R2T). `tcmu_core.testing.client` puts it on a socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from tcmu_core.errors import TcmuError
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import (
    BHS,
    COMMAND_READ,
    COMMAND_WRITE,
    DATA_STATUS,
    FINAL,
    RESERVED_TAG,
    SERIAL,
    AsyncEvent,
    Stage,
    TaskFunction,
)
from tcmu_core.iscsi.text import format_text, parse_text
from tcmu_core.scsi.command import Status

OFFERED = {  # RFC 7143 13
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "Yes",
    "ImmediateData": "No",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "1048576",
    "MaxOutstandingR2T": "1",
    "ErrorRecoveryLevel": "0",
    "DefaultTime2Wait": "0",
    "DefaultTime2Retain": "0",
}
DEFAULT_SEGMENT = 8192  # bytes: MaxRecvDataSegmentLength of a target that doesn't say (13.12)
_SIMPLE = 1  # task attribute (11.3.1)


class InitiatorError(TcmuError):
    """The target refused the login, or broke the protocol."""


class State(Enum):
    """Where the session is."""

    NEW = auto()
    LOGIN = auto()
    FULL_FEATURE = auto()
    LOGOUT = auto()  # the target has asked for it, or we have
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """How a command ended: status and sense (SAM-5 5.3), and what was read."""

    tag: int
    status: int
    sense: bytes
    data: bytes

    @property
    def error(self) -> tuple[int, int, int]:
        """Return sense key, ASC and ASCQ, from either format (SPC-4 4.5); zeros without sense."""
        sense = self.sense
        if len(sense) >= 4 and sense[0] & 0x7F in (0x72, 0x73):
            return sense[1] & 0x0F, sense[2], sense[3]
        if len(sense) >= 14:
            return sense[2] & 0x0F, sense[12], sense[13]
        return 0, 0, 0


@dataclass(slots=True)
class _Task:
    write: bytes
    read: bytearray
    got: int = 0
    lun: bytes = field(default_factory=lambda: bytes(8))
    cmd_sn: int = 0


class Initiator:
    """One session as the initiator sees it."""

    def __init__(self, name: str, target: str, isid: bytes = bytes.fromhex("800000010000")) -> None:
        self.name = name
        self.target = target
        self.isid = isid
        self.state = State.NEW
        self._framing = p.Framing()
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._tasks: dict[int, _Task] = {}
        self._aborts: dict[int, int] = {}  # tags of commands, by those of the requests to abort them
        self._itt = 0
        self._cmd_sn = 1
        self._exp_stat_sn = 0
        self._max_cmd_sn = 1
        self._segment = DEFAULT_SEGMENT

    @property
    def in_flight(self) -> int:
        """Return how many commands have not been answered."""
        return len(self._tasks)

    @property
    def room(self) -> int:
        """Return how many more commands the target takes now (RFC 7143 4.2.2.1)."""
        return (self._max_cmd_sn - self._cmd_sn + 1) & SERIAL

    # -- what it asks -------------------------------------------------------------------------------------------------

    def login(self) -> bytes:
        """Return the bytes of the first login request."""
        self.state = State.LOGIN
        pairs = {"InitiatorName": self.name, "SessionType": "Normal", "TargetName": self.target, **OFFERED}
        self._login(pairs)
        return self.outgoing()

    def _login(self, pairs: Mapping[str, str], tsih: int = 0) -> None:
        flags = FINAL | Stage.OPERATIONAL << 2 | Stage.FULL_FEATURE
        self._send(
            p.LoginRequest(
                immediate=True, flags=flags, isid=self.isid, tsih=tsih, itt=0, cid=1, cmd_sn=self._cmd_sn,
                exp_stat_sn=self._exp_stat_sn, data=format_text(pairs),
            )
        )  # fmt: skip

    def command(self, cdb: bytes, *, write: bytes = b"", read: int = 0, lun: int = 0) -> tuple[int, bytes]:
        """Return the tag and the bytes of a SCSI command that writes `write`, or has room for `read` bytes.

        Raises:
            InitiatorError: there is no session.
        """
        if self.state is not State.FULL_FEATURE:
            raise InitiatorError("there is no session that could carry a command")
        self._itt = (self._itt + 1) % RESERVED_TAG
        where = (lun if lun < 256 else 0x4000 | lun).to_bytes(2, "big") + bytes(6)  # SAM-5 4.7.7
        self._tasks[self._itt] = _Task(write, bytearray(read), lun=where, cmd_sn=self._cmd_sn)
        flags = FINAL | _SIMPLE | (COMMAND_READ if read else 0) | (COMMAND_WRITE if write else 0)
        ahs = p.extended_cdb(cdb) if len(cdb) > 16 else b""
        self._send(
            p.ScsiCommand(
                flags=flags, lun=where, itt=self._itt, expected_length=len(write) or read, cmd_sn=self._cmd_sn,
                exp_stat_sn=self._exp_stat_sn, cdb=cdb[:16].ljust(16, b"\0"), ahs=ahs,
            )
        )  # fmt: skip
        self._cmd_sn = (self._cmd_sn + 1) & SERIAL
        return self._itt, self.outgoing()

    def abort(self, tag: int) -> bytes:
        """Return the bytes that ask to abort a command: it ends with TASK ABORTED, or as it would have ended."""
        task = self._tasks[tag]
        self._itt = (self._itt + 1) % RESERVED_TAG
        self._aborts[self._itt] = tag
        self._send(
            p.TaskManagementRequest(
                immediate=True, function=FINAL | TaskFunction.ABORT_TASK, lun=task.lun, itt=self._itt,
                referenced_tag=tag, cmd_sn=self._cmd_sn, exp_stat_sn=self._exp_stat_sn, ref_cmd_sn=task.cmd_sn,
            )
        )  # fmt: skip
        return self.outgoing()

    def logout(self) -> bytes:
        """Return the bytes that end the session; after the answer the target closes the connection."""
        self.state = State.LOGOUT
        self._itt = (self._itt + 1) % RESERVED_TAG
        self._send(p.LogoutRequest(itt=self._itt, cid=1, cmd_sn=self._cmd_sn, exp_stat_sn=self._exp_stat_sn))
        self._cmd_sn = (self._cmd_sn + 1) & SERIAL
        return self.outgoing()

    def outgoing(self) -> bytes:
        """Return the bytes that are to be sent now."""
        data = bytes(self._outbox)
        self._outbox.clear()
        return data

    def _send(self, pdu: p.Pdu) -> None:
        self._outbox += self._framing.encode(pdu)

    # -- what it is answered ------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Reply]:
        """Take bytes that have arrived; return the commands that have ended by them.

        Raises:
            InitiatorError: the target refuses the login, or rejects what it was sent.
        """
        self._inbox += data
        replies: list[Reply] = []
        inbox = self._inbox
        while len(inbox) >= BHS and len(inbox) >= (size := self._framing.size(inbox, 0)):
            pdu = self._framing.decode(bytes(inbox[:size]), 0)
            del inbox[:size]
            reply = self._take(pdu)
            if reply is not None:
                replies.append(reply)
        return replies

    def _take(self, pdu: p.Pdu) -> Reply | None:
        match pdu:
            case p.LoginResponse():
                self._answered(pdu)
            case p.ScsiResponse():
                self._numbered(pdu)
                length = int.from_bytes(pdu.data[:2], "big")
                return self._ended(pdu.itt, pdu.status, bytes(pdu.data[2 : 2 + length]))
            case p.DataIn():
                return self._data_in(pdu)
            case p.ReadyToTransfer():
                self._data_out(pdu)
            case p.TaskManagementResponse():
                self._numbered(pdu)
                tag = self._aborts.pop(pdu.itt)
                return self._ended(tag, Status.TASK_ABORTED, b"") if tag in self._tasks else None
            case p.NopIn():
                self._numbered(pdu)
                if pdu.ttt != RESERVED_TAG:
                    self._send(p.NopOut(immediate=True, itt=RESERVED_TAG, ttt=pdu.ttt, lun=pdu.lun,
                                        cmd_sn=self._cmd_sn, exp_stat_sn=self._exp_stat_sn))  # fmt: skip
            case p.AsyncMessage():
                self._numbered(pdu)
                if pdu.event in (AsyncEvent.LOGOUT_REQUEST, AsyncEvent.CONNECTION_DROP, AsyncEvent.SESSION_DROP):
                    self.state = State.LOGOUT
            case p.LogoutResponsePdu():
                self.state = State.ENDED
            case p.Reject():
                raise InitiatorError(f"the target rejected a PDU: reason {pdu.reason:02X}h")
            case _:
                raise InitiatorError(f"the target sent {pdu.OPCODE.name}, which nobody asked for")
        return None

    def _numbered(
        self,
        pdu: p.ScsiResponse | p.DataIn | p.NopIn | p.AsyncMessage | p.LoginResponse | p.TaskManagementResponse,
    ) -> None:
        if not (isinstance(pdu, p.NopIn) and pdu.itt == RESERVED_TAG and pdu.ttt != RESERVED_TAG):
            self._exp_stat_sn = (pdu.stat_sn + 1) & SERIAL
        self._max_cmd_sn = pdu.max_cmd_sn

    def _answered(self, pdu: p.LoginResponse) -> None:
        if pdu.status:
            raise InitiatorError(f"the target refused the login: status {pdu.status:04X}h")
        self._numbered(pdu)
        pairs = parse_text(pdu.data)
        self._segment = int(pairs.get("MaxRecvDataSegmentLength", self._segment))
        if pdu.flags & FINAL and pdu.flags & 3 == Stage.FULL_FEATURE:
            self.state = State.FULL_FEATURE
        else:
            self._login({}, pdu.tsih)

    def _data_in(self, pdu: p.DataIn) -> Reply | None:
        task = self._tasks[pdu.itt]
        data = bytes(pdu.data)
        task.read[pdu.offset : pdu.offset + len(data)] = data
        task.got = max(task.got, pdu.offset + len(data))
        if not pdu.flags & DATA_STATUS:
            return None
        self._numbered(pdu)
        return self._ended(pdu.itt, pdu.status, b"")

    def _data_out(self, pdu: p.ReadyToTransfer) -> None:
        """Send what the target has asked for, in segments as it takes them."""
        task = self._tasks[pdu.itt]
        self._max_cmd_sn = pdu.max_cmd_sn
        end = pdu.offset + pdu.length
        numbers = range(pdu.offset, end, self._segment)
        for data_sn, at in enumerate(numbers):
            part = task.write[at : min(end, at + self._segment)]
            out = p.DataOut(lun=task.lun, itt=pdu.itt, ttt=pdu.ttt, exp_stat_sn=self._exp_stat_sn, data_sn=data_sn,
                            offset=at, data=part)  # fmt: skip
            self._send(replace(out, flags=FINAL if at + self._segment >= end else 0))

    def _ended(self, tag: int, status: int, sense: bytes) -> Reply:
        task = self._tasks.pop(tag)
        return Reply(tag, status, sense, bytes(task.read[: task.got]))
