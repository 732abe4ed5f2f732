"""The loop: descriptors, timers and posted calls, asleep and while it spins."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing

import pytest

from tcmu_core.loop import READ, SLICE, Loop, Pace

PATIENCE = 30.0


@pytest.fixture(params=[0.0, PATIENCE], ids=["sleeps", "spins"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """A loop that gives up some day; the second one spins from its first sleep on."""
    late: list[bool] = []
    with closing(Loop(request.param)) as made:
        made.call_later(PATIENCE, lambda: (late.append(True), made.stop()))
        yield made
    assert not late


def test_a_descriptor_that_becomes_readable_is_served_again_and_again(loop: Loop) -> None:
    read, write = os.pipe()
    seen: list[bytes] = []

    def readable(_events: int) -> None:
        seen.append(os.read(read, 1))
        if len(seen) == 100:
            loop.stop()
        else:
            os.write(write, b"x")

    loop.register(read, READ, readable)
    os.write(write, b"x")
    loop.run()
    loop.unregister(read)
    os.close(read)
    os.close(write)
    assert len(seen) == 100


def test_a_call_from_another_thread_is_made_soon(loop: Loop) -> None:
    turns = 0
    back = threading.Event()

    def turn() -> None:
        nonlocal turns
        turns += 1
        back.set()

    def other() -> None:
        for _ in range(50):
            loop.post(turn)
            assert back.wait(PATIENCE)
            back.clear()
        loop.stop()

    thread = threading.Thread(target=other)
    thread.start()
    loop.run()
    thread.join()
    assert turns == 50


def test_timers_are_due_in_their_order_whatever_else_happens(loop: Loop) -> None:
    read, write = os.pipe()
    done: list[int] = []
    loop.register(read, READ, lambda _events: os.read(read, 1))
    loop.call_later(0.03, lambda: (done.append(2), loop.stop()))
    loop.call_later(0.01, done.append, 1)
    loop.call_later(0.02, done.append, 0).cancel()
    os.write(write, b"x")
    loop.run()
    loop.unregister(read)
    os.close(read)
    os.close(write)
    assert done == [1, 2]


def test_a_callback_that_fails_stops_nothing(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("nobody expects this")

    loop.post(fail)
    loop.post(loop.stop)
    loop.run()
    assert "nobody expects this" in caplog.text


@pytest.mark.parametrize(("few", "under_way", "spins"), [(0, 0, True), (0, 1, False), (3, 3, True), (3, 4, False)])
def test_it_spins_while_few_are_under_way_elsewhere(
    few: int, under_way: int, spins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spun: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: spun.append(1))
    with closing(Loop(spin=0.01)) as loop:
        loop.watch_elsewhere(lambda: 0)
        loop.watch_elsewhere(count := lambda: under_way, few)
        for number in range(20):
            loop.call_later(0.002 * number, lambda: None)
        loop.call_later(0.06, loop.stop)
        loop.run()
        assert bool(spun) is spins
        spun.clear()
        loop.forget_elsewhere(count)
        for number in range(20):
            loop.call_later(0.002 * number, lambda: None)
        loop.call_later(0.06, loop.stop)
        loop.run()
        assert spun


@pytest.mark.parametrize("under_way", [0, 1])
def test_where_others_want_the_processor_one_who_waits_for_a_disk_sleeps(
    under_way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sleeps is let run when something comes, who gives way while it spins when others have had enough."""
    spun: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: (spun.append(1), time.sleep(0.1)))
    read, write = os.pipe()
    over = threading.Event()

    def write_on() -> None:
        while not over.wait(0.001):
            os.write(write, b"x")

    with closing(Loop(spin=0.05)) as loop:
        loop.register(read, READ, lambda _events: os.read(read, 4096))
        loop.watch_elsewhere(lambda: under_way, 3)
        loop.call_later(1.0, loop.stop)
        thread = threading.Thread(target=write_on)
        thread.start()
        loop.run()
        over.set()
        thread.join()
    os.close(read)
    os.close(write)
    assert len(spun) == 1 if under_way else len(spun) > 1


def test_one_command_at_a_time_is_worth_spinning_for_and_now_and_then_a_sleep() -> None:
    pace = Pace(1.0)
    spins = [pace.after(1) for _ in range(320)]
    assert spins[:31] == [0.0] * 31
    assert spins[31:] == ([0.0] + [1.0] * 31) * 9 + [0.0]


def test_a_wait_that_brings_nothing_says_nothing() -> None:
    pace = Pace(1.0)
    for _ in range(33):
        pace.after(1)
    assert [pace.after(0) for _ in range(100)] == [1.0] * 100


def test_several_commands_at_a_time_are_let_gather() -> None:
    pace = Pace(1.0)
    for _ in range(100):
        pace.after(1)
    assert [pace.after(2), *(pace.after(1) for _ in range(31))] == [0.0] * 32


def test_a_timer_that_was_cancelled_holds_nothing(loop: Loop) -> None:
    class Session:
        pass

    session = Session()
    gone = weakref.ref(session)
    timer = loop.call_later(PATIENCE, print, session)
    timer.cancel()
    del session
    assert gone() is None


def test_a_timer_that_was_due_holds_nothing(loop: Loop) -> None:
    class Session:
        pass

    session = Session()
    gone = weakref.ref(session)
    timer = loop.call_later(0, lambda _session: loop.stop(), session)
    del session
    loop.run()
    assert gone() is None
    timer.cancel()


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    kept = [loop.call_later(PATIENCE, print, n) for n in range(10)]
    for n in range(10000):
        loop.call_later(PATIENCE, print, n).cancel()
    assert len(loop._timers) < 50
    for timer in kept:
        timer.cancel()


def test_timers_are_due_in_their_order_after_others_were_swept(loop: Loop) -> None:
    seen: list[int] = []
    for n in (3, 1, 2):
        loop.call_later(n / 1000, seen.append, n)
    for _ in range(100):
        loop.call_later(0.0005, seen.append, 0).cancel()
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert seen == [1, 2, 3]


def test_a_timer_that_is_due_in_an_age_harms_nobody(loop: Loop) -> None:
    for late in (1e10, 1e300, float("inf")):
        loop.call_later(late, pytest.fail)
    loop.call_later(0.01, loop.stop)
    loop.run()


FORKS = """
import os, sys
from tcmu_core.loop import READ, Loop

loop = Loop()
heard, told = os.pipe()

def call(_events):
    os.read(heard, 1)
    child = os.fork()
    os.write(mine, b"child " if not child else b"parent ")  # where it had a descriptor of the loop
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        loop.stop()

other, mine = os.pipe()
loop.register(heard, READ, call)
loop.register(mine, 0, lambda _events: None)
loop.call_later(0, os.write, told, b"x")
loop.run()
print(os.read(other, 100).decode(), flush=True)
"""


def test_a_child_that_returns_from_a_callback_ends_and_says_nothing_to_anybody() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "1\nparent \n"
    assert "the child ends here" in done.stderr


def test_calls_that_take_long_together_let_a_descriptor_go_between(loop: Loop) -> None:
    read, write = os.pipe()
    order: list[int] = []

    def call(number: int) -> None:
        order.append(number)
        if number == 0:
            os.write(write, b"x")
        time.sleep(2 * SLICE)

    def readable(_events: int) -> None:
        order.append(-1)
        os.read(read, 1)

    loop.register(read, READ, readable)
    for number in range(10):
        loop.post(call, number)
    loop.post(loop.stop)
    loop.run()
    loop.unregister(read)
    os.close(read)
    os.close(write)
    assert order.index(-1) <= 3
    assert [number for number in order if number >= 0] == list(range(10))
