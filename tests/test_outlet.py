"""Log lines for a descriptor that nobody reads are left out, never waited for, and that is said when somebody does."""

from __future__ import annotations

import os
import pty
import re
import socket
import termios
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest

from tcmu_core.outlet import Outlet

Ends: TypeAlias = tuple[int, Callable[[], bytes]]
LINES = 20_000
LOST = re.compile(rb"\((\d+) lines of the log were left out here: nobody read them\)")


@pytest.fixture(params=["pipe", "socket", "terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """What is written to, and a function that reads all that has arrived."""
    if request.param == "pipe":
        reader, writer = os.pipe()
    elif request.param == "socket":
        reader, writer = (one.detach() for one in socket.socketpair())
    else:
        reader, writer = pty.openpty()
        attributes = termios.tcgetattr(writer)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(writer, termios.TCSANOW, attributes)
    os.set_blocking(reader, False)

    def read() -> bytes:
        found = b""
        while True:
            try:
                found += os.read(reader, 1 << 20)
            except BlockingIOError:
                return found

    yield writer, read
    os.close(reader)
    os.close(writer)


def test_nobody_waits_for_a_reader_and_what_was_left_out_is_counted(ends: Ends) -> None:
    writer, read = ends
    outlet = Outlet(writer)
    for number in range(LINES):
        outlet.write(b"%08d\n" % number)
    told = read()
    for number in range(LINES, LINES + 3):
        outlet.write(b"%08d\n" % number)
        told += read()
    lines = told.splitlines()
    assert lines[-1] == b"%08d" % (LINES + 2)
    (lost,) = (int(found[1]) for line in lines if (found := LOST.fullmatch(line)))
    numbers = [int(line) for line in lines if line.isdigit()]
    assert len(numbers) + lost == LINES + 3
    assert numbers == sorted(set(numbers))  # whole, in their order, none twice
    assert len(numbers) + 1 == len(lines)


def test_a_long_line_goes_out_whole(ends: Ends) -> None:
    writer, read = ends
    outlet = Outlet(writer)
    long = b"x" * 3000 + b"\n"
    told = b""
    for _ in range(5):
        outlet.write(long)
        told += read()
    assert told == 5 * long


def test_a_long_line_that_has_begun_is_ended_before_the_next_one() -> None:
    reader, writer = os.pipe()
    outlet = Outlet(writer)
    outlet.write(b"x" * 200_000 + b"\n")  # more than a pipe holds
    told = os.read(reader, 1 << 20)
    assert set(told) == {ord("x")}
    while len(told) < 200_001:
        outlet.write(b"next\n")
        told += os.read(reader, 1 << 20)
    assert told[:200_001] == b"x" * 200_000 + b"\n"
    outlet.write(b"last\n")
    os.close(writer)
    with open(reader, "rb") as rest:
        assert (told[200_001:] + rest.read()).endswith(b"last\n")


def test_an_end_that_is_gone_loses_lines_and_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Outlet(writer).write(b"nobody\n")
    os.close(writer)
