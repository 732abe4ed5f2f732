"""The book: what initiators were told, and whether the storage and the other answers agree with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.simulation.conditions import Conditions
from tests.simulation.operation import Operation
from tests.simulation.promises import Promises, Violation, told_by
from tests.simulation.registrations import CONFLICT, PREEMPT_AND_ABORT, UNTOUCHING, Possible
from tests.simulation.storage import BLOCK, Hook, Storage

GOOD, CHECK, TASK_ABORTED = 0x00, 0x02, 0x40
HARDWARE_ERROR, UNIT_ATTENTION = 0x4, 0x6
ORDERED, HEAD_OF_QUEUE = 2, 3
Wait = tuple[str, Callable[[], bool]]
Preemption = tuple[int, frozenset[int], int]  # its unit, whom it may take, and when it was given up


class Book(Promises):
    """Keeps every operation until its end and judges each event."""

    def __init__(
        self,
        whose: Callable[[], Operation | None],
        manner: Callable[[], str],
        disks: int,
        size: int,
        write_cache: bool = True,
    ) -> None:
        self.whose = whose
        self.manner = manner
        self.now = 0  # events since the start
        self.storages = storages = [Storage(number, size, self) for number in range(disks)]
        self.operations: list[Operation] = []
        self.open: dict[Operation, None] = {}  # those whose end was not acknowledged yet
        self.running: list[Hook] = []
        self.acked = [[1] * len(storage.blocks) for storage in storages]  # of `history`, by writes that were GOOD
        self.reservations = [Possible() for _ in storages]
        self.conditions = [Conditions(number, size, write_cache) for number in range(disks)]
        self._nexuses: dict[object, int] = {}  # sessions, numbered
        self.direct = True  # what was issued has reached the unit, and an answer its initiator
        self.violation: Violation | None = None  # the first one
        self._promised: list[Wait] = []
        self._going_on: list[Preemption] = []  # of nexuses that are gone: they may abort what comes now

    def nexus(self, session: object) -> int:
        """Return the number of a session; 0: of none."""
        return 0 if session is None else self._nexuses.setdefault(session, len(self._nexuses) + 1)

    # -- what initiators do -------------------------------------------------------------------------------------------

    def issue(self, op: Operation) -> None:
        """An operation was sent; its blocks and its kind are known."""
        self.now += 1
        op.issued = self.now
        self.operations.append(op)
        self.open[op] = None
        op.nexus = self.nexus(op.session)
        for setting, _ in op.sets:
            setting.begin(op)
        if op.need is not None:
            op.need = list(self.acked[op.lun])
        if op.request is not None:
            self.reservations[op.lun].begin(op.request)
            self._judge(self.open)
        else:
            op.may_pass = False
            op.silent = any(lun == op.lun and op.who in victims for lun, victims, _ in self._going_on)
            self._judge([op])

    def _judge(self, operations: Iterable[Operation]) -> None:
        """Note what the reservations that may be in force now say of operations under way."""
        for op in operations:
            if op.seen is not None:
                op.seen |= self.reservations[op.lun].states
            passes, conflicts = True, False
            wants = {(op.lun, op.medium)}
            if op.name == "copy":
                wants |= {(disk, "read") for disk, _ in op.reads[:1]} | {(disk, "write") for disk, _ in op.writes[:1]}
            for lun, medium in wants:
                verdicts = {state.allows(op.who, medium, op.nexus) for state in self.reservations[lun].states}
                passes = passes and True in verdicts
                conflicts = conflicts or False in verdicts
            op.may_pass = op.may_pass or passes
            op.may_conflict = op.may_conflict or conflicts

    def full(self, full: bool) -> None:
        """The file system that keeps reservations fills up, or has room again."""
        for one in self.reservations:
            one.full = full
            one.unfold()

    def promise(self, what: str, kept: Callable[[], bool]) -> None:
        """When nothing is under way any more, `kept()` must be true."""
        self._promised.append((what, kept))

    def lost(self, session: object, *, heard: bool = True) -> None:
        """A nexus is gone: nobody waits for its answers; `heard`: but we are told when its operations have ended."""
        self.now += 1
        for one in self.conditions:
            one.owed.pop(session, None)
        for op in list(self.open):
            if op.session is session and op.dead is None:
                op.dead = self.now
                if not heard:
                    del self.open[op]
                    self._set(op, False)
                    if op.request is not None:
                        self._unanswered(op)
        for possible in self.reservations:
            possible.lost(self.nexus(session))
        self._judge(self.open)

    def doomed(self, session: object) -> None:
        """A nexus may end, now or later."""
        for possible in self.reservations:
            possible.doom(self.nexus(session))
        self._judge(self.open)

    def reset(self, luns: Iterable[int], *, done: bool) -> None:
        """Units are reset; if it is not `done` yet, it may be at any time, though nobody may ever be told."""
        for lun in luns:
            self.conditions[lun].medium.unsettle()
            if done:
                self.reservations[lun].reset()
            else:
                self.reservations[lun].reset_comes()
        self._judge(self.open)

    def was_reset(self, luns: Iterable[int]) -> None:
        """Of a reset that was not done yet its initiator has heard that it is."""
        for lun in luns:
            self.reservations[lun].resets -= 1

    def resized(self, lun: int, blocks: int, sessions: Iterable[object]) -> None:
        """A unit has another size; these sessions are to hear of it before all else."""
        self.now += 1
        self.conditions[lun].resized(blocks, self.now, sessions)
        for op in self.open:
            if op.lun == lun and op.exclusive:
                op.writes = []  # of which size it finds the medium, nobody can tell

    def arrived(self, lun: int) -> None:
        """Target port groups that somebody has set up otherwise are where they were to go."""
        self._judged(self.conditions[lun].changed(None, self.running))

    # -- what hooks do ------------------------------------------------------------------------------------------------

    def called(self, hook: Hook) -> None:
        """A hook is called."""
        op = hook.op
        if op is None:
            self.running.append(hook)
            return
        if op.ended is not None and not op.background:
            raise self.wrong("late", f"{hook} is called after the end of {op} was acknowledged")
        if op.dead is not None and hook.writes and not op.background:
            self._haunts(hook, op)
        if not op.may_pass:
            raise self.wrong("reserved", f"{hook} is called against a reservation")
        self._judged(self.conditions[hook.storage.number].called(hook, op, self.running))
        if op.first_hook is None:
            op.first_hook = self.now
        if self.direct and hook.storage.number == op.lun and not op.apart:
            self._in_order(hook, op)
        self.running.append(hook)

    def _haunts(self, hook: Hook, op: Operation) -> None:
        assert op.dead is not None
        for other in self.operations:
            if other.status == GOOD and other.issued > op.dead and hook.overlaps(other.writes):
                raise self.wrong("ghost", f"{hook}, of a nexus that is gone, begins after {other} was GOOD")

    def _in_order(self, hook: Hook, op: Operation) -> None:
        """Check task attributes (SAM-5 8.6): an ORDERED command runs after those before it, and before those after."""
        preempting = any(other.request is not None and other.request.action == PREEMPT_AND_ABORT for other in self.open)
        if preempting:  # whom it has aborted, we are told when it is answered
            return
        if op.attribute == ORDERED:
            for other in self.running:
                if (
                    other.op is not None
                    and other.op is not op
                    and other.op.issued < op.issued
                    and other.op.lun == op.lun
                    and other.op.dead is None
                    and not other.op.aborted
                    and not other.op.apart
                    and other.storage is hook.storage
                ):
                    raise self.wrong("order", f"{hook}, ORDERED, runs while {other} does, which came before")
        if op.attribute != HEAD_OF_QUEUE:
            for older in self.open:
                if (
                    older.attribute == ORDERED
                    and older.issued < op.issued
                    and older.lun == op.lun
                    and older.dead is None
                    and not older.aborted
                    and older.medium not in UNTOUCHING
                    and not older.apart
                ):
                    raise self.wrong("order", f"{hook} runs before {older}, which is ORDERED and came before")

    def moved(self, hook: Hook, block: int) -> None:
        """A hook moves a block."""
        self.now += 1
        op = hook.op
        if hook.kind == "write":
            at = (block - hook.first) * BLOCK
            if b"".join(hook.buffers)[at : at + BLOCK] != hook.content[at : at + BLOCK]:
                raise self.wrong("buffers", f"the buffers of {hook} were used for something else")
        if op is not None:
            (op.wrote if hook.writes else op.looked)[hook.storage.number, block] = self.now

    def returned(self, hook: Hook, error: BaseException | None) -> None:
        """A hook has ended."""
        self.running.remove(hook)
        if error is not None and hook.op is not None:
            hook.op.faulted = True

    # -- what the target answers --------------------------------------------------------------------------------------

    def answered(self, op: Operation, status: int, sense: tuple[int, int, int], data: bytes = b"") -> None:
        """An operation was answered."""
        self.now += 1
        if op.ended is not None:
            raise self.wrong("twice", f"{op} is answered after its end was acknowledged")
        self._over(op, "was answered")
        op.status = status
        if self.direct and op.dead is None:
            told = told_by(data) if op.name == "sense" and status == GOOD else sense
            self._judged(self.conditions[op.lun].heard(op, status, told))
        if op.request is not None:
            if op.request.number in self.reservations[op.lun].pending:  # its nexus was not given up before
                self._reserved(op, status)
            # One at a time changes the registrations: what was given up before this one came is over.
            self._going_on = [one for one in self._going_on if one[0] != op.lun or one[2] > op.issued]
        elif status == CONFLICT:
            if not op.may_conflict:
                raise self.wrong("reserved", f"{op}: RESERVATION CONFLICT, and there is no reservation against it")
        elif status == GOOD and not op.may_pass:
            raise self.wrong("reserved", f"{op} is GOOD against a reservation")
        if status == CHECK and sense[0] == HARDWARE_ERROR and not op.faulted:
            raise self.wrong("internal", f"{op}: HARDWARE ERROR, and no hook of it has failed")
        self._set(op, status == GOOD)
        if status == GOOD:
            self._good(op, data)

    def aborted(self, op: Operation) -> None:
        """An operation has ended without an answer, as its abort asked for."""
        self.now += 1
        if op.ended is None:
            self._over(op, "has ended by an abort")
            op.status = TASK_ABORTED
        if op.request is not None:
            self._unanswered(op)

    def acknowledged(self, operations: Iterable[Operation], what: str) -> None:
        """What ends these operations was acknowledged."""
        self.now += 1
        for op in operations:
            if op.ended is None:
                self._over(op, f"was ended: {what} is acknowledged")
                if op.request is not None:
                    self._unanswered(op)
            else:
                self._still(op, f"was ended: {what} is acknowledged")

    def disturbed(self, operations: Iterable[Operation], what: str) -> None:
        """What ends these operations was acknowledged; their answers may be on the way still, or may never come."""
        self.now += 1
        for op in operations:
            self._still(op, f"was ended: {what} is acknowledged")
            op.silent = True

    def _over(self, op: Operation, how: str) -> None:
        self._still(op, how)
        op.ended = self.now
        self.open.pop(op, None)
        if how != "was answered":
            self._set(op, False)

    def _set(self, op: Operation, good: bool) -> None:
        """A command that changes settings of its unit has ended: they are as it wants, or nobody knows."""
        for setting, value in op.sets:
            setting.end(op, value if good else None)

    def _still(self, op: Operation, how: str) -> None:
        for hook in self.running:
            if hook.op is op and not op.background:
                raise self.wrong("unfinished", f"{op} {how} while {hook} has not returned")

    def _reserved(self, op: Operation, status: int) -> None:
        victims = self.reservations[op.lun].answered(op.request.number, status)
        if victims is None:
            raise self.wrong("reserved", f"{op}: status {status:02X}h agrees with no state that there may be")
        self._judge(self.open)
        if op.request.action == PREEMPT_AND_ABORT and status == GOOD:
            ended = [
                other
                for other in self.operations
                if other.who in victims
                and other.lun == op.lun
                and other.issued < op.issued
                and other.medium not in UNTOUCHING
                and not other.background
            ]
            if self.direct:
                self.acknowledged(ended, f"{op} that preempts it")
            else:
                self.disturbed(
                    [one for one in ended if one.first_hook is not None and one.first_hook < op.issued],
                    f"{op} that preempts it",
                )
                for one in self.open:
                    one.silent = one.silent or (one.who in victims and one.lun == op.lun)

    def _unanswered(self, op: Operation) -> None:
        """A request will not be answered."""
        self._in_vain(op)
        self.reservations[op.lun].forget(op.request.number)

    def _in_vain(self, op: Operation) -> None:
        """A request is not answered: whom it has preempted, if it has, may wait for answers in vain."""
        if op.request.action == PREEMPT_AND_ABORT:
            victims = self.reservations[op.lun].might_take(op.request.number)
            self._going_on.append((op.lun, victims, self.now))
            for one in self.open:
                one.silent = one.silent or (one.who in victims and one.lun == op.lun)

    def restart(self) -> None:
        """The process died: nothing of it answers any more, and what was kept is restored."""
        self.now += 1
        for op in self.open:
            op.dead = op.ended = self.now
        self.open.clear()
        self.running.clear()
        self._promised.clear()
        self._going_on.clear()
        for one in self.reservations:
            one.restart()
        for unit in self.conditions:
            unit.restart()

    # -- the end ------------------------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Nothing is under way any more: every command must have ended, and every promise been kept."""
        for op in self.operations:
            if op.request is not None and op.request.number in self.reservations[op.lun].pending:
                self._in_vain(op)
        for op in self.open:
            if not op.silent:
                raise self.wrong("hung", f"{op} never ends, though no hook is running")
        for what, kept in self._promised:
            if not kept():
                raise self.wrong("hung", f"{what} is never acknowledged, though no hook is running")
        self._promised.clear()
        self._going_on.clear()
