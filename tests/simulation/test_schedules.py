"""No schedule breaks a rule: writes that were acknowledged stay, what was ended writes no more, everything ends."""

from __future__ import annotations

import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulation.search import explore

QUICK = {"engine": 85_000, "session": 10_000, "ring": 5_000, "memory": 100}  # schedules of each level in `make test`
SOAK_SECONDS = {
    "engine": 240,
    "session": 160,
    "ring": 60,
}  # ... and the time for more of them, on each processor, in `make soak`


@pytest.mark.parametrize("level", QUICK)
def test_no_schedule_breaks_a_rule(level: str) -> None:
    count, failure = explore(level, range(QUICK[level]))
    if failure is not None:
        pytest.fail(str(failure))
    assert count == QUICK[level]


def soak(level: str, first: int, step: int) -> tuple[int, str | None]:
    count, failure = explore(level, itertools.count(first, step), seconds=SOAK_SECONDS[level])
    return count, None if failure is None else str(failure)


@pytest.mark.soak
@pytest.mark.parametrize("level", SOAK_SECONDS)
def test_no_schedule_of_very_many_breaks_a_rule(level: str) -> None:
    processes = len(os.sched_getaffinity(0))
    first = int(time.time()) << 24  # others each time; a failure says which
    with ProcessPoolExecutor(processes) as pool:
        ended = [pool.submit(soak, level, first + number, processes) for number in range(processes)]
        found = [one.result() for one in ended]
    assert all(failure is None for _, failure in found), "\n".join(failure for _, failure in found if failure)
    assert sum(count for count, _ in found)
