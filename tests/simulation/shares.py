"""The level of fair shares: clients that send the dearest commands there are, and one that wants to read a block.

Time is virtual: what a call of the loop costs follows from the work that it does, counted, so that a run is the same on
every machine: lines of the product, calls and bytes of hooks, bytes received, sent and made room for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import FINAL
from tests.simulation import cdbs
from tests.simulation.book import Violation
from tests.simulation.bulk import BLOCK, BulkRun, read_16
from tests.simulation.link import Link
from tests.simulation.net import no_time
from tests.simulation.operation import Operation
from tests.simulation.schedule import Schedule
from tests.simulation.world import PRODUCT, Counted, counted

WEIGHTS = {
    "verify": 30, "copy": 30, "status": 30, "identify": 30, "claims": 30, "reads": 30, "same": 30, "unmap": 30,
    "compare": 30, "sanitize": 30, "turn": 60,
}  # fmt: skip
KIB, MIB = 1 << 10, 1 << 20
LINE, CALL, BYTE = 0.15e-6, 10e-6, 1 / (4 << 30)  # seconds
BOUND = 0.1  # seconds that the client who reads one block may wait
TRANSFER = 16 * MIB
TINY = 1  # variant: the clients take 512 bytes at a time, the least that there is (RFC 7143 13.12)
SIZE = 128 * MIB // BLOCK


class SharesRun(BulkRun):
    """One run of a schedule: client 0 reads block 0 whenever it has its last answer."""

    clients = 3
    size = SIZE
    extent = 1024
    limits = {
        "queue_depth": 128, "segment": 256 * KIB, "burst": MIB, "first_burst": 256 * KIB, "outstanding_r2t": 4,
        "transfer": TRANSFER, "memory": 64 * MIB, "send_queue": 4 * MIB,
    }  # fmt: skip

    def __init__(self, schedule: Schedule, log: Callable[[str], object] | None = None) -> None:
        self._lines = 0
        self._sent = 0
        self._asked: float | None = None
        self._last = ""
        self._ready = False
        if schedule.variant & TINY:
            self.segment = 512
        super().__init__(schedule, log)
        self.disk.at_once = True
        self._ready = True

    # -- what it costs ------------------------------------------------------------------------------------------------

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PRODUCT) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._lines += 1
        return self._line

    def call(self, fn: Callable[..., object], *args: Any) -> Any:
        """Make one call of the loop, and let the time pass that it takes; the product sees it pass."""
        if not self._ready:
            return fn(*args)
        lines, calls, moved = self._lines, self.disk.calls, self.disk.bytes
        arriving = sum(len(link.sock.arriving) for link in self.links)
        sent = sum(len(link.sock.sent) for link in self.links)
        made = Counted.alive
        begun = self.loop.now

        def spent() -> float:
            received = arriving - sum(len(link.sock.arriving) for link in self.links)
            out = sum(len(link.sock.sent) for link in self.links) - sent
            touched = self.disk.bytes - moved + max(received, 0) + out + max(Counted.alive - made, 0)
            return LINE * (self._lines - lines) + CALL * (self.disk.calls - calls) + BYTE * touched

        self.loop.elapsed = spent
        sys.settrace(self._trace)
        try:
            result = fn(*args)
        finally:
            sys.settrace(None)
            self.loop.now, self.loop.elapsed = self.loop.clock(), no_time
        if self.loop.now - begun > 0.02 and self.log is not None:
            self.log(f"    a call of the loop takes {(self.loop.now - begun) * 1e3:.0f} ms")
        return result

    def round(self) -> bool:
        """Let the loop go round; the victim reads all the time."""
        if self._ready and self._asked is None:
            link = self.links[0]
            op = self.operation(0, "victim's read")
            self._asked = self.loop.now
            link.command(op, read_16(0, 1), b"", BLOCK, 0, unsolicited=False)
        return super().round()

    def answered(self, link: Link, op: Operation, status: int, sense: bytes, data: bytes) -> None:
        """An operation was answered: the victim looks at the clock."""
        super().answered(link, op, status, sense, data)
        if link.who == 0 and self._asked is not None:
            waited = self.loop.now - self._asked
            self._asked = None
            if waited > BOUND:
                raise Violation("unfair", f"a read of one block waits for {waited * 1e3:.0f} ms, behind {self._last}")

    def settle(self) -> None:
        """Let the loop go round until the others have all their answers, or for a while."""
        if not self._ready:
            super().settle()
            return
        for _ in range(200):
            self.round()
            if not any(link.ops or link.sock.arriving for link in self.links[1:] if not link.over):
                break

    def run(self) -> None:
        """Do every step."""
        with counted():
            super().run()

    # -- what the others send -----------------------------------------------------------------------------------------

    def _send(self, choices: bytes, name: str, cdb: bytes, data: bytes = b"", room: int = 0) -> None:
        link = self.links[1 + choices[0] % 2]
        self._last = name
        for _ in range(1 + choices[1] % 64):
            if link.over:
                break
            op = self.operation(link.who, name)
            link.command(op, cdb, data, room, 1 << 30, unsolicited=True)
            link.reading[op.number] = bytearray()  # nobody looks at it
        self.settle()

    def do_verify(self, choices: bytes) -> None:
        """VERIFY(16) with BYTCHK 11b: each block is compared with one."""
        count = TRANSFER // BLOCK >> choices[2] % 4
        self._send(choices, "VERIFY", cdbs.block_16(0x8F, 0, count, 0x06), bytes(BLOCK))

    def do_compare(self, choices: bytes) -> None:
        """VERIFY(16) with BYTCHK 01b: each block is compared with its own."""
        size = 256 * KIB
        self._send(choices, "VERIFY of data", cdbs.block_16(0x8F, 0, size // BLOCK, 0x02), bytes(size))

    def do_copy(self, choices: bytes) -> None:
        """EXTENDED COPY of all that one command may copy."""
        naa = self.world.names[0]
        segments = [(0xFFFF, 0, SIZE // 2)] * 16
        self._send(choices, "EXTENDED COPY", *cdbs.extended_copy(naa, naa, segments))

    def do_status(self, choices: bytes) -> None:
        """GET LBA STATUS of a disk in many pieces."""
        room = 8 + 16 * 65536
        cdb = bytes([0x9E, 0x12]) + bytes(8) + room.to_bytes(4, "big") + bytes(2)
        self._send(choices, "GET LBA STATUS", cdb, room=room)

    def do_identify(self, choices: bytes) -> None:
        """PERSISTENT RESERVE OUT, REGISTER with very many TransportIDs."""
        one = bytes([0x00]) + bytes(7) + bytes(8) + bytes(8)  # Fibre Channel: 24 bytes (SPC-4 7.6.4.2)
        count = (1 << 14) >> choices[2] % 4
        ids = b"".join(one[:8] + at.to_bytes(8, "big") + one[16:] for at in range(count))
        data = (
            bytes(8) + (7).to_bytes(8, "big") + bytes(4) + bytes([0x08]) + bytes(3) + len(ids).to_bytes(4, "big") + ids
        )
        cdb = bytes([0x5F, 0, 0, 0, 0]) + len(data).to_bytes(4, "big") + b"\0"
        self._send(choices, "REGISTER with SPEC_I_PT", cdb, data)

    def do_claims(self, choices: bytes) -> None:
        """TEST UNIT READY that says it reads 4 GiB."""
        self._claim(choices, 0xFFFFFFFF)

    def _claim(self, choices: bytes, length: int) -> None:
        link = self.links[1 + choices[0] % 2]
        self._last = "TEST UNIT READY"
        pdus = [
            p.ScsiCommand(flags=FINAL | 0x40 | 1, itt=self.operation(link.who, "claim").number, expected_length=length)
            for _ in range(1 + choices[1] % 64)
        ]
        if not link.over:
            link.sock.arriving += link.initiator.encode(*pdus)
        self.settle()

    def do_reads(self, choices: bytes) -> None:
        """READ(16) of the maximum."""
        self._send(choices, "READ", read_16(0, TRANSFER // BLOCK), room=TRANSFER)

    def do_same(self, choices: bytes) -> None:
        """WRITE SAME(16) of the maximum."""
        self._send(choices, "WRITE SAME", cdbs.block_16(0x93, 0, TRANSFER // BLOCK), b"x" * BLOCK)

    def do_unmap(self, choices: bytes) -> None:
        """UNMAP with as many descriptors as there may be."""
        descriptors = b"".join((at * 8).to_bytes(8, "big") + (4).to_bytes(4, "big") + bytes(4) for at in range(256))
        length = len(descriptors)
        data = (length + 6).to_bytes(2, "big") + length.to_bytes(2, "big") + bytes(4) + descriptors
        self._send(choices, "UNMAP", bytes([0x42, 0, 0, 0, 0, 0, 0]) + len(data).to_bytes(2, "big") + b"\0", data)

    def do_sanitize(self, choices: bytes) -> None:
        """SANITIZE, OVERWRITE, of the whole disk."""
        self._send(choices, "SANITIZE", *cdbs.sanitize(False, False, b"abcd"))

    def do_turn(self, choices: bytes) -> None:
        """The loop goes on."""
        self.settle()
