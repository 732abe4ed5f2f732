"""Transfer: a write whose data has not all come yet; what may come next, and what to ask for (RFC 7143 4.2.4)."""

from __future__ import annotations

from collections import deque

from tcmu_core.errors import CommandError
from tcmu_core.iscsi.budget import Account
from tcmu_core.iscsi.buffers import Memory
from tcmu_core.iscsi.constants import FINAL, RESERVED_TAG, RejectReason
from tcmu_core.iscsi.errors import PduError
from tcmu_core.iscsi.pdu import DataOut, ScsiCommand

MAX_PIECES = 64  # more views than this are packed into blocks
BLOCK = 1 << 20  # bytes of such a block at most: to make and fill a larger one would hold up everybody


class Burst:
    """One sequence of Data-Out: the data from `offset` to `end` is still to come, `data_sn` is next."""

    __slots__ = ("data_sn", "end", "offset", "ttt")

    def __init__(self, ttt: int, offset: int, end: int) -> None:
        self.ttt = ttt
        self.offset = offset
        self.end = end
        self.data_sn = 0


class Transfer:
    """The data of one write command on its way in. `want` bytes are taken; `pieces` hold what has come, in order."""

    def __init__(self, account: Account, command: ScsiCommand, cdb: bytes, want: int, bidi: int | None) -> None:
        self._account = account
        self._promised = 0  # bytes of the account
        self.lun = command.lun
        self.itt = command.itt
        self.flags = command.flags
        self.expected_length = command.expected_length
        self.cdb = cdb
        self.want = want
        self.bidi = bidi
        self.received = 0
        self.asked = 0  # up to where R2Ts, or the initiator of its own accord, have announced data
        self.r2t_sn = 0
        self.bursts: deque[Burst] = deque()
        self.pieces: list[memoryview] = []
        self.pins: list[Memory] = []
        self.failed: CommandError | None = None
        self.admitted = False  # may ask for data
        self._block = memoryview(b"")  # the last one that data is packed into, of which `_filled` bytes are taken
        self._filled = 0
        self._packed = 0  # bytes of all blocks; all data is in them, as soon as there is one

    def promise(self, size: int) -> bool:
        """Have memory kept for `size` bytes of data in all; False if there is none."""
        more = size - self._covered
        if more > 0:
            if not self._account.allows_data(more):
                return False
            self._account.charge(more)
            self._promised += more
        return True

    @property
    def _covered(self) -> int:
        return self._promised + self._packed

    def keep(self, data: memoryview, memory: Memory) -> None:
        """Take the next bytes of data, which lie in `memory`."""
        if not data:
            return
        self.received += len(data)
        if not self._packed and len(self.pieces) < MAX_PIECES:
            if not self.pins or self.pins[-1] is not memory:
                memory.pins += 1
                self.pins.append(memory)
            self.pieces.append(data)
        else:
            self.pack()
            self._copy(data, len(data))

    def pack(self) -> None:
        """Have all data that has come in blocks of our own; they take what was promised."""
        if not self._packed:
            loose, self.pieces = self.pieces, []
            left = sum(map(len, loose))
            for piece in loose:
                self._copy(piece, left)
                left -= len(piece)
            self.unpin()

    def _copy(self, data: memoryview, left: int) -> None:
        """Put `data` behind what is packed; it is the first of `left` bytes that are."""
        while data:
            if self._filled == len(self._block):
                size = min(BLOCK, max(left, self._promised))
                kept = min(size, self._promised)
                self._account.release(kept)
                self._promised -= kept
                self._block, self._filled = self._account.block(size), 0
                self._packed += size
                self.pieces.append(self._block)
            end = min(self._filled + len(data), len(self._block))
            count = end - self._filled
            self._block[self._filled : end] = data[:count]
            self.pieces[-1] = self._block[:end]
            self._filled = end
            data, left = data[count:], left - count

    def unpin(self) -> None:
        """Let go of the memories that the data lies in."""
        for memory in self.pins:
            memory.pins -= 1
        self.pins.clear()

    def settle(self) -> None:
        """Give back what was promised: no more data comes."""
        self._account.release(self._promised)
        self._promised = 0

    def drop(self) -> None:
        """Forget the data."""
        self.settle()
        self.unpin()
        self.pieces = []
        self._block = memoryview(b"")
        self._filled = self._packed = 0

    def unsolicited(self, end: int) -> None:
        """Expect data up to `end` (at most) that the initiator sends without being asked."""
        self.asked = end
        self.bursts.append(Burst(RESERVED_TAG, self.received, end))

    def ask(self, ttt: int, max_burst: int) -> Burst:
        """Note an R2T for the next bytes and return it."""
        burst = Burst(ttt, self.asked, min(self.asked + max_burst, self.want))
        self.asked = burst.end
        self.r2t_sn += 1
        self.bursts.append(burst)
        return burst

    def take(self, pdu: DataOut, memory: Memory) -> None:
        """Take one Data-Out (11.7).

        Raises:
            PduError: it is not what must come next. The command has failed then, and what follows is swallowed.
        """
        if not self.bursts or self.bursts[0].ttt != pdu.ttt:
            raise PduError(f"target transfer tag {pdu.ttt:08X}h is not due", RejectReason.INVALID_PDU_FIELD)
        burst = self.bursts[0]
        if self.failed is None:
            self._check(pdu, burst)
            assert isinstance(pdu.data, memoryview)
            self.keep(pdu.data, memory)
        burst.data_sn += 1
        burst.offset += len(pdu.data)
        if pdu.flags & FINAL:
            self.bursts.popleft()
            if pdu.ttt == RESERVED_TAG:
                self.asked = self.received  # less than FirstBurstLength: the rest is asked for

    def swallow(self, pdu: DataOut) -> None:
        """Pass over a Data-Out of a command that has failed; its F bit ends the burst all the same."""
        if pdu.flags & FINAL and self.bursts and self.bursts[0].ttt == pdu.ttt:
            self.bursts.popleft()

    def _check(self, pdu: DataOut, burst: Burst) -> None:
        end = burst.offset + len(pdu.data)
        final = bool(pdu.flags & FINAL)
        if pdu.ttt != RESERVED_TAG and pdu.lun != self.lun:
            raise PduError("Data-Out for another LUN", RejectReason.INVALID_PDU_FIELD)
        if pdu.data_sn != burst.data_sn:
            raise PduError(f"DataSN {pdu.data_sn} where {burst.data_sn} is due")
        if pdu.offset != burst.offset:
            raise PduError(f"buffer offset {pdu.offset} where {burst.offset} is due")
        if end > burst.end:
            raise PduError("more data than the burst has")
        if end == burst.end and not final:
            raise PduError("the last PDU of a burst lacks the F bit")
        if final and end < burst.end and pdu.ttt != RESERVED_TAG:
            raise PduError("less data than the R2T asks for")
