"""Workspace: the memory that commands of several steps work with, for one of their chunks at a time.

What such a command keeps beside its own data is nothing that its session pays for, so there is a bound for all of a
unit together: who wants a large piece waits for its turn, and gives it back before it lets others run.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from tcmu_core.scsi.limits import CHUNK
from tcmu_core.scsi.steps import Steps

PIECES = 8  # large ones, at once
SMALL = 1 << 16  # bytes: a piece that nobody has to wait for


class Workspace:
    """The pieces of one unit."""

    def __init__(self) -> None:
        self._taken = 0
        self._waiting: deque[Future[None]] = deque()
        self._spare = bytearray()  # to be used again

    def take(self, size: int) -> Steps:
        """Return (as the value of the steps) memory of `size` bytes, whatever it holds: to be given back."""
        if size > SMALL:
            if self._taken < PIECES:
                self._taken += 1
            else:
                yield from self._turn()
            if len(self._spare) >= size:
                spare, self._spare = self._spare, bytearray()
                return memoryview(spare)[:size]
        return memoryview(bytearray(size))

    def _turn(self) -> Steps:
        turn: Future[None] = Future()
        self._waiting.append(turn)
        try:
            yield turn
        except BaseException:  # the command is broken off
            if turn.done():
                self._leave()
            else:
                self._waiting.remove(turn)
            raise

    def give(self, piece: memoryview) -> None:
        """Take memory back: no hook has it any more."""
        if len(piece) > SMALL:
            if len(piece.obj) <= CHUNK:  # type: ignore[arg-type]
                self._spare = piece.obj  # type: ignore[assignment]
            self._leave()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._taken -= 1
