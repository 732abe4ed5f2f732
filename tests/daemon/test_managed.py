"""The life of a device in the supervisor, with workers that do what the test says and a clock that it turns."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import pytest

from tcmu_core.daemon import managed
from tcmu_core.daemon.managed import ManagedDevice, State
from tcmu_core.disk.device import Change
from tcmu_core.kernel.uio import UioName


class Timer:
    def __init__(self, delay: float, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.delay, self.fn, self.args = delay, fn, args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay: float, fn: Callable[..., object], *args: Any) -> Timer:
        self.timers.append(Timer(delay, fn, args))
        return self.timers[-1]

    def fire(self, name: str) -> None:
        """Let the pending timer of this callback run out."""
        timer = next(one for one in reversed(self.timers) if one.fn.__name__ == name and not one.cancelled)
        timer.cancelled = True
        timer.fn(*timer.args)


class FakeWorker:
    def __init__(self, job: Any, on_message: Callable[[Any], object], on_death: Callable[[str], object]) -> None:
        self.job, self.say, self.die = job, on_message, on_death
        self.pid = 1000
        self.told: list[Any] = []
        self.killed = False
        self.memory = 20 << 20

    def send(self, message: Any) -> None:
        self.told.append(message)

    def kill(self) -> None:
        self.killed = True

    def opened(self, size: int = 4096) -> None:
        self.say({"opened": True, "size": size, "write_cache": True})


class Parent:
    def __init__(self) -> None:
        self.loop: Any = FakeLoop()
        self.workers: list[FakeWorker] = []
        self.forgotten: list[ManagedDevice] = []

    def job(self, device: ManagedDevice, *, adopt: bool, delay: float, park: bool) -> Any:
        return {"adopt": adopt, "delay": delay, "park": park}

    def spawn(self, job: Any, on_message: Callable[[Any], object], on_death: Callable[[str], object]) -> Any:
        self.workers.append(FakeWorker(job, on_message, on_death))
        return self.workers[-1]

    def forget(self, device: ManagedDevice) -> None:
        self.forgotten.append(device)

    @property
    def worker(self) -> FakeWorker:
        return self.workers[-1]


class Case:
    def __init__(self, *, adopted: bool = False) -> None:
        self.parent = Parent()
        self.answers: list[int] = []
        self.device = ManagedDevice(
            self.parent, 0, UioName(1, "d", "ram/x"), answer=None if adopted else self.answers.append, adopted=adopted
        )
        self.device.start()

    def serving(self) -> Case:
        self.parent.worker.opened()
        return self


def test_the_kernel_hears_of_success_when_the_worker_has_opened() -> None:
    case = Case()
    assert case.answers == []
    case.serving()
    assert case.answers == [0]
    assert case.device.state is State.SERVING


def test_a_failed_open_is_answered_with_its_errno_when_the_worker_is_gone() -> None:
    case = Case()
    case.parent.worker.say({"failed": errno.ENOSPC, "reason": "full"})
    assert case.answers == []
    case.parent.worker.die("it ended")
    assert case.answers == [-errno.ENOSPC]
    assert case.parent.forgotten == [case.device]


def test_a_worker_that_dies_while_it_opens_is_an_io_error() -> None:
    case = Case()
    case.parent.worker.die("killed by SIGSEGV")
    assert case.answers == [-errno.EIO]


def test_an_open_that_takes_too_long_is_killed_and_answered() -> None:
    case = Case()
    case.parent.loop.fire("_open_is_late")
    assert case.parent.worker.killed
    case.parent.worker.die("killed by SIGKILL")
    assert case.answers == [-errno.ETIMEDOUT]


def test_a_crash_is_followed_by_a_worker_that_takes_the_device_over_at_once() -> None:
    case = Case().serving()
    case.parent.worker.die("killed by SIGKILL")
    assert case.parent.worker.job == {"adopt": True, "delay": 0.0, "park": False}
    case.serving()
    assert case.device.state is State.SERVING
    assert case.answers == [0]


def test_repeated_crashes_wait_longer_and_are_given_up_in_the_end() -> None:
    case = Case().serving()
    delays = []
    while case.device.state is not State.FAILED:
        case.parent.worker.die("killed by SIGSEGV")
        delays.append(case.parent.worker.job["delay"])
    assert delays[:6] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert max(delays) == managed.LONGEST_DELAY
    assert case.parent.worker.job["park"]
    assert case.device.reason == "killed by SIGSEGV"


def test_what_was_given_up_is_tried_again_on_request() -> None:
    case = Case().serving()
    while case.device.state is not State.FAILED:
        case.parent.worker.die("killed by SIGSEGV")
    case.device.retry()
    assert case.device.state is State.OPENING
    case.serving()
    assert case.device.state is State.SERVING


def test_an_adopted_device_that_does_not_open_is_tried_again() -> None:
    case = Case(adopted=True)
    case.parent.worker.say({"failed": errno.ENOENT, "reason": "no file"})
    case.parent.worker.die("it ended")
    assert case.device.state is State.OPENING
    assert case.device.reason == "no file"
    assert case.parent.forgotten == []


def test_removal_closes_the_worker_and_is_answered_when_it_is_gone() -> None:
    case = Case().serving()
    done: list[int] = []
    case.device.close(lambda: done.append(0))
    assert case.parent.worker.told[-1] == {"op": "close"}
    assert done == []
    case.parent.worker.die("it ended")
    assert done == [0]
    assert case.parent.forgotten == [case.device]


def test_a_close_that_hangs_is_killed_and_answered_even_if_the_worker_stays() -> None:
    case = Case().serving()
    done: list[int] = []
    case.device.close(lambda: done.append(0))
    case.parent.loop.fire("_end_is_late")
    assert case.parent.worker.killed
    case.parent.loop.fire("_closed")
    assert done == [0]


def test_removal_during_an_open_kills_it_and_answers_both_questions() -> None:
    case = Case()
    done: list[int] = []
    case.device.close(lambda: done.append(0))
    assert case.parent.worker.killed
    case.parent.worker.die("killed by SIGKILL")
    assert (done, case.answers) == ([0], [-errno.EINTR])


def test_a_drain_that_hangs_leaves_the_device_blocked() -> None:
    case = Case().serving()
    done: list[int] = []
    case.device.drain(10, lambda: done.append(0))
    hanging = case.parent.worker
    case.parent.loop.fire("_end_is_late")
    assert hanging.killed
    assert case.parent.worker.job["park"]
    case.parent.worker.die("it ended")
    assert done == [0]


LIMIT = 64 << 20


def test_a_worker_within_its_memory_limit_is_left_alone() -> None:
    case = Case().serving()
    case.parent.worker.memory = LIMIT
    case.device.hold_to(LIMIT)
    assert case.parent.worker.told == []


def test_a_worker_over_its_memory_limit_drains_and_the_next_one_starts_at_once() -> None:
    case = Case().serving()
    leaking = case.parent.worker
    leaking.memory = LIMIT + 1
    for _ in range(2):
        case.device.hold_to(LIMIT)
    assert leaking.told == [{"op": "drain"}]
    assert not leaking.killed
    leaking.die("it ended")
    assert case.parent.worker.job == {"adopt": True, "delay": 0.0, "park": False}
    assert case.device.reason == "it took 64 MiB of memory, its memory_limit is 64 MiB"
    case.serving()
    case.device.hold_to(LIMIT)
    assert case.parent.worker.told == [{"op": "record"}]


def test_a_worker_over_its_memory_limit_that_does_not_end_is_killed() -> None:
    case = Case().serving()
    case.parent.worker.memory = LIMIT + 1
    case.device.hold_to(LIMIT)
    case.parent.loop.fire("_kill")
    assert case.parent.worker.killed
    case.parent.worker.die("killed by SIGKILL")
    assert case.device.state is State.OPENING


def test_leaks_that_take_their_time_never_have_a_device_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(managed.MAX_CRASHES + 2):
        case.serving()
        now += managed.STEADY_SECONDS + 1
        case.parent.worker.memory = LIMIT + 1
        case.device.hold_to(LIMIT)
        case.parent.worker.die("it ended")
        assert case.parent.worker.job["delay"] == 0.0
    assert case.device.state is State.OPENING


def test_a_worker_that_does_not_answer_is_named_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    case = Case().serving()
    for _ in range(3):
        case.parent.loop.fire("_ping")
    assert case.parent.worker.told == [{"op": "ping"}]
    assert not case.parent.worker.killed
    assert [record.getMessage().partition("(")[2] for record in caplog.records if record.levelname == "WARNING"] == [
        "kill -9 1000 replaces it)",
        "kill -9 1000 replaces it)",
    ]


@pytest.mark.parametrize(
    "change", [Change(size=4096), Change(cfgstring="ram/x"), Change(write_cache=True)], ids=["size", "cfg", "cache"]
)
def test_a_value_that_is_so_already_does_not_reach_the_handler(change: Change) -> None:
    case = Case().serving()
    assert case.device.change(change).result(0) == (0, "")
    assert all(message["op"] != "reconfigure" for message in case.parent.worker.told)


def test_a_change_is_answered_by_the_worker() -> None:
    case = Case().serving()
    future = case.device.change(Change(size=8192))
    asked = case.parent.worker.told[-1]
    assert (asked["op"], asked["size"]) == ("reconfigure", 8192)
    case.parent.worker.say({"reconfigured": asked["id"], "errno": 0, "reason": "", "size": 8192, "write_cache": True})
    assert future.result(0) == (0, "")
    assert case.device.change(Change(size=8192)).done()


def test_a_changed_cfgstring_is_the_devices_from_then_on() -> None:
    case = Case().serving()
    case.device.change(Change(cfgstring="ram/y"))
    asked = case.parent.worker.told[-1]
    assert asked["cfgstring"] == "y"
    case.parent.worker.say({"reconfigured": asked["id"], "errno": 0, "reason": "", "size": 4096, "write_cache": True})
    assert case.device.name.config == "ram/y"


def test_a_change_is_answered_when_the_worker_dies_or_takes_too_long() -> None:
    case = Case().serving()
    late = case.device.change(Change(size=8192))
    case.parent.loop.fire("_change_is_late")
    assert late.result(0)[0] == errno.ETIMEDOUT
    lost = case.device.change(Change(size=8192))
    case.parent.worker.die("killed by SIGKILL")
    assert lost.result(0)[0] == errno.EIO
    assert case.device.change(Change(size=8192)).result(0)[0] == errno.EAGAIN
