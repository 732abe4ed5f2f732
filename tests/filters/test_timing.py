"""`delay` and `rate`: when operations end, by a clock that the test moves."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from tcmu_core.errors import ConfigError
from tcmu_core.filters.bucket import Bucket
from tcmu_core.filters.clock import MonotonicClock, duration
from tcmu_core.filters.delay import Delay
from tcmu_core.filters.latency import latency
from tcmu_core.filters.rate import Rate
from tcmu_core.scsi.command import Status
from tests.filters.conftest import HandClock, given, rig_upon, upon
from tests.scsi.harness import Memory, cdb10


def read(disk: Any, length: int = 512) -> Any:
    return disk.disk.operations.read(0, [memoryview(bytearray(length))])


# -- delay ------------------------------------------------------------------------------------------------------------


def test_an_operation_ends_so_much_later(clock: HandClock) -> None:
    with upon(given(Delay(clock), read="5ms")) as disk:
        pending = read(disk)
        clock.pass_by(0.0049)
        assert not pending.done()
        clock.pass_by(0.0002)
        assert pending.result(0) is None


def test_hooks_that_are_not_delayed_are_the_handlers_own(clock: HandClock) -> None:
    with upon(given(Delay(clock), read="5ms")) as disk:
        assert disk.disk.operations.write(0, [memoryview(bytearray(512))]) is None
        assert disk.disk.operations.flush() is None


def test_all_is_for_the_hooks_that_are_not_named(clock: HandClock) -> None:
    with upon(given(Delay(clock), all="1s", write="2s")) as disk:
        flushed = disk.disk.operations.flush()
        written = disk.disk.operations.write(0, [memoryview(bytearray(512))])
        clock.pass_by(1.5)
        assert flushed.done()
        assert not written.done()


def test_the_delay_begins_when_the_storage_has_answered(clock: HandClock) -> None:
    handler = Memory()
    with upon(given(Delay(clock), read="1s"), handler=handler) as disk:
        handler.hold = True
        pending = read(disk)
        clock.pass_by(10)
        handler.release()
        assert not pending.done()
        clock.pass_by(1)
        assert pending.done()


def test_an_error_comes_as_late_as_an_answer(clock: HandClock) -> None:
    handler = Memory()
    with upon(given(Delay(clock), read="1s"), handler=handler) as disk:
        handler.hold = True
        pending = read(disk)
        future, _ = handler.held.popleft()
        future.set_exception(OSError("broken"))
        assert not pending.done()
        clock.pass_by(1)
        with pytest.raises(OSError, match="broken"):
            pending.result(0)


def test_a_filter_that_is_taken_off_ends_what_waits_as_it_would_have_ended(clock: HandClock) -> None:
    handler = Memory()
    with upon(given(Delay(clock), read="1s"), handler=handler) as disk:
        waits = read(disk)
        handler.hold = True
        not_done = read(disk)
        disk.disk.pop("delay")
        assert waits.result(0) is None
        assert not not_done.done()
        handler.release()
        assert not_done.result(0) is None
    clock.pass_by(2)


def test_drawn_times_follow_from_the_seed() -> None:
    def ends(seed: int) -> list[float]:
        clock = HandClock()
        times: list[float] = []
        with upon(given(Delay(clock), read="exponential/1s", seed=seed)) as disk:
            for _ in range(20):
                began = clock.now()
                read(disk).add_done_callback(lambda _, began=began: times.append(clock.now() - began))
                clock.pass_by(100)
        return times

    assert ends(1) == ends(1) != ends(2)


DISTRIBUTIONS = {
    "5ms": (0.005, 0.005, 0.005),
    "uniform/1ms/3ms": (0.001, 0.002, 0.003),
    "normal/10ms/1ms": (0.005, 0.010, 0.015),
    "exponential/2ms": (0.0, 0.002, 0.05),
    "pareto/1ms/3": (0.001, 0.0015, 1.0),
}


@pytest.mark.parametrize("text", DISTRIBUTIONS)
def test_a_distribution_has_its_bounds_and_mean(text: str) -> None:
    least, mean, most = DISTRIBUTIONS[text]
    chance = random.Random(1)
    drawn = [latency(text)(chance) for _ in range(4000)]
    assert least <= min(drawn)
    assert max(drawn) <= most
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.1)


def test_the_longest_tail_of_all_is_a_time_too() -> None:
    chance = random.Random(1)
    assert all(0.001 <= latency("pareto/1ms/0.0001")(chance) < float("inf") for _ in range(100))


@pytest.mark.parametrize(("text", "seconds"), [("5ms", 0.005), ("200us", 0.0002), ("1.5s", 1.5), ("2", 2), ("3m", 180)])
def test_a_time_is_written_with_its_unit(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "5 parsecs",
        "-1s",
        "uniform/1s",
        "gauss/1s/1s",
        "pareto/1s/0",
        "pareto/1s/x",
        "pareto/1s/nan",
        "pareto/1s/inf",
        "9" * 400,
        "uniform/1s/" + "9" * 400,
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write|no time|longer than any"):
        latency(text)


def test_the_real_clock_calls_in_the_order_of_the_times() -> None:
    clock = MonotonicClock()
    while True:
        order: list[str] = []
        ended: Future[None] = Future()
        began = time.monotonic()
        clock.later(0.03, partial(ended.set_result, None))
        clock.later(0.02, partial(order.append, "second"))
        clock.later(0.01, partial(order.append, "first"))
        arranged = time.monotonic() - began
        ended.result(60)
        assert time.monotonic() - began >= 0.03
        if arranged < 0.01:  # else another program had the processor between two of the calls
            assert order == ["first", "second"]
            break


# -- rate -------------------------------------------------------------------------------------------------------------


def test_a_bucket_keeps_its_rate_after_the_burst() -> None:
    bucket = Bucket(10, 5, 0.0)
    assert [bucket.take(1, 0.0) for _ in range(8)] == pytest.approx([0, 0, 0, 0, 0, 0.1, 0.2, 0.3])


def test_a_bucket_fills_up_to_the_burst_and_no_further() -> None:
    bucket = Bucket(10, 5, 0.0)
    bucket.take(5, 0.0)
    assert [bucket.take(1, 1000.0) for _ in range(6)][-1] == pytest.approx(0.1)


def test_what_is_larger_than_the_burst_waits_and_is_not_stuck() -> None:
    assert Bucket(10, 5, 0.0).take(25, 0.0) == pytest.approx(2)


def ended_after(clock: HandClock, calls: list[Any], seconds: float) -> int:
    clock.pass_by(seconds)
    return sum(not isinstance(each, Future) or each.done() for each in calls)


def test_operations_of_the_disk_come_at_their_rate(clock: HandClock) -> None:
    with upon(given(Rate(clock), iops=100, burst=0.1)) as disk:
        calls = [read(disk) for _ in range(60)]
        assert ended_after(clock, calls, 0) == 10
        assert ended_after(clock, calls, 0.2001) == 30
        assert ended_after(clock, calls, 0.3001) == 60


def test_bytes_of_the_disk_come_at_their_rate_however_they_are_cut(clock: HandClock) -> None:
    with upon(given(Rate(clock), bytes="1M", burst=0.0625)) as disk:
        calls = [read(disk, 65536) for _ in range(4)] + [read(disk, 4096) for _ in range(16)]
        assert ended_after(clock, calls, 0) == 1
        assert ended_after(clock, calls, 0.1876) == 4
        assert ended_after(clock, calls, 0.0626) == 20


def test_what_moves_no_bytes_is_not_held_by_a_limit_of_bytes(clock: HandClock) -> None:
    with upon(given(Rate(clock), bytes="1K", burst=1)) as disk:
        assert disk.disk.operations.discard(0, 1 << 19) is None
        assert disk.disk.operations.flush() is None


def test_each_initiator_has_its_own_share(clock: HandClock) -> None:
    rig = rig_upon(given(Rate(clock), initiator_iops=10, burst=0.1))
    started = {who: [rig.start(cdb10(0x28, 0, 1), room=512, who=who) for _ in range(5)] for who in "ab"}
    rig.turn()
    for who in "ab":
        assert sum(bool(ended) for _, ended in started[who]) == 1
    clock.pass_by(0.2001)
    rig.turn()
    for who in "ab":
        assert sum(bool(ended) for _, ended in started[who]) == 3
    clock.pass_by(1)
    rig.turn()
    assert all(command.status == Status.GOOD for each in started.values() for command, _ in each)


def test_an_initiators_commands_that_move_nothing_do_not_wait(clock: HandClock) -> None:
    rig = rig_upon(given(Rate(clock), initiator_iops=1, burst=1))
    for _ in range(20):
        rig.good(bytes(6))


def test_without_a_limit_for_initiators_the_fast_path_is_open(clock: HandClock) -> None:
    assert 0x28 in rig_upon(given(Rate(clock), iops=10)).engine.fast
    assert 0x28 not in rig_upon(given(Rate(clock), initiator_iops=10)).engine.fast


def test_limits_change_while_the_disk_is_in_use(clock: HandClock) -> None:
    with upon(given(Rate(clock), iops=1, burst=1)) as disk:
        disk.disk.tell("rate", {"iops": "0", "bytes": "64K"})
        assert all(not isinstance(read(disk), Future) for _ in range(50))
        told = disk.disk.tell("rate", {})
        assert (told["iops"], told["bytes"]) == (0, 65536)
        for wrong in ({"iops": "many"}, {"ios": "5"}, {"iops": "-5"}):
            with pytest.raises(ConfigError):
                disk.disk.tell("rate", wrong)


def test_a_delay_of_ages_keeps_no_other_one_from_its_end() -> None:
    clock, ended = MonotonicClock(), threading.Event()
    clock.later(1e300, ended.clear)
    clock.later(0.0, ended.set)
    assert ended.wait(60)
    ended.clear()
    clock.later(0.0, ended.set)  # the thread is still there
    assert ended.wait(60)
