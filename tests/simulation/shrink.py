"""Making a failing schedule small: fewer steps first, then smaller choices; the failure stays of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from tests.simulation.schedule import CHOICES, Schedule, Step

Run = Callable[[Schedule], "str | None"]  # the kind of the failure, None when there is none


def shrink(schedule: Schedule, run: Run, *, seconds: float = 30.0) -> Schedule:
    """Return a schedule that fails as `schedule` does and from which no step can be left out (Zeller's ddmin)."""
    kind = run(schedule)
    assert kind is not None, "the schedule does not fail"
    until = monotonic() + seconds

    def fails(steps: list[Step]) -> bool:
        return monotonic() < until and run(schedule.with_steps(steps)) == kind

    steps = list(schedule.steps)
    before = None
    while before != steps:
        before = list(steps)
        steps = _fewer(steps, fails)
        steps = _smaller(steps, fails)
    return schedule.with_steps(steps)


def _fewer(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    size = max(1, len(steps) // 2)
    while True:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if fails(fewer):
                steps = fewer
            else:
                at += size
        if size == 1:
            return steps
        size //= 2


def _smaller(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    for at in range(len(steps)):
        for place in range(CHOICES):
            for value in (0, 1, 2, 3, 4, 8):
                name, choices = steps[at]
                if value >= choices[place]:
                    break
                less = choices[:place] + bytes([value]) + choices[place + 1 :]
                smaller = [*steps[:at], (name, less), *steps[at + 1 :]]
                if fails(smaller):
                    steps = smaller
                    break
    return steps
