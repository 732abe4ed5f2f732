"""No schedule breaks a rule: writes that were acknowledged stay, what was ended writes no more, everything ends."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.search import explore

QUICK = {"engine": 85_000, "session": 10_000, "ring": 5_000, "memory": 100}  # schedules of each level in `make test`
SOAK_SECONDS = {
    "engine": 150,
    "session": 120,
    "ring": 40,
}  # ... and the time for more of them, on each processor, in `make soak`


@pytest.mark.parametrize("level", QUICK)
def test_no_schedule_breaks_a_rule(level: str) -> None:
    assert on_each_processor(level, range(QUICK[level])) == QUICK[level]


@pytest.mark.soak
@pytest.mark.parametrize("level", SOAK_SECONDS)
def test_no_schedule_of_very_many_breaks_a_rule(level: str) -> None:
    first = int(time.time()) << 24  # others each time; a failure says which
    assert on_each_processor(level, range(first, first + (1 << 24)), SOAK_SECONDS[level])


def on_each_processor(level: str, seeds: range, seconds: float | None = None) -> int:
    """Return how many schedules were tried; a failure says which, and its fewest steps."""
    processes = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(processes) as pool:
        ended = [pool.submit(part, level, seeds[number::processes], seconds) for number in range(processes)]
        counts, failures = zip(*[one.result() for one in ended], strict=True)
    assert not any(failures), "\n".join(filter(None, failures))
    return sum(counts)


def part(level: str, seeds: range, seconds: float | None) -> tuple[int, str | None]:
    count, failure = explore(level, seeds, seconds=seconds)
    return count, None if failure is None else str(failure)
