"""Operation: a SCSI command as its initiator and the book see it, from its sending to its end."""

from __future__ import annotations

from typing import Any

Key = tuple[int, int]  # a disk's number, a block's


class Operation:
    """One command.

    `writes` and `reads` are the blocks that it may change and look at. `issued`, `dead` (its nexus was lost) and
    `ended` (its end was acknowledged, to whoever waits for it) are times; `wrote` and `looked` say when a hook moved
    each block for it the last time.
    """

    __slots__ = (
        "aborted",
        "apart",
        "atomic",
        "attribute",
        "background",
        "command",
        "dead",
        "ended",
        "exclusive",
        "expected",
        "faulted",
        "first_hook",
        "forced",
        "issued",
        "looked",
        "lun",
        "may_conflict",
        "may_pass",
        "medium",
        "name",
        "need",
        "nexus",
        "number",
        "payload",
        "reads",
        "request",
        "seen",
        "session",
        "sets",
        "silent",
        "status",
        "who",
        "writes",
        "wrote",
    )

    def __init__(self, number: int, name: str, who: int, lun: int, issued: int) -> None:
        self.number = number
        self.name = name
        self.who = who
        self.lun = lun
        self.issued = issued
        self.session: Any = None
        self.command: Any = None
        self.attribute = 1
        self.medium = "none"  # how a reservation sees it: none, read, write, spared (not even by RESERVE(6)), keys
        self.nexus = 0  # the number of its session
        self.sets: list[tuple[Any, Any]] = []  # settings of its unit, and what GOOD says they are
        self.writes: list[Key] = []
        self.reads: list[Key] = []
        self.atomic = False
        self.exclusive = False  # nothing else may run on the disk meanwhile
        self.background = False  # no abort ends it, and with IMMED it goes on after its answer
        self.apart = False  # its task attribute says nothing of what it does
        self.forced = False  # FUA: GOOD says that it is on stable storage
        self.payload = b""  # what GOOD says was written
        self.expected = b""  # what COMPARE AND WRITE compares with
        self.seen: set[Any] | None = None  # states of the reservations since it was issued
        self.request: Any = None
        self.need: list[int] | None = None
        self.dead: int | None = None
        self.ended: int | None = None
        self.aborted = False
        self.silent = False  # it may have been ended without an answer
        self.status: int | None = None
        self.faulted = False  # a hook of it failed
        self.first_hook: int | None = None
        self.wrote: dict[Key, int] = {}
        self.looked: dict[Key, int] = {}
        self.may_pass = True
        self.may_conflict = False

    def __str__(self) -> str:
        """Name it for people."""
        return f"#{self.number} {self.name} of {'abcdefgh'[self.who]}"
