"""Conditions: what is known of a unit's write cache, medium, size and ports, and what follows for hooks and answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from tests.simulation.operation import Operation
from tests.simulation.storage import Hook
from tests.simulation.world import GROUPS, port_of

T = TypeVar("T")
ACTIVE = (0, 1)  # access states in which everything runs (SPC-4 5.15.2)
CAPACITY_CHANGED = (6, 0x2A, 0x09)
NO_SENSE, NOT_READY, UNIT_ATTENTION = 0x0, 0x2, 0x6
Wrong = tuple[str, str]  # the rule that is broken, and how


class Setting(Generic[T]):
    """What commands change: `value` is None while nobody can tell, as one is under way or has not ended well."""

    def __init__(self, value: T) -> None:
        self.value: T | None = value
        self._open: dict[Operation, None] = {}
        self._alone: Operation | None = None
        self._before: T | None = None

    def begin(self, op: Operation) -> None:
        """A command that changes it is sent."""
        self._alone = None if self._open else op
        self._before = self.value
        self._open[op] = None
        self.value = None

    def end(self, op: Operation, value: T | None) -> None:
        """It has ended, with this value if it was GOOD. Of several at a time nobody knows which was the last."""
        self._open.pop(op, None)
        if self._alone is op:
            refused = op.status is not None and not op.faulted
            self.value, self._alone = self._before if value is None and refused else value, None

    def unsettle(self) -> None:
        """Something else may change it."""
        self.value = self._alone = self._before = None

    def settle(self, value: T | None) -> None:
        """Something else has changed it."""
        if not self._open:
            self.value = value

    @property
    def changing(self) -> bool:
        """Whether a command that changes it is under way."""
        return bool(self._open)


class Conditions:
    """One unit's."""

    def __init__(self, number: int, blocks: int, write_cache: bool) -> None:
        self.number = number
        self.blocks = blocks
        self.write_cache = write_cache  # of a process that begins
        self.owed: dict[Any, int] = {}  # sessions that have to hear of the size, and since when
        self.restart()

    def restart(self) -> None:
        """Another process has begun."""
        self.size, self.sized = self.blocks, 0
        self.owed.clear()
        self.cache: Setting[bool] = Setting(self.write_cache)
        self.medium: Setting[bool] = Setting(True)
        self.groups: dict[int, Setting[int]] = {group: Setting(0) for group in GROUPS}

    def resized(self, blocks: int, now: int, sessions: Iterable[Any]) -> None:
        """The unit has another size, of which these sessions are to hear."""
        if blocks != self.size:
            self.size, self.sized = blocks, now
            self.owed.update(dict.fromkeys(sessions, now))

    def _away(self, op: Operation) -> bool:
        """Return whether an initiator's port is certainly in no active state."""
        state = self.groups[port_of(op.who)].value
        return state is not None and state not in ACTIVE and not op.background

    def called(self, hook: Hook, op: Operation, running: Iterable[Hook]) -> Wrong | None:
        """A hook is called. A flush moves nothing that somebody could miss: it may come at any time."""
        if hook.kind == "flush":
            return None
        if not hook.writes and (op.aborted or op.dead is not None):
            return None  # nobody gets what it reads
        if self.medium.value is False:
            return "medium", f"{hook} is called, and there is no medium, or it is stopped"
        if self._away(op):
            return "access", f"{hook} is called, and its port is not active"
        if op.issued > self.sized and hook.first + hook.count > self.size:
            return "beyond", f"{hook} is called, and the disk has {self.size} blocks by now"
        for other in running:
            if other.storage is hook.storage and other.op is not None and other.op.background and other.op is not op:
                return "exclusive", f"{hook} is called while {other} runs, which has the medium to itself"
        return None

    def changed(self, op: Operation | None, running: Iterable[Hook]) -> Wrong | None:
        """One of them has changed, by a command that is GOOD perhaps: what must not go on has ended."""
        how = f"{op} is GOOD" if op is not None else "the target port groups have arrived"
        for hook in running:
            if hook.storage.number != self.number or hook.op is None or hook.op is op or hook.kind == "flush":
                continue
            if self.medium.value is False and hook.writes:
                return "medium", f"{how} while {hook} has not returned"
            if self._away(hook.op):
                return "access", f"{how} while {hook}, of a port that is not active, has not returned"
        return None

    def heard(self, op: Operation, status: int, told: tuple[int, int, int]) -> Wrong | None:
        """A command was answered, or REQUEST SENSE has told of a unit attention: another size comes before all else."""
        since = self.owed.get(op.session)
        if since is None:
            return None
        if told == CAPACITY_CHANGED:
            del self.owed[op.session]
        elif status == 0 and op.issued > since and op.name != "sense":
            return "unheard", f"{op} is GOOD, and nobody has told its initiator that the size has changed"
        return None

    def told(self, op: Operation, told: tuple[int, int, int], running: Iterable[Hook]) -> Wrong | None:
        """REQUEST SENSE tells of what goes on in the background."""
        for hook in running:
            if hook.storage.number != self.number or hook.op is None or not hook.op.background:
                continue
            if hook.since < op.issued and told[0] not in {NOT_READY, UNIT_ATTENTION}:
                return "untold", f"{op} tells sense key {told[0]:X}h while {hook} runs in the background"
        return None
