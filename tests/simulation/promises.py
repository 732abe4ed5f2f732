"""Promises: what GOOD means for each kind of command, and whether the storage agrees with it."""

from __future__ import annotations

from tests.simulation.conditions import Conditions, Wrong
from tests.simulation.operation import Key, Operation
from tests.simulation.storage import BLOCK, Hook, Storage

GOOD = 0x00


class Violation(AssertionError):
    """Something happened that must not. `kind` names the rule that it breaks."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Promises:
    """The part of the book that judges what is GOOD."""

    storages: list[Storage]
    conditions: list[Conditions]
    operations: list[Operation]
    running: list[Hook]
    acked: list[list[int]]
    violation: Violation | None

    def wrong(self, kind: str, text: str) -> Violation:
        """Return what is to be raised. It is kept too: the product takes an error in a hook for the handler's."""
        violation = Violation(kind, text)
        self.violation = self.violation or violation
        return violation

    def _judged(self, found: Wrong | None) -> None:
        if found is not None:
            raise self.wrong(*found)

    def _good(self, op: Operation, data: bytes) -> None:
        if op.writes:
            self._written(op)
        if op.name == "read":
            self._read(op, data)
        if op.need is not None:
            self._stable(op.lun, op.need, op)
        if op.seen is not None:
            self._told(op, data)
        conditions = self.conditions[op.lun]
        if op.name == "sense":
            self._judged(conditions.told(op, told_by(data), self.running))
        if op.sets:
            self._judged(conditions.changed(op, self.running))
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
            through = self.conditions[key[0]].cache.value is False
            if (op.forced or through) and self.storages[key[0]].stable[key[1]] <= own:
                why = "with FUA" if op.forced else "without a write cache"
                raise self.wrong("volatile", f"{op} is GOOD {why} and block {key[1]} is not on stable storage")
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


def told_by(data: bytes) -> tuple[int, int, int]:
    """Return what REQUEST SENSE tells: sense key, ASC, ASCQ (SPC-4 4.5.3)."""
    return (data[2] & 0x0F, data[12], data[13]) if len(data) > 13 else (0, 0, 0)
