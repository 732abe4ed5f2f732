"""The bar on a terminal, and what a signal does to what is begun."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import re
import signal
from collections.abc import Iterator
from typing import TextIO

import pytest

from tcmu_core.cli.bar import PATIENCE, Bar, on_terminal
from tcmu_core.cli.signals import TOGETHER, Stopped, interrupting
from tcmu_core.progress import Progress


class Screen:
    """A terminal of 80 columns; `clock` is what the bar has for a clock."""

    def __init__(self) -> None:
        self.fd, terminal = pty.openpty()
        self.stream: TextIO = os.fdopen(terminal, "w")
        self.clock = 0.0
        os.set_blocking(self.fd, False)

    def shown(self) -> str:
        """Return what was written since the last time."""
        try:
            return os.read(self.fd, 1 << 16).decode()
        except BlockingIOError:
            return ""


@pytest.fixture
def screen() -> Iterator[Screen]:
    one = Screen()
    yield one
    one.stream.close()
    os.close(one.fd)


@pytest.fixture
def bar(screen: Screen) -> Iterator[Bar]:
    one = Bar(screen.stream, lambda: screen.clock)
    yield one
    one.close()


def test_it_is_drawn_when_it_takes_long_and_cleared_at_the_end(screen: Screen, bar: Bar) -> None:
    tell = bar.of("ram/disk")
    tell(Progress("loading the image", 0, 100))
    assert screen.shown() == ""
    screen.clock = PATIENCE
    tell(Progress("loading the image", 25, 100))
    assert screen.shown() == f"\rram/disk: loading the image [{'#' * 6}{'-' * 18}] 25 %, 1 s left"
    screen.clock += 0.01
    tell(Progress("loading the image", 26, 100))
    assert screen.shown() == ""  # not so often
    tell(None)
    assert re.fullmatch(r"\r +\r", screen.shown())
    bar.hide()
    assert screen.shown() == ""


def test_what_is_over_soon_is_not_shown(screen: Screen, bar: Bar) -> None:
    tell = bar.of("ram/disk")
    tell(Progress("loading", 0, 100))
    tell(Progress("loading", 50, 100))
    tell(None)
    assert screen.shown() == ""


def test_the_end_of_another_disk_leaves_it(screen: Screen, bar: Bar) -> None:
    for screen.clock in (0.0, PATIENCE):
        bar.of("one")(Progress("sanitizing", 1, 100))
    assert "one: sanitizing" in screen.shown()
    bar.of("two")(None)
    assert screen.shown() == ""


def test_a_line_of_the_log_has_its_own_line(screen: Screen, bar: Bar) -> None:
    tell = bar.of("one")
    for screen.clock in (0.0, PATIENCE):
        tell(Progress("sanitizing", 1, 100))
    screen.shown()
    logging.getLogger("tcmu.test").warning("something")
    assert re.fullmatch(r"\r +\r", screen.shown())
    screen.clock += 1
    tell(Progress("sanitizing", 2, 100))
    assert "2 %" in screen.shown()


def test_while_the_terminal_is_a_commands_it_is_not_drawn(screen: Screen, bar: Bar) -> None:
    bar.paused = True
    for screen.clock in (0.0, PATIENCE, 10.0):
        bar.of("one")(Progress("sanitizing", 1, 100))
    assert screen.shown() == ""


def test_it_leaves_no_trace_in_the_log(screen: Screen) -> None:
    before = list(logging.getLogger("tcmu").handlers)
    Bar(screen.stream).close()
    assert logging.getLogger("tcmu").handlers == before


def test_it_is_for_a_person_at_a_terminal(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", screen.stream)
    assert on_terminal(programs=True) is None
    shown = on_terminal(programs=False)
    assert shown is not None
    shown.close()
    with open(os.devnull, "w") as file:
        monkeypatch.setattr("sys.stderr", file)
        assert on_terminal(programs=False) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_what_is_begun_whatever_is_made_of_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    undone = []

    def begin() -> None:
        with interrupting():
            try:
                signal.raise_signal(number)
            except BaseException as error:
                undone.append(type(error))
                raise RuntimeError("the handler broke") from error

    with pytest.raises(Stopped) as caught:
        begin()
    assert undone == [KeyboardInterrupt]
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_what_swallows_the_interrupt_ends_all_the_same() -> None:
    def begin() -> None:
        with interrupting(), contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        begin()


def test_who_is_patient_is_asked_first_and_interrupted_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("tcmu_core.cli.signals.time.monotonic", lambda: clock)
    heard = []

    def begin() -> None:
        nonlocal clock
        with interrupting(patient=True) as check:
            check()
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # timeout(1) and terminals send two
            heard.append("one")
            with pytest.raises(Stopped):
                check()
            clock += TOGETHER + 0.1
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            heard.append("two")

    with pytest.raises(Stopped):
        begin()
    assert heard == ["one", "two"]
