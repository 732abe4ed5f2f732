"""Running schedules: one, or those of many seeds until one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from tests.simulation import engine, memory, rings, sessions, shares
from tests.simulation.book import Violation
from tests.simulation.schedule import Schedule, generate
from tests.simulation.shrink import shrink
from tests.simulation.world import FILTERED, POOLED, REMOVABLE, THROUGH


@dataclass(frozen=True, slots=True)
class Level:
    """A kind of simulation: what runs a schedule, and what its schedules are made of."""

    run: Callable[[Schedule, Callable[[str], object] | None], Any]
    weights: dict[str, int]
    variants: tuple[int, ...]
    length: int  # steps at most


LEVELS = {
    "engine": Level(engine.EngineRun, engine.WEIGHTS, (0, 0, 0, 0, POOLED, FILTERED, THROUGH, REMOVABLE), 40),
    "session": Level(sessions.SessionRun, sessions.WEIGHTS, (0, 2, 4, 6, 0, 2, 4, 1, FILTERED, THROUGH, REMOVABLE), 50),
    "ring": Level(rings.RingRun, rings.WEIGHTS, (0, 0, rings.IN_ORDER, POOLED, FILTERED, THROUGH), 50),
    "memory": Level(memory.MemoryRun, memory.WEIGHTS, (0,), 12),
    "shares": Level(shares.SharesRun, shares.WEIGHTS, (0, shares.TINY), 8),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A schedule that fails, and how."""

    schedule: Schedule
    kind: str
    text: str

    def __str__(self) -> str:
        """Say all that is needed to see it again."""
        lines: list[str] = []
        kind_of(self.schedule, lines.append)
        return "\n".join(
            [
                self.text,
                f"seed {self.schedule.seed} of level {self.schedule.level}, of which these steps are left:",
                *(f"    {line}" for line in lines),
                f"again: python -m tests.simulation {self.schedule}",
            ]
        )


def schedule_of(level: str, seed: int) -> Schedule:
    """Return the schedule of a seed."""
    row = LEVELS[level]
    return generate(level, row.weights, row.variants, seed, row.length)


def violation_of(schedule: Schedule, log: Callable[[str], object] | None = None) -> tuple[str, str] | None:
    """Run a schedule: return the kind of what went wrong and the text, None when all is well."""
    run = LEVELS[schedule.level].run(schedule, log)
    try:
        run.run()
    except Violation as error:
        first = run.book.violation or error
        return first.kind, str(first)
    except Exception as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = "" if where is None else f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}"
        return f"{type(error).__name__} {place}", repr(error)
    return None


def kind_of(schedule: Schedule, log: Callable[[str], object] | None = None) -> str | None:
    """Run a schedule: return the kind of what went wrong."""
    found = violation_of(schedule, log)
    return found[0] if found is not None else None


def explore(
    level: str,
    seeds: Iterable[int],
    *,
    seconds: float | None = None,
    kinds: Iterable[str] = (),
    variant: int | None = None,
) -> tuple[int, Failure | None]:
    """Run the schedules of `seeds`, for `seconds` at most: return how many ran, and the first that fails, shrunk.

    With `kinds`, only failures of these kinds count; with `variant`, only schedules of this world run.
    """
    until = None if seconds is None else monotonic() + seconds
    wanted = set(kinds)
    count = 0
    for seed in seeds:
        if until is not None and monotonic() > until:
            break
        schedule = schedule_of(level, seed)
        if variant is not None and schedule.variant != variant:
            continue
        count += 1
        found = violation_of(schedule)
        if found is not None and (not wanted or found[0] in wanted):
            small = shrink(schedule, kind_of)
            again = violation_of(small)
            assert again is not None
            return count, Failure(small, *again)
    return count, None
