"""No schedule breaks a rule: writes that were acknowledged stay, what was ended writes no more, everything ends."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.search import explore

# Schedules of each level in `make test`, and seconds at most: a slow machine tries fewer. Always the same ones, so that
# a failure is one of the change that is tested; `python -m tests.simulation` tries those that nobody has tried.
QUICK = {"engine": (62_000, 170.0), "session": (18_000, 110.0), "ring": (20_000, 50.0), "memory": (100, 60.0)}
LEAST = 4  # a quarter of them has to be tried all the same
# In `make soak` others, from a seed on that is always the same, for so many seconds.
SOAK = {"engine": 30.0, "session": 20.0, "ring": 10.0}
SOAK_FIRST, SOAK_MOST = 1 << 24, 1 << 20


@pytest.mark.parametrize("level", QUICK)
def test_no_schedule_breaks_a_rule(level: str) -> None:
    count, seconds = QUICK[level]
    assert on_each_processor(level, range(count), seconds) >= count // LEAST


@pytest.mark.soak
@pytest.mark.parametrize("level", SOAK)
def test_no_schedule_of_very_many_breaks_a_rule(level: str) -> None:
    assert on_each_processor(level, range(SOAK_FIRST, SOAK_FIRST + SOAK_MOST), SOAK[level]) > 1000


def on_each_processor(level: str, seeds: range, seconds: float) -> int:
    """Return how many schedules were tried, in `seconds` at most; a failure says which, and its fewest steps."""
    processes = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(processes) as pool:
        ended = [pool.submit(part, level, seeds[number::processes], seconds) for number in range(processes)]
        counts, failures = zip(*[one.result() for one in ended], strict=True)
    assert not any(failures), "\n".join(filter(None, failures))
    return sum(counts)


def part(level: str, seeds: range, seconds: float) -> tuple[int, str | None]:
    count, failure = explore(level, seeds, seconds=seconds)
    return count, None if failure is None else str(failure)
