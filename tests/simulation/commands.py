"""What every level has: steps that send SCSI commands, and steps in which hooks end, late, torn, or with an error."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tests.simulation import cdbs, registrations
from tests.simulation.book import Book
from tests.simulation.changes import CHANGES, Changes
from tests.simulation.operation import Operation
from tests.simulation.schedule import Schedule
from tests.simulation.storage import BLOCK, ZERO, Hook
from tests.simulation.world import GROUPS, THROUGH, current_command

INITIATORS = 3
DISKS = 2
SIZE = 6  # blocks of a disk

COMMANDS = {
    "write": 60, "read": 30, "compare": 25, "or": 12, "atomic": 16, "sync": 14, "zero": 12, "copy": 20, "sanitize": 8,
    "short": 8, "out": 40, "keys": 6, "reservation": 6, "ready": 4,
} | CHANGES  # fmt: skip
EVENTS = {"complete": 110, "fail": 10, "tear": 22, "turn": 80, "full": 8}


class Store:
    """Where registrations outlive the process; its file system may be full."""

    shared = False

    def __init__(self, run: Run) -> None:
        self._run = run
        self.data = b""
        self._version = 0

    def load(self) -> tuple[bytes, str]:
        """Return what was saved."""
        return self.data, str(self._version)

    def announce(self) -> None:
        """Tell nobody."""

    def watch(self, _callback: Callable[[], Future[None]]) -> Callable[[], object]:
        """Watch nothing: nobody else has it."""
        return lambda: None

    def replace(self, state: bytes, version: str) -> str | Future[str]:
        """Save, if there is room: at once, or when a thread of the pool takes it."""

        def work() -> str:
            if self._run.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            assert version == str(self._version), "nobody else has it"
            self.data, self._version = state, self._version + 1
            return str(self._version)

        if self._run.save_now():
            return work()
        job = Job(None, work)
        self._run.jobs.append(job)
        return job.future


class Job:
    """A call that waits for a thread of the pool."""

    def __init__(self, op: Operation | None, fn: Callable[[], Any]) -> None:
        self.op = op
        self.fn = fn
        self.future: Future[Any] = Future()

    def __str__(self) -> str:
        """Name it for people."""
        return f"a call for {self.op or 'what is saved'} that waits for a thread"


class Run(Changes):
    """One run of a schedule. `log` gets a line for each thing that happens, where somebody wants to read it."""

    disks = DISKS
    size = SIZE
    initiators = INITIATORS

    def __init__(self, schedule: Schedule, log: Callable[[str], object] | None = None) -> None:
        self.schedule = schedule
        self.log = log
        self.full = False
        self.book = Book(self._whose, self._manner, self.disks, SIZE, not schedule.variant & THROUGH)
        self.moving: set[int] = set()
        self.set_up = dict.fromkeys(GROUPS, 0)
        self.stores = [Store(self) for _ in range(self.disks)]
        self.jobs: list[Job] = []
        self._job: Job | None = None
        self._bits = 0
        self._error = False

    def run(self) -> None:
        """Do every step, then let everything end; raises Violation."""
        for name, choices in self.schedule.steps:
            self._bits = choices[5]
            if self.log is not None:
                self.log(f"{name} {choices.hex()}")
            getattr(self, "do_" + name)(choices)
            if self.book.violation is not None:
                raise self.book.violation
            if self.idle():
                self.book.quiet()
        self.drain()

    def drain(self) -> None:
        """Let everything end, and see that it has."""
        raise NotImplementedError

    def idle(self) -> bool:
        """Return whether nothing is under way."""
        raise NotImplementedError

    def session_of(self, who: int) -> Any:
        """Return what an initiator sends its commands by; None when it can't send one now."""
        raise NotImplementedError

    def send(self, op: Operation, cdb: bytes, data: bytes = b"", room: int = 0) -> None:
        """Send a command: with data, or with room for an answer."""
        raise NotImplementedError

    def turn_all(self) -> None:
        """Let the loop make all calls that are due."""
        raise NotImplementedError

    # -- what the storage asks ----------------------------------------------------------------------------------------

    def _whose(self) -> Operation | None:
        if self._job is not None:
            return self._job.op
        tag = self.current_tag()
        return self.book.operations[tag - 1] if tag else None

    def current_tag(self) -> int:
        """Return the tag of the command that the engine is at work for; 0: of none."""
        command = current_command()
        if command is None or isinstance(command, int):
            return command or 0
        tag: int = command.tag or self.world.origins.get(command, 0)
        return tag

    def _manner(self) -> str:
        if self._error:
            self._error = False
            return "error"
        now = self._bits & 1
        self._bits >>= 1
        return "now" if now else "later"

    def save_now(self) -> bool:
        """Return whether what is to be saved is saved at once."""
        return self._manner() != "later"

    def _offloaded(self, disk: int, fn: Callable[[], Any]) -> Future[Any]:
        job = Job(self._whose(), fn)
        self.jobs.append(job)
        return job.future

    def _take(self, job: Job) -> None:
        self.jobs.remove(job)
        self._job = job
        try:
            result = job.fn()
        except OSError as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
        finally:
            self._job = None

    # -- commands -----------------------------------------------------------------------------------------------------

    def _operation(self, name: str, choices: bytes, *, disk: bool = True) -> Operation:
        """Return a new operation: who sends it, to which unit, with which attribute, over which blocks."""
        book = self.book
        who, lun = choices[0] % self.initiators, int(choices[1] > 191) % self.disks
        op = Operation(len(book.operations) + 1, name, who, lun, book.now)
        op.session = self.session_of(op.who)
        kind = choices[4]
        op.attribute = 1 if kind < 192 else 2 if kind < 240 else 3
        return op

    def _span(self, choices: bytes) -> tuple[int, int]:
        first = choices[2] % SIZE
        return first, min(1 + choices[3] % 3, SIZE - first)

    def _stamp(self, op: Operation, count: int) -> bytes:
        return b"".join((op.number << 8 | at + 1).to_bytes(4, "big") * (BLOCK // 4) for at in range(count))

    def do_write(self, choices: bytes) -> None:
        """WRITE(10), with FUA sometimes."""
        op = self._operation("write", choices)
        first, count = self._span(choices)
        op.medium, op.writes = "write", [(op.lun, first + at) for at in range(count)]
        op.payload = self._stamp(op, count)
        op.forced = choices[4] & 7 == 1
        self.send(op, cdbs.block_10(cdbs.WRITE_10, first, count, cdbs.FUA if op.forced else 0), op.payload)

    def do_short(self, choices: bytes) -> None:
        """WRITE(10) with less data than the CDB announces."""
        op = self._operation("write", choices)
        first, count = self._span(choices)
        op.medium, op.writes = "write", [(op.lun, first + at) for at in range(count)]
        op.payload = self._stamp(op, count)[:-312]
        self.send(op, cdbs.block_10(cdbs.WRITE_10, first, count), op.payload)

    def do_read(self, choices: bytes) -> None:
        """READ(10)."""
        op = self._operation("read", choices)
        first, count = self._span(choices)
        op.medium, op.reads = "read", [(op.lun, first + at) for at in range(count)]
        self.send(op, cdbs.block_10(cdbs.READ_10, first, count), room=count * BLOCK)

    def do_compare(self, choices: bytes) -> None:
        """COMPARE AND WRITE of what is there now."""
        op = self._operation("compare", choices)
        first, count = self._span(choices)
        op.medium, op.atomic = "write", True
        op.reads = op.writes = [(op.lun, first + at) for at in range(count)]
        op.expected = b"".join(self.book.storages[op.lun].blocks[first : first + count])
        op.payload = self._stamp(op, count)
        self.send(op, cdbs.compare_and_write(first, count), op.expected + op.payload)

    def do_or(self, choices: bytes) -> None:
        """ORWRITE(16)."""
        op = self._operation("or", choices)
        first, count = self._span(choices)
        op.medium, op.atomic = "write", True
        op.reads = op.writes = [(op.lun, first + at) for at in range(count)]
        op.payload = self._stamp(op, count)
        self.send(op, cdbs.block_16(0x8B, first, count), op.payload)

    def do_atomic(self, choices: bytes) -> None:
        """WRITE ATOMIC(16)."""
        op = self._operation("atomic", choices)
        first, count = self._span(choices)
        op.medium, op.atomic = "write", True
        op.writes = [(op.lun, first + at) for at in range(count)]
        op.payload = self._stamp(op, count)
        self.send(op, cdbs.write_atomic(first, count), op.payload)

    def do_zero(self, choices: bytes) -> None:
        """UNMAP, or WRITE SAME(16) of zeros or of something else."""
        op = self._operation("zero", choices)
        first, count = self._span(choices)
        op.medium, op.writes = "write", [(op.lun, first + at) for at in range(count)]
        if choices[3] < 85:
            op.payload = bytes(count * BLOCK)
            self.send(op, *cdbs.unmap(first, count))
            return
        pattern = ZERO if choices[3] < 170 else self._stamp(op, 1)
        op.payload = pattern * count
        self.send(op, cdbs.block_16(0x93, first, count), pattern)

    def do_sync(self, choices: bytes) -> None:
        """SYNCHRONIZE CACHE(10)."""
        op = self._operation("sync", choices)
        op.medium, op.need = "write", []
        self.send(op, cdbs.block_10(0x35, 0, 0))

    def do_copy(self, choices: bytes) -> None:
        """EXTENDED COPY between the units, or within one."""
        op = self._operation("copy", choices)
        first, count = self._span(choices)
        source, destination = choices[5] >> 6 & 1, choices[5] >> 7 & 1
        to = choices[4] % (SIZE - count + 1)
        op.apart = True
        op.medium = "write"
        op.reads = [(source, first + at) for at in range(count)]
        op.writes = [(destination, to + at) for at in range(count)]
        names = self.world.names
        self.send(op, *cdbs.extended_copy(names[source], names[destination], [(count, first, to)]))

    def do_sanitize(self, choices: bytes) -> None:
        """SANITIZE, or FORMAT UNIT: of the whole medium."""
        op = self._operation("sanitize", choices)
        op.apart = op.background = True
        immediate = choices[2] > 191
        kind = choices[3] % 3
        op.medium = "write"
        every = [(op.lun, block) for block in range(self.book.conditions[op.lun].size)]
        if not immediate:
            op.exclusive = True
            op.writes = every
        pattern = op.number.to_bytes(4, "big")
        op.payload = pattern * (BLOCK // 4 * SIZE) if kind == 1 else bytes(BLOCK * SIZE)
        if kind == 2:
            op.name, op.exclusive, op.writes = "format", True, every
            cdb, data = bytes([0x04, 0, 0, 0, 0, 0]), b""
        else:
            cdb, data = cdbs.sanitize(kind == 0, immediate, pattern)
        self.send(op, cdb, data)

    def do_ready(self, choices: bytes) -> None:
        """TEST UNIT READY."""
        self.send(self._operation("ready", choices), bytes(6))

    def do_out(self, choices: bytes) -> None:
        """PERSISTENT RESERVE OUT: with the right key mostly, and so that registrations are there to play with."""
        op = self._operation("out", choices)
        state = self.book.reservations[op.lun].likely()
        known = state.key(op.who)
        action = (
            (0, 0, 0, 0, 0, 6, 6, 1, 3, 5)[choices[2] % 10]
            if known is None
            else (1, 1, 2, 3, 4, 5, 5, 5, 0, 6)[choices[2] % 10]
        )
        others = sorted(key for who, key in state.keys if who != op.who)
        key = (known or 0) if choices[5] & 0x70 else 99
        if action in {registrations.PREEMPT, registrations.PREEMPT_AND_ABORT}:
            new = others[choices[3] % len(others)] if others else choices[3] & 1
        else:
            new = op.who + 1 if known is None or choices[3] < 128 else 0
        kind = registrations.KINDS[(choices[3] >> 3) % len(registrations.KINDS)]
        op.name = f"reserve out ({registrations.ACTIONS[action]})"
        op.request = registrations.Request(op.number, op.who, action, key, new, kind, bool(choices[3] & 1))
        self.send(op, *cdbs.reserve_out(action, kind, key, new, op.request.lasting))

    def do_keys(self, choices: bytes) -> None:
        """PERSISTENT RESERVE IN, READ KEYS."""
        op = self._operation("keys", choices)
        op.medium, op.seen = "keys", set()
        self.send(op, cdbs.reserve_in(0, 256), room=256)

    def do_reservation(self, choices: bytes) -> None:
        """PERSISTENT RESERVE IN, READ RESERVATION."""
        op = self._operation("reservation", choices)
        op.medium, op.seen = "keys", set()
        self.send(op, cdbs.reserve_in(1, 256), room=256)

    # -- what the world does ------------------------------------------------------------------------------------------

    def _pick(self, choice: int) -> Hook | Job | None:
        pending: list[Any] = [hook for storage in self.book.storages for hook in storage.pending]
        pending += self.jobs
        return pending[choice % len(pending)] if pending else None

    def do_complete(self, choices: bytes) -> None:
        """A hook ends, or a thread takes a call."""
        found = self._pick(choices[0])
        if found is None:
            return
        if self.log is not None:
            self.log(f"  done: {found}")
        if isinstance(found, Job):
            self._take(found)
        else:
            found.finish()
        if choices[1] & 1:
            self.turn_all()

    def do_fail(self, choices: bytes) -> None:
        """A hook fails, perhaps half done; or the next one does at once."""
        found = self._pick(choices[0])
        if choices[1] < 64 or not isinstance(found, Hook):
            self._error = True
            return
        if self.log is not None:
            self.log(f"  failed: {found}")
        for block in found.left[: choices[2] % 3]:
            found.move(block)
        found.finish(OSError(errno.EIO, "the schedule has it so"))

    def do_tear(self, choices: bytes) -> None:
        """A hook moves some of its blocks, and goes on."""
        found = self._pick(choices[0])
        if isinstance(found, Hook):
            for block in [block for at, block in enumerate(found.left) if choices[1] >> at & 1]:
                found.move(block)
                if self.log is not None:
                    self.log(f"  block {block} is moved: {found}")

    def do_full(self, choices: bytes) -> None:
        """The file system of the saved reservations fills up, or has room again."""
        self.full = bool(choices[0] & 1)
        self.book.full(self.full)
