"""Task: a SCSI command in the engine's hands, and where its response goes."""

from __future__ import annotations

from dataclasses import dataclass

from tcmu_core.iscsi.buffers import Memory
from tcmu_core.iscsi.constants import BHS
from tcmu_core.scsi.command import Command


@dataclass(eq=False, slots=True)
class Task:
    """One command: its tag and LUN, what the initiator expects, and (for a read) room for Data-In in `memory`.

    `segments` are (offset of the BHS, offset of the data, length) in `memory`; `pins` the memories that its write data
    lies in; `exp_data_sn` counts the R2Ts that were sent for it.
    """

    command: Command
    itt: int
    lun: bytes
    expected_length: int
    reading: bool
    segments: list[tuple[int, int, int]]
    memory: Memory | None = None
    pins: list[Memory] | None = None
    exp_data_sn: int = 0
    bidi: int | None = None

    def unpin(self) -> None:
        """Let go of the memories that it uses."""
        if self.memory is not None:
            self.memory.pins -= 1
        for memory in self.pins or ():
            memory.pins -= 1
        self.memory = self.pins = None


def lay_out(
    at: int, length: int, max_segment: int, max_burst: int, header_digest: bool, data_digest: bool
) -> tuple[list[tuple[int, int, int]], int]:
    """Return the segments of `length` bytes of Data-In from offset `at` on, and the offset behind them.

    No segment is longer than `max_segment`, and none crosses a burst of `max_burst` bytes (RFC 7143 11.7.1).
    """
    segments = []
    done = 0
    while done < length:
        count = min(length - done, max_segment, max_burst - done % max_burst)
        data = at + BHS + 4 * header_digest
        segments.append((at, data, count))
        at = data + ((count + 3) & ~3) + 4 * data_digest
        done += count
    return segments, at
