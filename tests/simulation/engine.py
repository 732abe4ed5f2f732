"""The level of the engine: commands of several initiators to the units of one target, without iSCSI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.book import Violation
from tests.simulation.changes import GROUPED
from tests.simulation.commands import COMMANDS, DISKS, EVENTS, INITIATORS, Run
from tests.simulation.operation import Operation
from tests.simulation.schedule import Schedule
from tests.simulation.world import GROUPS, World, sense_of

WEIGHTS = COMMANDS | EVENTS | GROUPED | {
    "abort": 12, "abort_set": 6, "clear_set": 6, "reset_unit": 6, "reset_target": 3, "drop": 22, "die": 6,
}  # fmt: skip


class EngineRun(Run):
    """One run of a schedule."""

    def __init__(self, schedule: Schedule, log: Callable[[str], object] | None = None) -> None:
        super().__init__(schedule, log)
        self._begin()

    def _begin(self) -> None:
        self.world = World(self.book.storages, self.stores, self.schedule.variant, self._offloaded, grouped=True)
        self.moving.clear()
        self.set_up = dict.fromkeys(GROUPS, 0)
        self.nexuses: list[Any] = [None] * INITIATORS

    def idle(self) -> bool:
        """Return whether nothing is under way."""
        return not self.world.posted and not self.book.running and not self.jobs

    def drain(self) -> None:
        """Let every hook end, oldest first, until nothing is under way."""
        self._bits = 0
        world = self.world
        for _ in range(100_000):
            if world.posted:
                world.turn()
            elif self.jobs:
                self._take(self.jobs[0])
            else:
                hook = next((hook for storage in self.book.storages for hook in storage.pending), None)
                if hook is None:
                    self.book.quiet()
                    return
                hook.finish()
            if self.book.violation is not None:
                raise self.book.violation
        raise Violation("hung", "it never comes to rest")

    def session_of(self, who: int) -> Any:
        if self.nexuses[who] is None:
            self.nexuses[who] = self.world.connect(who, quiet=True)
        return self.nexuses[who]

    def send(self, op: Operation, cdb: bytes, data: bytes = b"", room: int = 0) -> None:
        self.book.issue(op)
        buffer = bytearray(data or room)
        reading = not data
        if self.log is not None:
            self.log(f"  {op} to unit {op.lun}: {cdb.hex(' ')}, attribute {op.attribute}")

        def done(command: Any) -> None:
            if self.log is not None:
                self.log(f"  {op}: {'aborted' if command.aborted else f'status {command.status:02X}h'}")
            if command.aborted:
                self.book.aborted(op)
            elif op.dead is None:
                self.book.answered(op, command.status, sense_of(command.sense), bytes(buffer) if reading else b"")
            else:
                self.book.aborted(op)

        command, ended = self.world.start(op.session, op.lun, cdb, buffer, op.attribute, op.number, done)
        op.command = command
        if ended:
            done(command)

    def sessions(self) -> list[Any]:
        return [it for it in self.nexuses if it is not None]

    # -- what ends commands -------------------------------------------------------------------------------------------

    def _then(self, what: str, ended: list[Operation]) -> Callable[[], None]:
        """Return what is called when these have ended."""
        called = False

        def then() -> None:
            nonlocal called
            called = True
            if self.log is not None:
                self.log(f"  {what} is acknowledged")
            self.book.acknowledged(ended, what)

        self.book.promise(what, lambda: called)
        return then

    def do_abort(self, choices: bytes) -> None:
        """ABORT TASK of one of the commands under way."""
        under_way = [op for op in self.book.open if op.dead is None and not op.aborted]
        if under_way:
            op = under_way[choices[0] % len(under_way)]
            op.aborted = True
            self.world.abort(op.lun, op.command, self._then(f"ABORT TASK of {op}", [op]))

    def _ended_by(self, lun: int, who: int | None) -> list[Operation]:
        """Return what a function that aborts ends: of one nexus, or of all that there were, lost ones too."""
        found = [
            op
            for op in self.book.operations
            if op.lun == lun
            and not op.background
            and (who is None or (op.who == who and op.session is self.nexuses[who]))
        ]
        for op in found:
            op.aborted = True
        return found

    def do_abort_set(self, choices: bytes) -> None:
        """ABORT TASK SET."""
        who, lun = choices[0] % INITIATORS, int(choices[1] > 191)
        it = self.session_of(who)
        self.world.abort_set(it, lun, self._then("ABORT TASK SET", self._ended_by(lun, who)))

    def do_clear_set(self, choices: bytes) -> None:
        """CLEAR TASK SET."""
        who, lun = choices[0] % INITIATORS, int(choices[1] > 191)
        self.world.clear_set(self.session_of(who), lun, self._then("CLEAR TASK SET", self._ended_by(lun, None)))

    def do_reset_unit(self, choices: bytes) -> None:
        """LOGICAL UNIT RESET."""
        who, lun = choices[0] % INITIATORS, int(choices[1] > 191)
        self.world.reset_unit(self.session_of(who), lun, self._then("LOGICAL UNIT RESET", self._ended_by(lun, None)))
        self.book.reset([lun], done=True)

    def do_reset_target(self, choices: bytes) -> None:
        """TARGET RESET."""
        it = self.session_of(choices[0] % INITIATORS)
        ended = [op for lun in range(DISKS) for op in self._ended_by(lun, None)]
        self.world.reset_target(it, self._then("TARGET RESET", ended))
        self.book.reset(range(DISKS), done=True)

    def do_drop(self, choices: bytes) -> None:
        """A nexus is lost; its initiator comes back at once."""
        who = choices[0] % INITIATORS
        it = self.nexuses[who]
        if it is None:
            return
        if self.log is not None:
            self.log(f"  initiator {'abcdefgh'[who]} is gone, and comes back")
        self.book.lost(it)
        self.nexuses[who] = None
        gone = [op for op in self.book.operations if op.session is it and not op.background]
        called = False

        def then() -> None:
            nonlocal called
            called = True
            self.book.acknowledged(gone, "the loss of its nexus")

        if self.world.disconnect(it, then):
            self.book.promise("the loss of a nexus", lambda: called)
        self.nexuses[who] = self.world.connect(who, quiet=choices[1] < 224)

    def do_die(self, choices: bytes) -> None:
        """The process is killed, and another one takes its place."""
        if self.log is not None:
            self.log("  the process dies, another one begins")
        for storage in self.book.storages:
            storage.wipe_process(choices[0])
        self.jobs.clear()
        self.book.restart()
        self._begin()

    def do_turn(self, choices: bytes) -> None:
        """The loop makes some of the calls that are due, or all."""
        if choices[0] & 1:
            self.turn_all()
            return
        for _ in range(min(1 + choices[0] % 4, len(self.world.posted))):
            self.world.turn()

    def turn_all(self) -> None:
        for _ in range(10_000):
            if not self.world.posted:
                return
            self.world.turn()
        raise Violation("hung", "the loop never comes to rest")
