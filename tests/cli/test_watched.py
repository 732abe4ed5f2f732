"""Watched by `tcmu top`, a scraper and the page for long: nobody holds more than in the beginning."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import mean

import pytest

from benchmarks.watched import Held, Watchers, commands, loaded, served
from tests.waiting import wait_for

pytestmark = pytest.mark.soak

TARGETS, SESSIONS = 20, 64
WARM, MORE = 20, 120  # scrapes: ten minutes have 600, a part of which shows what grows with each
MIB = 1 << 20


def test_of_whom_is_watched_and_of_who_watches_nothing_grows(tmp_path: Path) -> None:
    with ExitStack() as stack:
        uris = stack.enter_context(served(tmp_path, TARGETS))
        stack.enter_context(loaded(uris, SESSIONS, 1))
        state = tmp_path / "state"
        watchers = Watchers(state, stack, top=0.2, scrape=0.0, page=0.5)

        def watch(scrapes: int) -> dict[int, Held]:
            """Let it be scraped so often, and return what each process holds then."""
            goal = watchers.asked["metrics"] + scrapes
            watchers.go_on()
            wait_for(lambda: watchers.asked["metrics"] >= goal or watchers.error, 600.0)
            watchers.pause()
            assert watchers.error is None
            return held()

        def held() -> dict[int, Held]:
            return {pid: Held.by(pid) for pid in (*watchers.pids, *servers)}

        def counted() -> dict[int, tuple[int, int]]:
            return {pid: (one.descriptors, one.threads) for pid, one in held().items()}

        servers = list(commands(state))
        assert len(servers) == TARGETS
        watch(WARM)
        before, moved = watch(WARM), sum(commands(state).values())
        calm = wait_for(lambda: (found := counted()) == counted() and found, every=0.2)
        after = watch(MORE)
        assert sum(commands(state).values()) > moved
        assert list(commands(state)) == servers
        grown = {pid: after[pid].memory - before[pid].memory for pid in before}
        assert mean(grown[pid] for pid in servers) < MIB / 2
        assert all(grown[pid] < 4 * MIB for pid in watchers.pids), grown  # a scrape is 0.7 MiB of text

        def grew() -> dict[int, tuple[tuple[int, int], tuple[int, int]]]:
            """Return what has grown; what a busy host still had open before may be closed by now."""
            now = counted()
            return {
                pid: (calm[pid], now[pid])
                for pid in calm
                if any(a > b for a, b in zip(now[pid], calm[pid], strict=True))
            }

        wait_for(lambda: not grew(), why=grew)
