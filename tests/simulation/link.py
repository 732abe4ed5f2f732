"""Link: one iSCSI connection as its initiator sees it: numbers its requests, answers R2Ts, tells the run of answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import FINAL, RESERVED_TAG, SERIAL
from tests.iscsi.initiator import OPERATIONAL, Initiator
from tests.simulation.net import Socket
from tests.simulation.operation import Operation

SEGMENT = 1024  # MaxRecvDataSegmentLength, both ways
BURST = 2048
FIRST_BURST = 1024


class Told(Protocol):
    """What a link tells the run of."""

    def answered(self, link: Link, op: Operation, status: int, sense: bytes, data: bytes) -> None:
        """An operation was answered."""

    def refused(self, link: Link, op: Operation) -> None:
        """An operation was rejected as a PDU."""

    def managed(self, link: Link, request: Management, response: int) -> None:
        """A task management request was answered."""

    def logged_in(self, link: Link) -> None:
        """The login is over."""

    def left(self, link: Link) -> None:
        """The session is over: logged out, or the target has closed the connection."""


@dataclass(frozen=True, slots=True)
class Management:
    """A task management request: its function, for the log, and the operations that it is to end."""

    function: int
    what: str
    operations: tuple[Operation, ...]
    lun: int | None
    since: int


class Link:
    """One connection and, after its login, the session on it."""

    def __init__(self, told: Told, who: int, name: str, target: str, isid: bytes, sock: Socket) -> None:
        self.told = told
        self.who = who
        self.sock = sock
        self.isid = isid
        self.initiator = Initiator(name, target, isid)
        self.segment = SEGMENT
        self.burst = BURST
        self.logged_in = False
        self.over = False
        self.ops: dict[int, Operation] = {}
        self.writing: dict[int, bytes] = {}
        self.reading: dict[int, bytearray] = {}
        self.managing: dict[int, Management] = {}
        self.max_cmd_sn = 0
        self.hold = False  # the next request is kept back until another was sent
        self.kept = b""
        self._waiting: deque[list[p.Pdu]] = deque()
        self._tag = 1 << 16

    def __str__(self) -> str:
        """Name it for people."""
        return f"the session of {'abcdefgh'[self.who]}"

    # -- requests -----------------------------------------------------------------------------------------------------

    def login(self) -> None:
        """Ask to log in."""
        pairs = OPERATIONAL | {
            "MaxRecvDataSegmentLength": str(self.segment),
            "MaxBurstLength": str(self.burst),
            "FirstBurstLength": str(FIRST_BURST),
            "MaxOutstandingR2T": "2",
        }
        self.sock.put(self.initiator.encode(self.initiator.login(pairs)))

    def command(self, op: Operation, cdb: bytes, data: bytes, room: int, immediate: int, unsolicited: bool) -> None:
        """Send a command with `immediate` bytes of its data along, and the rest of the first burst unsolicited."""
        self.ops[op.number] = op
        flags = op.attribute | (0x20 if data else 0x40 if room else 0)
        first = min(FIRST_BURST, len(data))
        along = data[: min(immediate, first)]
        more = unsolicited and len(along) < first
        pdus: list[p.Pdu] = [
            p.ScsiCommand(
                flags=flags | (0 if more else FINAL),
                lun=bytes([0, op.lun]) + bytes(6),
                itt=op.number,
                expected_length=len(data) or room,
                cdb=cdb.ljust(16, b"\0"),
                data=along,
            )
        ]
        if more:
            pdus += self._data_out(op.number, RESERVED_TAG, bytes(8), data, len(along), first)
        self.writing[op.number] = data
        self.reading[op.number] = bytearray(room)
        self._send(pdus)

    def _data_out(self, itt: int, ttt: int, lun: bytes, data: bytes, start: int, end: int) -> list[p.Pdu]:
        pdus: list[p.Pdu] = []
        for at in range(start, end, SEGMENT):
            part = data[at : min(at + SEGMENT, end)]
            final = FINAL if at + len(part) == end else 0
            pdus.append(p.DataOut(flags=final, lun=lun, itt=itt, ttt=ttt, data_sn=len(pdus), offset=at, data=part))
        return pdus

    def manage(self, request: Management, referenced: int, *, immediate: bool) -> None:
        """Send a task management request."""
        self._tag += 1
        self.managing[self._tag] = request
        self._send(
            [
                p.TaskManagementRequest(
                    immediate=immediate,
                    function=FINAL | request.function,
                    lun=bytes([0, request.lun or 0]) + bytes(6),
                    itt=self._tag,
                    referenced_tag=referenced,
                )
            ]
        )

    def logout(self) -> None:
        """Ask to log out."""
        self._tag += 1
        self._send([p.LogoutRequest(itt=self._tag, cid=1)])

    def _send(self, pdus: list[p.Pdu]) -> None:
        if self._waiting or not (pdus[0].immediate or self._window()):
            self._waiting.append(pdus)
            return
        data = self.initiator.encode(*pdus)
        if pdus[0].immediate:
            self.release()
        elif self.hold and not self.kept:
            self.hold = False
            self.kept = data
            return
        self.sock.put(data)
        self.release()

    def release(self) -> None:
        """Send what was kept back."""
        self.sock.put(self.kept)
        self.kept = b""

    def _window(self) -> bool:
        ahead = (self.max_cmd_sn - self.initiator.cmd_sn) & SERIAL
        return ahead < 1 << 31

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way to the target."""
        return self.over or not (self.sock.arriving or self.kept or self._waiting or self.sock.ended)

    # -- answers ------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take what the target has sent."""
        while self.sock.sent and not self.over:
            data = bytes(self.sock.sent)
            self.sock.sent.clear()
            for pdu in self.initiator.decode(data):
                self._take(pdu)
        if not self.sock.open and not self.over:
            self.over = True
            self.told.left(self)

    def _take(self, pdu: Any) -> None:
        told = getattr(pdu, "max_cmd_sn", self.max_cmd_sn)
        if (told - self.max_cmd_sn) & SERIAL < 1 << 31:
            self.max_cmd_sn = told
        if isinstance(pdu, p.LoginResponse):
            if pdu.status == 0:
                self.logged_in = True
                self.max_cmd_sn = pdu.max_cmd_sn
                self.told.logged_in(self)
        elif isinstance(pdu, p.DataIn):
            room = self.reading.get(pdu.itt, bytearray())
            room[pdu.offset : pdu.offset + len(pdu.data)] = pdu.data
            if pdu.flags & 1:
                self._answered(pdu.itt, pdu.status, b"")
        elif isinstance(pdu, p.ScsiResponse):
            self._answered(pdu.itt, pdu.status, bytes(pdu.data[2:]))
        elif isinstance(pdu, p.ReadyToTransfer):
            data = self.writing.get(pdu.itt, b"")
            parts = self._data_out(pdu.itt, pdu.ttt, pdu.lun, data, pdu.offset, pdu.offset + pdu.length)
            self.sock.put(self.initiator.encode(*parts))
        elif isinstance(pdu, p.TaskManagementResponse):
            self.told.managed(self, self.managing.pop(pdu.itt), pdu.response)
        elif isinstance(pdu, p.LogoutResponsePdu):
            if pdu.response == 0 and not self.over:
                self.over = True
                self.told.left(self)
        elif isinstance(pdu, p.NopIn) and pdu.ttt != RESERVED_TAG:
            self.sock.put(self.initiator.encode(p.NopOut(immediate=True, ttt=pdu.ttt)))
        elif isinstance(pdu, p.Reject):
            op = self.ops.pop(int.from_bytes(pdu.data[16:20], "big"), None)
            if op is not None:
                self.told.refused(self, op)
        while self._waiting and self._window() and not self.over:
            pdus = self._waiting.popleft()
            self.sock.put(self.initiator.encode(*pdus))

    def _answered(self, itt: int, status: int, sense: bytes) -> None:
        op = self.ops.get(itt)
        if op is not None:
            self.writing.pop(itt, None)
            self.told.answered(self, op, status, sense, bytes(self.reading.pop(itt, b"")))
