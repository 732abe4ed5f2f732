"""The level of memory: one session does what it can to make us keep its bytes, and we may keep so many and no more."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import FINAL, RESERVED_TAG
from tests.simulation.book import Violation
from tests.simulation.bulk import BLOCK, BulkRun, read_16, write_16
from tests.simulation.schedule import Schedule
from tests.simulation.world import Counted, counted

WEIGHTS = {
    "ahead": 40, "due": 40, "reads": 30, "dribble": 40, "asked": 30, "pings": 30, "claims": 30, "window": 30,
    "complete": 30, "turn": 60,
}  # fmt: skip
KIB, MIB = 1 << 10, 1 << 20
MEMORY, TRANSFER, SEGMENT, SEND_QUEUE = 4 * MIB, MIB, 16 * KIB, 256 * KIB
BOUND = MEMORY + 64 * KIB  # the session's limit, and what we do not look at so closely


def _count(choices: bytes) -> int:
    """Return how many to send: a few mostly, a thousand sometimes."""
    return choices[0] * 4 if choices[3] >= 224 else choices[0] % 64


class MemoryRun(BulkRun):
    """One run of a schedule. Everything is a sixteenth of what it is by default."""

    size = 4 * MIB // BLOCK
    limits = {
        "queue_depth": 1024, "segment": SEGMENT, "burst": 64 * KIB, "first_burst": 16 * KIB, "outstanding_r2t": 4,
        "transfer": TRANSFER, "memory": MEMORY, "send_queue": SEND_QUEUE,
    }  # fmt: skip

    def __init__(self, schedule: Schedule, log: Callable[[str], object] | None = None) -> None:
        self._counting = counted()
        self._counting.__enter__()
        self._kept = b""
        super().__init__(schedule, log)

    def begin(self) -> None:
        """The process is there: what it has now is no session's."""
        gc.collect()
        self._before = Counted.alive

    def run(self) -> None:
        """Do every step."""
        try:
            super().run()
        finally:
            self._counting.__exit__(None, None, None)

    def call(self, fn: Callable[..., object], *args: Any) -> Any:
        """Make one call of the loop, and look at what is kept then."""
        result = fn(*args)
        if Counted.alive - self._before > BOUND:
            gc.collect()  # what nobody can reach any more is not kept
            kept = Counted.alive - self._before
            if kept > BOUND:
                raise Violation("memory", f"one session makes us keep {kept} bytes; {BOUND} are allowed")
        return result

    def _send(self, *pdus: p.Pdu) -> None:
        link = self.links[0]
        if not link.over:
            link.sock.arriving += link.initiator.encode(*pdus)
            self.settle()

    def _command(self, cdb: bytes, flags: int, length: int, data: bytes = b"", *, final: bool = True) -> p.ScsiCommand:
        op = self.operation(0, "command")
        self.links[0].writing[op.number] = bytes(min(length, TRANSFER))
        return p.ScsiCommand(
            flags=flags | 1 | (FINAL if final else 0), itt=op.number, expected_length=length, cdb=cdb, data=data
        )

    def _length(self, choice: int) -> int:
        """Return the length of a transfer: one block, or up to the most that there is."""
        return max(BLOCK, TRANSFER >> choice % 12)

    def do_ahead(self, choices: bytes) -> None:
        """READs whose turn has not come: the one before them is kept back."""
        link = self.links[0]
        if not self._kept:
            self._kept = link.initiator.encode(self._command(read_16(0, 1), 0x40, BLOCK))
        size = self._length(choices[1])
        self._send(*(self._command(read_16(0, size // BLOCK), 0x40, size) for _ in range(_count(choices))))

    def do_due(self, choices: bytes) -> None:
        """The one that was kept back comes."""
        kept, self._kept = self._kept, b""
        if not self.links[0].over:
            self.links[0].sock.arriving += kept
            self.settle()

    def do_reads(self, choices: bytes) -> None:
        """READs in their turn."""
        size = self._length(choices[1])
        self._send(*(self._command(read_16(0, size // BLOCK), 0x40, size) for _ in range(_count(choices))))

    def do_dribble(self, choices: bytes) -> None:
        """WRITEs of which a few bytes come at a time."""
        size = self._length(choices[1])
        for _ in range(_count(choices)):
            command = self._command(write_16(0, size // BLOCK), 0x20, size, final=False)
            parts = [
                p.DataOut(flags=0, itt=command.itt, ttt=RESERVED_TAG, data_sn=at, offset=4 * at, data=b"abcd")
                for at in range(choices[2] % 80)
                if 4 * at + 4 <= size
            ]
            self._send(command, *parts)

    def do_asked(self, choices: bytes) -> None:
        """WRITEs whose data we ask for."""
        size = self._length(choices[1])
        self._send(*(self._command(write_16(0, size // BLOCK), 0x20, size) for _ in range(_count(choices))))

    def do_pings(self, choices: bytes) -> None:
        """NOP-Outs whose data we send back."""
        self._send(
            *(
                p.NopOut(immediate=True, itt=0x7000_0000 + at, data=bytes(SEGMENT >> choices[1] % 4))
                for at in range(choices[0])
            )
        )

    def do_claims(self, choices: bytes) -> None:
        """Commands that move nothing, and say that they read a lot."""
        self._send(*(self._command(bytes(16), 0x40, 0xFFFFFFFF >> choices[1] % 16) for _ in range(_count(choices))))

    def do_window(self, choices: bytes) -> None:
        """It stops reading what we send, or begins again."""
        sock = self.links[0].sock
        sock.window = 0 if sock.window is None else None
        self.settle()

    def do_complete(self, choices: bytes) -> None:
        """Some hooks end."""
        for _ in range(min(len(self.disk.pending), choices[0])):
            self.disk.pending.pop(choices[1] % len(self.disk.pending)).set_result(None)
        self.settle()

    def do_turn(self, choices: bytes) -> None:
        """The loop goes on."""
        self.settle()
