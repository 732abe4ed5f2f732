"""The level of the ring: the kernel's commands to one unit, and processes that die and are replaced."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tcmu_core.testing.fake_kernel import OUT_OF_ORDER, READ_LEN, TMR, FakeKernel
from tests.simulation.book import CHECK, Violation
from tests.simulation.commands import COMMANDS, EVENTS, Run
from tests.simulation.operation import Operation
from tests.simulation.schedule import Schedule
from tests.simulation.world import RingWorld, sense_of

# The kernel's own, or for several units.
LEFT_OUT = {"reserve_6", "release_6", "out", "keys", "reservation", "copy", "sanitize", "full"}
WEIGHTS = {name: weight for name, weight in (COMMANDS | EVENTS).items() if name not in LEFT_OUT} | {
    "process": 90, "abort": 12, "reset": 6, "die": 10,
}  # fmt: skip
IN_ORDER = 2  # variant: a kernel that wants each answer in its command's own slot
ABORT_TASK, LUN_RESET = 1, 5  # TCMU_TMR_*
BUSY = 0x08


class RingRun(Run):
    """One run of a schedule: one initiator, one disk."""

    disks = 1
    initiators = 1

    def __init__(self, schedule: Schedule, log: Callable[[str], object] | None = None) -> None:
        super().__init__(schedule, log)
        in_order = bool(schedule.variant & IN_ORDER)
        self.kernel = FakeKernel(ring=2048, pages=24, flags=READ_LEN | TMR | (0 if in_order else OUT_OF_ORDER))
        self.by_id: dict[int, Operation] = {}
        self._begin()

    def _begin(self) -> None:
        variant = self.schedule.variant & ~IN_ORDER
        self.world = RingWorld(self.kernel, self.book.storages, self.stores, variant, self._offloaded)

    def _whose(self) -> Operation | None:
        if self._job is not None:
            return self._job.op
        return self.by_id.get(self.current_tag())

    def session_of(self, who: int) -> Any:
        """Return the kernel: there is one initiator."""
        return self.kernel

    def send(self, op: Operation, cdb: bytes, data: bytes = b"", room: int = 0) -> None:
        """Put a command into the ring, if there is room."""
        op.attribute = 1  # the kernel keeps their order
        if -(-max(len(data), room) // 4096) > len(self.kernel.free):
            return
        number = self.kernel.command(cdb, data=data or None, room=room)
        if number is None:
            return
        self.book.issue(op)
        self.by_id[number] = op
        if self.log is not None:
            self.log(f"  {op}: {cdb.hex(' ')}")

    def _read(self) -> None:
        """Take the answers that the kernel has found."""
        for answer in self.kernel.answers:
            op = self.by_id.pop(answer.cmd_id)
            if self.log is not None:
                self.log(f"  {op}: status {answer.status:02X}h")
            sense = sense_of(answer.sense) if answer.status == CHECK else (0, 0, 0)
            self.book.answered(op, answer.status, sense, answer.data)
        self.kernel.answers.clear()

    def idle(self) -> bool:
        """Return whether nothing is under way."""
        nothing = not self.world.posted and not self.book.running and not self.jobs
        return nothing and self.kernel.head == self.kernel.tail == self.kernel.cleaned

    def turn_all(self) -> None:
        """Let the loop make all calls that are due."""
        for _ in range(10_000):
            if not self.world.posted:
                return
            self.world.turn()
            self._read()
        raise Violation("hung", "the loop never comes to rest")

    def drain(self) -> None:
        """Let everything end, and see that it has."""
        self._bits = 0
        for _ in range(10_000):
            self.world.ring.process()
            self.turn_all()
            self._read()
            if self.book.violation is not None:
                raise self.book.violation
            if self.jobs:
                self._take(self.jobs[0])
            elif self.book.storages[0].pending:
                self.book.storages[0].pending[0].finish()
            elif not self.world.posted:
                break
        self.book.quiet()

    # -- steps --------------------------------------------------------------------------------------------------------

    def do_process(self, choices: bytes) -> None:
        """The process looks at the ring."""
        self.world.ring.process()
        self._read()

    def do_turn(self, choices: bytes) -> None:
        """The loop makes some of the calls that are due, or all."""
        for _ in range(1 << 10 if choices[0] & 1 else 1 + choices[0] % 4):
            if not self.world.posted:
                break
            self.world.turn()
            self._read()

    def do_abort(self, choices: bytes) -> None:
        """The kernel tells that it has aborted a command; it is to be answered all the same."""
        waiting = list(self.by_id)
        if waiting:
            self._tell(ABORT_TASK, [waiting[choices[0] % len(waiting)]])

    def do_reset(self, choices: bytes) -> None:
        """The kernel tells of a reset."""
        self.book.reset([0], done=False)
        self._tell(LUN_RESET, list(self.by_id))

    def _tell(self, kind: int, ids: list[int]) -> None:
        used = (self.kernel.head - self.kernel.cleaned) % self.kernel.ring
        if self.kernel.ring - used > 512:
            for number in ids:
                self.by_id[number].aborted = True
            self.kernel.abort(kind, ids)

    def do_die(self, choices: bytes) -> None:
        """The process is killed. What it has answered holds; what it has not, the kernel answers with BUSY."""
        if self.log is not None:
            self.log("  the process dies, another one begins")
        for storage in self.book.storages:
            storage.wipe_process(choices[0])
        self.jobs.clear()
        self.book.running.clear()
        self.kernel.bell()
        self._read()
        for sent in self.kernel.sent.values():
            self.kernel.free += sent.pages
        self.kernel.sent.clear()
        self.kernel.head = self.kernel.cleaned = 0
        struct.pack_into("=I", self.kernel.memory, 64, 0)
        for op in self.by_id.values():
            self.book.answered(op, BUSY, (0, 0, 0))
        self.by_id.clear()
        self.book.restart()
        self._begin()
