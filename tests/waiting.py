"""Waiting in tests: for what comes soon, with a bound that only guards against a hang."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 60.0  # seconds


def wait_for(
    condition: Callable[[], T], seconds: float = PATIENCE, *, every: float = 0.02, why: Callable[[], object] = str
) -> T:
    """Return the first value of `condition()` that is true; `why()` is shown when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, why()
        time.sleep(every)
    return value
