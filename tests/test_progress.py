"""How far something is, and what a log is told of it."""

from __future__ import annotations

import logging

import pytest

from tcmu_core.progress import AGAIN_SECONDS, FIRST_SECONDS, Lines, Progress, progress


@pytest.mark.parametrize(
    ("done", "total", "percent"), [(0, 3, 0), (1, 3, 33), (2999, 3000, 99), (-1, 3, 0), (5, 0, 99)]
)
def test_percent_are_whole_and_never_all(done: int, total: int, percent: int) -> None:
    assert Progress("x", done, total).percent == percent


@pytest.mark.parametrize(("done", "total"), [(3, 3), (4, 3), (0, 0)])
def test_what_is_done_is_no_progress(done: int, total: int) -> None:
    assert progress(done, total, "x") is None
    assert progress(2, 3, "x") == Progress("x", 2, 3)


def test_a_log_is_told_late_then_now_and_then_and_of_the_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = 100.0
    lines = Lines(logging.getLogger("tcmu.test"), lambda: clock)

    def told(now: Progress | None, at: float) -> list[str]:
        nonlocal clock
        clock = 100.0 + at
        caplog.clear()
        lines(now)
        return caplog.messages

    def loading(done: int) -> Progress:
        return Progress("loading", done, 100)

    with caplog.at_level(logging.INFO, "tcmu.test"):
        assert told(loading(0), 0) == []
        assert told(loading(10), FIRST_SECONDS - 0.1) == []
        assert told(loading(20), FIRST_SECONDS) == ["loading, 20 %"]
        assert told(loading(30), FIRST_SECONDS + AGAIN_SECONDS - 0.1) == []
        assert told(loading(40), FIRST_SECONDS + AGAIN_SECONDS) == ["loading, 40 %"]
        assert told(None, 60) == ["loading: ended after 60 s"]
        assert told(None, 61) == []
        assert told(loading(50), 70) == []  # another one
        assert told(Progress("saving", 0, 1), 90) == []
        assert told(Progress("saving", 0, 1), 94.9) == []
        assert told(None, 95) == []
