"""Steps that change what a unit is like: who holds RESERVE(6), its write cache, medium, size and target port groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation import cdbs, registrations
from tests.simulation.book import Book
from tests.simulation.operation import Operation
from tests.simulation.world import GROUPS, REMOVABLE

CHANGES = {"reserve_6": 10, "release_6": 6, "cache": 8, "medium": 8, "sense": 16, "resize": 6}
GROUPED = {"groups": 10, "arrange": 4}


class Changes:
    """What a run has beside the commands that move blocks."""

    book: Book
    world: Any
    schedule: Any
    log: Callable[[str], object] | None
    size: int
    disks: int
    moving: set[int]  # units whose groups are on their way, since somebody has set them up otherwise
    set_up: dict[int, int]
    _operation: Callable[..., Operation]
    send: Callable[..., None]

    def sessions(self) -> list[Any]:
        """Return the sessions that there are and that hear at once of what happens."""
        return []

    def do_reserve_6(self, choices: bytes) -> None:
        """RESERVE(6)."""
        self._legacy(choices, "reserve (6)", registrations.RESERVE_6, 0x16)

    def do_release_6(self, choices: bytes) -> None:
        """RELEASE(6)."""
        self._legacy(choices, "release (6)", registrations.RELEASE_6, 0x17)

    def _legacy(self, choices: bytes, name: str, action: int, code: int) -> None:
        op = self._operation(name, choices)
        nexus = self.book.nexus(op.session)
        op.request = registrations.Request(op.number, op.who, action, 0, 0, 0, False, nexus)
        self.send(op, bytes([code]) + bytes(5))

    def do_cache(self, choices: bytes) -> None:
        """MODE SELECT: the write cache is switched on, or off."""
        op = self._operation("cache", choices)
        on = choices[2] > 160
        op.medium, op.sets = "write", [(self.book.conditions[op.lun].cache, on)]
        if not on:
            op.need = []
        self.send(op, *cdbs.write_cache(on))

    def do_medium(self, choices: bytes) -> None:
        """START STOP UNIT: the medium is ejected or loaded; of a disk that has another kind, it is stopped or started.

        A reset starts the unit again, and of one that was sent only those know when it is done who wait for it.
        """
        removable = bool(self.schedule.variant & REMOVABLE)
        if not (removable or self.book.direct):
            return
        op = self._operation("medium", choices)
        ready = choices[2] > 96
        op.medium, op.sets = "none" if ready else "write", [(self.book.conditions[op.lun].medium, ready)]
        if not ready:
            op.need = []
        self.send(op, cdbs.start_stop(ready, removable))

    def do_sense(self, choices: bytes) -> None:
        """REQUEST SENSE."""
        op = self._operation("sense", choices)
        op.medium = "spared"
        self.send(op, cdbs.request_sense(252), room=252)

    def do_resize(self, choices: bytes) -> None:
        """The storage has another size."""
        lun, blocks = int(choices[1] > 191) % self.disks, self.size - choices[2] % 4
        if self.log is not None:
            self.log(f"  disk {lun} has {blocks} blocks")
        self.book.resized(lun, blocks, self.sessions())
        self.world.resize(lun, blocks)

    # -- where there are two ports ------------------------------------------------------------------------------------

    def _states(self, choices: bytes) -> dict[int, int]:
        """Return which groups are to go where."""
        return {group: (0, 0, 1, 2, 3)[choices[1 + group] % 5] for group in GROUPS if choices[4] >> group & 1}

    def do_groups(self, choices: bytes) -> None:
        """SET TARGET PORT GROUPS."""
        op = self._operation("groups", choices)
        states = self._states(choices)
        groups = self.book.conditions[op.lun].groups
        op.medium, op.sets = "write", [(groups[group], state) for group, state in states.items()]
        if states:
            self.send(op, *cdbs.set_groups(states))

    def do_arrange(self, choices: bytes) -> None:
        """Somebody sets target port groups up otherwise, while nobody else moves them."""
        states = dict.fromkeys(GROUPS, 0) | self._states(choices)
        units = self.book.conditions
        if self.moving or any(setting.changing for one in units for setting in one.groups.values()):
            return
        if self.log is not None:
            self.log(f"  target port groups: {states}")
        moved = [group for group in GROUPS if states[group] != self.set_up[group]]  # others stay where they are
        self.set_up = states
        for one in units:
            for group in moved:
                one.groups[group].unsettle()
        late = self.world.arrange(states, lambda lun: self._arrived(lun, moved))
        self.moving |= late
        for one in units:
            if one.number not in late:
                self._arrived(one.number, moved)

    def _arrived(self, lun: int, moved: list[int]) -> None:
        """The groups of a unit are where they were to go."""
        self.moving.discard(lun)
        for group in moved:
            self.book.conditions[lun].groups[group].settle(self.set_up[group])
        self.book.arrived(lun)
