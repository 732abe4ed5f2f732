"""Watch: counts and times what passes a ring, for as long as somebody looks at the counters.

The ring has no time to spare for what nobody reads. So it asks for nothing of this for each command: while there is a
watch, it finds the watch's own in the place of the engine's fast paths, and of three of the functions that it calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tcmu_core.scsi.command import Command
from tcmu_core.scsi.hot import Fast
from tcmu_core.scsi.sampling import Sampler
from tcmu_core.scsi.tally import Sink, Tally


class Watch:
    """Counts in `tally`. Of a batch that is timed (sampling.py) it times the commands up to the first quick one.

    `proceed`, `finished` and `doorbell` are what the ring calls without it. `clock()` gives nanoseconds.
    """

    def __init__(
        self,
        tally: Tally,
        proceed: Callable[[Command, Any], bool],
        finished: Callable[[Command], None],
        doorbell: Callable[[], object],
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._tally = tally
        self._proceed = proceed
        self._finished = finished
        self._bell = doorbell
        self._sampler = Sampler(clock)
        self._begun = 0  # when the fast path of a command was called, which has not ended by it
        self._paths: dict[int, Fast] = {}  # what the ring finds: the one or the other of these
        self._counting: dict[int, Fast] = {}
        self._timing: dict[int, Fast] = {}

    def follow(self, sink: Sink) -> None:
        """Count, too, how long it takes until the doorbell rings for what has ended now."""
        self._sampler.follow(sink)

    def over(self, paths: dict[int, Fast]) -> dict[int, Fast]:
        """Return what does as the fast paths do, and counts what they end."""
        self._counting = {opcode: _counting(opcode, fast, self._tally) for opcode, fast in paths.items()}
        self._timing = {opcode: self._timed(opcode, fast) for opcode, fast in paths.items()}
        self._paths = dict(self._counting)
        return self._paths

    def _timed(self, opcode: int, fast: Fast) -> Fast:
        counting, clock = self._counting[opcode], self._sampler.clock

        def timing(memory: Any, at: int, length: int, buffers: list[memoryview]) -> Any:
            begun = self._begun = clock()
            result = counting(memory, at, length, buffers)
            if result is None:  # to time all of them would cost more than all else that is counted
                self._sampler.took(self._tally, opcode, begun)
                self.end()
            return result

        return timing

    def begin(self) -> None:
        """A batch begins."""
        if self._sampler.begin():
            self._paths.update(self._timing)

    def end(self) -> None:
        """A batch, or what is timed of it, is over."""
        if self._sampler.on:
            self._sampler.on = False
            self._paths.update(self._counting)
            self._begun = 0

    def proceed(self, command: Command, result: Any) -> bool:
        """Go on with a command that its fast path has not ended, or that has none."""
        sampler = self._sampler
        if sampler.on:
            sampler.hold(command, self._begun or sampler.clock())
            self._begun = 0
        ended = self._proceed(command, result)
        if ended:
            sampler.done(command)
        return ended

    def finished(self, command: Command) -> None:
        """A command has ended that did not end at once."""
        self._sampler.done(command)
        self._finished(command)

    def doorbell(self) -> None:
        """Ring the doorbell: what has been answered is out."""
        self._bell()
        if self._sampler.ended:
            self._sampler.sent(self._sampler.take())


def _counting(opcode: int, fast: Fast, tally: Tally) -> Fast:
    commands, moved = tally.commands, tally.moved

    def counting(memory: Any, at: int, length: int, buffers: list[memoryview]) -> Any:
        result = fast(memory, at, length, buffers)
        if result is None:
            commands[opcode] += 1
            moved[opcode] += length
        return result

    return counting
