"""The book: what initiators were told, and whether the storage and the other answers agree with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.simulation.operation import Key, Operation
from tests.simulation.registrations import CONFLICT, PREEMPT_AND_ABORT, Possible
from tests.simulation.storage import BLOCK, Hook, Storage

GOOD, CHECK, TASK_ABORTED = 0x00, 0x02, 0x40
HARDWARE_ERROR, UNIT_ATTENTION = 0x4, 0x6
ORDERED, HEAD_OF_QUEUE = 2, 3
Wait = tuple[str, Callable[[], bool]]
Preemption = tuple[int, frozenset[int], int]  # its unit, whom it may take, and when it was given up


class Violation(AssertionError):
    """Something happened that must not. `kind` names the rule that it breaks."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Book:
    """Keeps every operation until its end and judges each event."""

    def __init__(self, whose: Callable[[], Operation | None], manner: Callable[[], str], disks: int, size: int) -> None:
        self.whose = whose
        self.manner = manner
        self.now = 0  # events since the start
        self.storages = storages = [Storage(number, size, self) for number in range(disks)]
        self.operations: list[Operation] = []
        self.open: dict[Operation, None] = {}  # those whose end was not acknowledged yet
        self.running: list[Hook] = []
        self.acked = [[1] * len(storage.blocks) for storage in storages]  # of `history`, by writes that were GOOD
        self.reservations = [Possible() for _ in storages]
        self.direct = True  # what was issued has reached the unit, and an answer its initiator
        self.violation: Violation | None = None  # the first one
        self._promised: list[Wait] = []
        self._going_on: list[Preemption] = []  # of nexuses that are gone: they may abort what comes now

    def wrong(self, kind: str, text: str) -> Violation:
        """Return what is to be raised. It is kept too: the product takes an error in a hook for the handler's."""
        violation = Violation(kind, text)
        self.violation = self.violation or violation
        return violation

    # -- what initiators do -------------------------------------------------------------------------------------------

    def issue(self, op: Operation) -> None:
        """An operation was sent; its blocks and its kind are known."""
        self.now += 1
        op.issued = self.now
        self.operations.append(op)
        self.open[op] = None
        if op.name == "sync":
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
            if op.medium == "none":
                op.may_pass = True
                continue
            passes, conflicts = True, False
            wants = {(op.lun, op.medium)}
            if op.name == "copy":
                wants |= {(disk, "read") for disk, _ in op.reads[:1]} | {(disk, "write") for disk, _ in op.writes[:1]}
            for lun, medium in wants:
                verdicts = {state.allows(op.who, medium) for state in self.reservations[lun].states}
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
        for op in list(self.open):
            if op.session is session and op.dead is None:
                op.dead = self.now
                if not heard:
                    del self.open[op]
                    if op.request is not None:
                        self._unanswered(op)

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
                    and older.medium != "none"
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
                and other.medium != "none"
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

    # -- what GOOD means ----------------------------------------------------------------------------------------------

    def _good(self, op: Operation, data: bytes) -> None:
        if op.writes:
            self._written(op)
        if op.name == "read":
            self._read(op, data)
        if op.need is not None:
            self._stable(op.lun, op.need, op)
        if op.seen is not None:
            self._told(op, data)
        if op.atomic or op.exclusive:
            self._undisturbed(op)
        for other in self.operations:
            if other is not op and other.status == GOOD and other.atomic | op.atomic:
                self._whole(*((op, other) if op.atomic else (other, op)))

    def _written(self, op: Operation) -> None:
        """GOOD: every block was written; nothing that is dead may still write over it."""
        for key in op.writes:
            if key not in op.wrote:
                raise self.wrong("unwritten", f"{op} is GOOD and block {key[1]} of disk {key[0]} was not written")
            acked = self.acked[key[0]]
            past = self.storages[key[0]].history[key[1]]
            own = next(at for at in range(len(past) - 1, -1, -1) if past[at][0] == op.wrote[key])
            acked[key[1]] = max(acked[key[1]], own + 1)
            if op.forced and self.storages[key[0]].stable[key[1]] <= own:
                raise self.wrong("volatile", f"{op} is GOOD with FUA and block {key[1]} is not on stable storage")
        for at, key in enumerate(op.writes):
            self._content(op, key, op.payload[at * BLOCK : (at + 1) * BLOCK], at)
        for hook in self.running:
            other = hook.op
            if other is None or not hook.writes or other.background:
                continue
            if other.dead is not None and other.dead < op.issued and hook.overlaps(op.writes):
                raise self.wrong(
                    "ghost", f"{op} is GOOD while {hook}, of a nexus that is gone, may still write over it"
                )
            if op.exclusive and hook.storage.number == op.lun and hook.since < max(op.wrote.values()):
                raise self.wrong("exclusive", f"{op} is GOOD while {hook} may still write what it held before")

    def _content(self, op: Operation, key: Key, sent: bytes, at: int) -> None:
        """GOOD: what was written is what the command makes of what was sent, and of what was there."""
        wrote = self._at(key, op.wrote[key])
        if op.name == "or":
            right = bytes(one | other for one, other in zip(self._at(key, op.looked[key]), sent, strict=True))
        elif op.name == "copy":
            right = self._at(op.reads[at], op.looked[op.reads[at]])
        else:
            right = sent + self._at(key, op.wrote[key] - 1)[len(sent) :]
        if wrote != right:
            raise self.wrong("content", f"{op} is GOOD and block {key[1]} of disk {key[0]} holds something else")
        if op.name == "compare" and self._at(key, op.looked[key]) != op.expected[at * BLOCK : (at + 1) * BLOCK]:
            raise self.wrong("atomic", f"{op} is GOOD, though it found something else than it compares with")

    def _told(self, op: Operation, data: bytes) -> None:
        """GOOD of PERSISTENT RESERVE IN: it tells of a state that there was meanwhile."""
        assert op.seen is not None
        body = data[8 : 8 + int.from_bytes(data[4:8], "big")]
        if op.name == "keys":
            told = sorted(body[at : at + 8] for at in range(0, len(body), 8))
            right = any(told == sorted(key.to_bytes(8, "big") for _, key in state.keys) for state in op.seen)
        else:
            kind = body[13] & 0xF if body else None
            right = any(kind == state.kind for state in op.seen)
        if not right:
            raise self.wrong("reserved", f"{op} tells of a state that there can't be")

    def _read(self, op: Operation, data: bytes) -> None:
        """GOOD: each block is one that was there while the command ran."""
        for at, (disk, block) in enumerate(op.reads):
            value = data[at * BLOCK : (at + 1) * BLOCK]
            for since, _by, was in reversed(self.storages[disk].history[block]):
                if was == value:
                    break
                if since <= op.issued:
                    raise self.wrong("stale", f"{op}: block {block} of disk {disk} is not what was there")
        for hook in self.running:
            other = hook.op
            if other is None or not hook.writes or other.background or other.dead is None or other.who != op.who:
                continue
            if other.dead < op.issued and hook.overlaps(op.reads):
                raise self.wrong("ghost", f"{op} is GOOD while {hook}, of a nexus that is gone, may still change it")

    def _stable(self, disk: int, need: list[int], op: Operation) -> None:
        """GOOD of a flush: what was acknowledged before it began is on stable storage."""
        for block, (stable, needed) in enumerate(zip(self.storages[disk].stable, need, strict=True)):
            if stable < needed:
                raise self.wrong("volatile", f"{op} is GOOD and block {block} of disk {disk} is not on stable storage")

    def _at(self, key: Key, when: int) -> bytes:
        past = self.storages[key[0]].history[key[1]]
        return next(value for since, _by, value in reversed(past) if since <= when)

    def _undisturbed(self, op: Operation) -> None:
        """Nobody else wrote to its blocks between the first and the last of its own steps."""
        times = [*op.wrote.values(), *(op.looked[key] for key in op.reads if key in op.looked)]
        if not times:
            return
        first, last = min(times), max(times)
        for disk, block in op.writes:
            for since, by, _value in reversed(self.storages[disk].history[block]):
                if since < first:
                    break
                if since < last and by is not op:
                    raise self.wrong("atomic", f"{by} wrote to block {block} of disk {disk} in the midst of {op}")

    def _whole(self, op: Operation, other: Operation) -> None:
        """A command that reads sees all of an atomic one, or nothing."""
        before = after = None
        for key in op.writes:
            seen = other.looked.get(key)
            wrote = op.wrote.get(key)
            if seen is None or wrote is None or key not in other.reads:
                continue
            if seen < wrote:
                before = key
            else:
                after = key
        if before is not None and after is not None and other.name == "read":
            raise self.wrong("atomic", f"{other} saw a part of {op}")

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
