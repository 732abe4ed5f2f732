"""The level of sessions: initiators on iSCSI connections to the portal, over a network in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.book import Violation
from tests.simulation.commands import COMMANDS, DISKS, EVENTS, INITIATORS, Run
from tests.simulation.link import Link, Management
from tests.simulation.net import WRITE, Loop, Socket
from tests.simulation.operation import Operation
from tests.simulation.schedule import Schedule
from tests.simulation.world import TARGET, PortalWorld, limits, sense_of

WEIGHTS = COMMANDS | EVENTS | {
    "deliver": 160, "login": 16, "logout": 8, "cut": 14, "window": 8, "hold": 10, "wait": 6, "die": 4,
    "abort": 12, "abort_set": 6, "clear_set": 6, "reset_unit": 6, "reset_target": 3, "cold_reset": 2,
}  # fmt: skip
WAYS = 6  # variants: how data goes
ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, UNIT_RESET, WARM_RESET, COLD_RESET = 1, 2, 4, 5, 6, 7  # RFC 7143 11.5.1
RESETS = {UNIT_RESET, WARM_RESET, COLD_RESET}


class SessionRun(Run):
    """One run of a schedule."""

    def __init__(self, schedule: Schedule, log: Callable[[str], object] | None = None) -> None:
        super().__init__(schedule, log)
        self.book.direct = False
        self._begin()
        for who in range(INITIATORS):
            self._login(who)
        self._settle()

    def _begin(self) -> None:
        self.loop = Loop()
        variant = self.schedule.variant & ~WAYS
        self.world = PortalWorld(self.loop, limits(), self.book.storages, self.stores, variant, self._offloaded)
        self.links: list[Link | None] = [None] * INITIATORS
        self.old: list[Link] = []

    def _isid(self, who: int) -> bytes:
        return bytes([0x80, 0, 0, 0, 0, who])

    def _name(self, who: int) -> str:
        return f"iqn.2026-01.test:{'abcdefgh'[who]}"

    def _login(self, who: int) -> None:
        sock = Socket(self.loop)
        self.world.accept(sock)
        before = self.links[who]
        if before is not None:
            self.old.append(before)
            self.book.doomed(before)
        link = self.links[who] = Link(self, who, self._name(who), TARGET, self._isid(who), sock)
        link.login()

    def _all(self) -> list[Link]:
        return [link for link in (*self.old, *self.links) if link is not None and not link.over]

    def _read(self) -> None:
        if self.world.error is not None:
            raise self.book.wrong("internal", self.world.error)
        for link in self._all():
            link.read()
        self.old = [link for link in self.old if not link.over]

    # -- what links tell ----------------------------------------------------------------------------------------------

    def answered(self, link: Link, op: Operation, status: int, sense: bytes, data: bytes) -> None:
        """An operation was answered."""
        if self.log is not None:
            self.log(f"  {op}: status {status:02X}h")
        self.book.answered(op, status, sense_of(sense), data)

    def refused(self, link: Link, op: Operation) -> None:
        """An operation was rejected as a PDU."""
        self.book.aborted(op)

    def managed(self, link: Link, request: Management, response: int) -> None:
        """A task management request was answered."""
        if self.log is not None:
            self.log(f"  {request.what}: response {response}")
        if response != 0:
            return
        if request.function in RESETS:
            self.book.was_reset(range(DISKS) if request.lun is None else [request.lun])
        self.book.acknowledged([op for op in request.operations if op.session is link], request.what)
        others = self._hit_by(link, request)
        begun = [op for op in others if op.first_hook is not None and op.first_hook < request.since]
        self.book.disturbed(begun, request.what)

    def _hit_by(self, link: Link, request: Management) -> list[Operation]:
        """Return what of other sessions a function may have ended; they may never be answered."""
        if request.function in {ABORT_TASK, ABORT_TASK_SET}:
            return []
        others = [
            op
            for op in self.book.operations
            if op.session is not link and op.ended is None and request.lun in {None, op.lun}
        ]
        for op in others:
            op.silent = True
        return others

    def logged_in(self, link: Link) -> None:
        """The login is over."""
        if self.log is not None:
            self.log(f"  {link} begins")
        self.world.hush(self._name(link.who), link.isid)

    def left(self, link: Link) -> None:
        """The session is over."""
        if self.log is not None:
            self.log(f"  {link} is over")
        self.book.lost(link, heard=False)
        for request in link.managing.values():
            self._hit_by(link, request)

    # -- the run ------------------------------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Return whether nothing is under way."""
        return (
            not self.loop.posted
            and not self.book.running
            and not self.jobs
            and all(link.quiet and link.sock.window is None for link in self._all())
        )

    def turn_all(self) -> None:
        """Let the loop make all calls that are due."""
        for _ in range(10_000):
            if not self.loop.posted:
                return
            self.loop.turn()
            self._read()
        raise Violation("hung", "the loop never comes to rest")

    def _settle(self) -> bool:
        """Let all that is on the way arrive, and the loop rest; True if anything happened."""
        anything = False
        moved = True
        while moved:
            moved = False
            for link in self._all():
                link.sock.window = None
                link.release()
                if link.sock.deliver(1 << 20) or link.sock.ready(WRITE):
                    moved = True
                    self._read()
                    self._check()
            if self.loop.posted:
                moved = True
                self.turn_all()
                self._check()
            anything = anything or moved
        return anything

    def _check(self) -> None:
        if self.book.violation is not None:
            raise self.book.violation

    def drain(self) -> None:
        """Let everything end, and see that it has."""
        self._bits = 0
        for _ in range(10_000):
            if self._settle():
                continue
            if self.jobs:
                self._take(self.jobs[0])
                continue
            hook = next((hook for storage in self.book.storages for hook in storage.pending), None)
            if hook is None:
                break
            hook.finish()
        for link in self._all():
            if link.sock.arriving:
                raise self.book.wrong("hung", f"{link} is not read from, though no hook is running")
        self.book.quiet()

    def session_of(self, who: int) -> Any:
        """Return the session of an initiator."""
        link = self.links[who]
        return link if link is not None and link.logged_in and not link.over else None

    def send(self, op: Operation, cdb: bytes, data: bytes = b"", room: int = 0) -> None:
        """Send a command, if its initiator has a session; else it logs in."""
        link = op.session
        if link is None:
            if self.links[op.who] is None or self.links[op.who].over:  # type: ignore[union-attr]
                self._login(op.who)
            return
        self.book.issue(op)
        if self.log is not None:
            self.log(f"  {op} to unit {op.lun}: {cdb.hex(' ')}, attribute {op.attribute}")
        way = self.schedule.variant >> 1 & 3  # how data goes: along with the command, unsolicited, asked for
        link.command(op, cdb, data, room, (1 << 20, 0, 512, 0)[way], unsolicited=way in {1, 2})

    # -- steps --------------------------------------------------------------------------------------------------------

    def do_deliver(self, choices: bytes) -> None:
        """Bytes arrive at the target: all of one connection or a few of them, or all of every one."""
        kind = choices[1]
        links = self._all()
        if not links:
            return
        chosen = links if kind >= 128 else [links[choices[0] % len(links)]]
        for link in chosen:
            link.sock.deliver(1 << 20 if kind >= 32 else 1 + choices[2])
            self._read()
        if choices[3] & 1:
            self.turn_all()

    def do_turn(self, choices: bytes) -> None:
        """The loop makes some of the calls that are due, or all."""
        for _ in range(1 << 10 if choices[0] & 1 else 1 + choices[0] % 4):
            if not self.loop.posted:
                break
            self.loop.turn()
            self._read()

    def do_login(self, choices: bytes) -> None:
        """An initiator logs in, on a new connection: its old session, if it has one, is reinstated."""
        self._login(choices[0] % INITIATORS)

    def do_logout(self, choices: bytes) -> None:
        """An initiator logs out."""
        link = self.session_of(choices[0] % INITIATORS)
        if link is not None:
            self.book.doomed(link)
            link.logout()

    def do_cut(self, choices: bytes) -> None:
        """A connection breaks; what was on the way is lost, or not."""
        link = self.links[choices[0] % INITIATORS]
        if link is not None and not link.over:
            self.book.doomed(link)
            if choices[1] & 1:
                link.sock.arriving.clear()
            link.sock.ended = True

    def do_window(self, choices: bytes) -> None:
        """An initiator reads what the target sends, or no more than a few bytes."""
        link = self.links[choices[0] % INITIATORS]
        if link is not None and not link.over:
            link.sock.window = None if link.sock.window is not None else choices[1]
            link.sock.ready(WRITE)
            self._read()

    def do_hold(self, choices: bytes) -> None:
        """The next request of an initiator is overtaken by the one behind it."""
        link = self.session_of(choices[0] % INITIATORS)
        if link is not None:
            link.hold = True

    def do_wait(self, choices: bytes) -> None:
        """Time passes, and with it the life of those who say nothing."""
        for link in self._all():
            self.book.doomed(link)
        self.loop.wait(choices[0] % 32)
        self._read()

    def do_die(self, choices: bytes) -> None:
        """The process is killed, and another one takes its place."""
        if self.log is not None:
            self.log("  the process dies, another one begins")
        for storage in self.book.storages:
            storage.wipe_process(choices[0])
        self.jobs.clear()
        self.book.restart()
        self._begin()

    # -- what ends commands -------------------------------------------------------------------------------------------

    def _manage(self, choices: bytes, function: int, what: str, lun: int | None, op: Operation | None = None) -> None:
        link = self.session_of(op.who if op is not None else choices[0] % INITIATORS)
        if link is None:
            return
        ended = (
            [op] if op is not None else [op for op in self.book.open if op.session is link and lun in {None, op.lun}]
        )
        for one in ended:
            one.aborted = True
        self.book.now += 1
        if function in RESETS:
            self.book.reset(range(DISKS) if lun is None else [lun], done=False)
        request = Management(function, what, tuple(ended), lun, self.book.now)
        link.manage(request, ended[0].number if op is not None else 0xFFFFFFFF, immediate=choices[4] > 200)

    def do_abort(self, choices: bytes) -> None:
        """ABORT TASK of one of the commands under way."""
        under_way = [op for op in self.book.open if op.dead is None and op.session is self.session_of(op.who)]
        if under_way:
            op = under_way[choices[0] % len(under_way)]
            self._manage(choices, ABORT_TASK, f"ABORT TASK of {op}", op.lun, op)

    def do_abort_set(self, choices: bytes) -> None:
        """ABORT TASK SET."""
        self._manage(choices, ABORT_TASK_SET, "ABORT TASK SET", int(choices[1] > 191))

    def do_clear_set(self, choices: bytes) -> None:
        """CLEAR TASK SET."""
        self._manage(choices, CLEAR_TASK_SET, "CLEAR TASK SET", int(choices[1] > 191))

    def do_reset_unit(self, choices: bytes) -> None:
        """LOGICAL UNIT RESET."""
        self._manage(choices, UNIT_RESET, "LOGICAL UNIT RESET", int(choices[1] > 191))

    def do_reset_target(self, choices: bytes) -> None:
        """TARGET WARM RESET."""
        self._manage(choices, WARM_RESET, "TARGET WARM RESET", None)

    def do_cold_reset(self, choices: bytes) -> None:
        """TARGET COLD RESET: all sessions end with it."""
        self._manage(choices, COLD_RESET, "TARGET COLD RESET", None)
