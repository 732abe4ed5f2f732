"""The life of a managed process, the same for kernel devices and targets, with hosts that do what the test says."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from tcmu_core.daemon import managed, watchdog
from tcmu_core.daemon.managed import State
from tcmu_core.disk.device import Change
from tcmu_core.host.messages import Adopt, Changed, Close, Drain, Failed, Ping, Pong, Reconfigure, Retry
from tests.daemon.conftest import Case

LIMIT = 64 << 20


def crash(case: Case, reason: str = "killed by SIGSEGV") -> None:
    case.host.die(reason)


def give_up(case: Case) -> list[float]:
    """Let hosts die until there is no next one; return how long each had to wait."""
    delays = []
    while case.managed.state is not State.QUARANTINED:
        crash(case)
        delays.append(case.host.job.delay)
    return delays[:-1]


def test_what_is_opened_is_served(case: Case) -> None:
    case.begin()
    assert case.managed.state is State.STARTING
    case.host.opened()
    assert case.managed.serving
    assert case.source.disks == 1


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_a_crash_is_followed_by_a_host_that_takes_over_at_once(case: Case) -> None:
    case.serving()
    crash(case)
    assert (case.host.job.takes_over, case.host.job.delay) == (True, 0.0)
    case.host.opened()
    assert case.managed.serving


def test_crashes_in_a_row_wait_longer_and_are_given_up_in_the_end(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.serving()
    delays = give_up(case)
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert case.managed.reason == "killed by SIGSEGV"
    assert "given up after 9 attempts, the last one: killed by SIGSEGV" in caplog.text
    assert case.source.disks == 0


def test_a_crash_after_steady_service_is_the_first_again(case: Case) -> None:
    case.serving()
    for _ in range(managed.MAX_CRASHES + 2):
        case.parent.loop.advance(managed.STEADY_SECONDS + 1)
        crash(case)
        assert case.host.job.delay == 0.0
        case.host.opened()


def test_what_was_given_up_is_tried_again_on_request(case: Case) -> None:
    case.serving()
    give_up(case)
    case.managed.retry()
    case.host.opened()
    assert case.managed.serving
    crash(case)
    assert case.host.job.delay == 0.0


def test_what_was_given_up_is_tried_again_every_so_often(case: Case) -> None:
    case.serving()
    give_up(case)
    before = len(case.started)
    for _ in range(3):
        case.parent.loop.advance(managed.RETRY_SECONDS)
        assert case.managed.state is State.STARTING
        crash(case)
        assert case.managed.state is State.QUARANTINED
    assert len(case.started) > before
    case.parent.loop.advance(managed.RETRY_SECONDS)
    case.host.opened()
    assert case.managed.serving


def test_what_could_be_opened_once_is_tried_again_when_it_can_not(case: Case) -> None:
    case.serving()
    crash(case)
    case.host.say(Failed(errno.ENOENT, "no file"))
    crash(case, "it ended")
    assert case.managed.state is State.STARTING
    assert case.managed.reason == "no file"


def test_an_open_that_takes_long_is_told_and_one_that_takes_too_long_is_killed(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    case.begin()
    case.parent.loop.advance(managed.SLOW_SECONDS)
    assert f"{case.managed.title} is still being opened after 10 s: its handler's open is ended in 50 s" in caplog.text
    assert not case.host.killed
    case.parent.loop.advance(managed.OPEN_SECONDS - managed.SLOW_SECONDS)
    assert case.host.killed


# -- hosts that hang --------------------------------------------------------------------------------------------------


def test_a_host_that_hangs_is_told_within_ten_seconds_then_seldom_and_left_alone(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    case.serving()
    case.parent.loop.advance(10.0)
    assert case.host.told == [Ping()]
    assert caplog.text.count(f"(kill -9 {case.host.pid} replaces it)") == 1
    assert case.managed.silent
    case.parent.loop.advance(2 * watchdog.REMIND_SECONDS)
    assert caplog.text.count(f"(kill -9 {case.host.pid} replaces it)") == 3
    assert not case.host.killed


def test_a_host_that_answers_is_asked_again_and_nothing_is_said(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.serving()
    for _ in range(10):
        case.parent.loop.advance(watchdog.PING_SECONDS)
        assert case.host.told.pop() == Ping()
        case.host.say(Pong(7, 1))
    assert f"the worker of {case.managed.title} has not answered" not in caplog.text
    assert case.managed.status is not None
    assert (case.managed.status.commands, case.managed.status.in_flight) == (7, 1)


# -- hosts that leak --------------------------------------------------------------------------------------------------


def test_a_host_within_its_memory_limit_is_left_alone(case: Case) -> None:
    case.serving()
    case.host.memory = LIMIT
    case.managed.hold_to(LIMIT)
    assert case.host.told == []


def test_a_host_over_its_memory_limit_drains_and_the_next_one_starts_at_once(case: Case) -> None:
    case.serving()
    leaking = case.host
    leaking.memory = LIMIT + 1
    for _ in range(2):
        case.managed.hold_to(LIMIT)
    assert leaking.told == [Drain()]
    assert not leaking.killed
    crash(case, "it ended")
    assert (case.host.job.takes_over, case.host.job.delay) == (True, 0.0)
    assert case.managed.reason == "it took 64 MiB of memory, its memory_limit is 64 MiB"
    case.host.opened()
    case.managed.hold_to(LIMIT)
    assert case.host.told == []


def test_a_host_over_its_memory_limit_that_does_not_end_is_killed(case: Case) -> None:
    case.serving()
    case.host.memory = LIMIT + 1
    case.managed.hold_to(LIMIT)
    case.parent.loop.advance(managed.CLOSE_SECONDS)
    assert case.host.killed
    crash(case, "killed by SIGKILL")
    assert case.managed.state is State.STARTING


# -- a supervisor that was killed -------------------------------------------------------------------------------------


def test_the_next_supervisor_adopts_the_hosts_of_one_that_was_killed(case: Case) -> None:
    following = case.serving().next()
    following.begin()
    assert following.parent.left == {}
    assert len(following.started) == 1
    following.host.opened()
    assert following.managed.serving
    following.parent.loop.advance(watchdog.PING_SECONDS)
    assert Drain() not in following.host.told
    crash(following)
    assert following.host.job.takes_over


def test_a_host_that_was_left_with_something_else_to_do_drains_and_is_followed_by_another(case: Case) -> None:
    following = case.serving().next()
    following.begin()
    old = following.host
    old.opened(dataclasses.replace(old.job, version="0.0"))
    assert old.told == [Drain()]
    crash(following, "it ended")
    assert following.host is not old
    following.host.opened()
    assert following.managed.serving


def test_a_host_that_was_left_and_hangs_is_replaced(case: Case) -> None:
    following = case.serving().next()
    following.begin()
    hung = following.host
    following.parent.loop.advance(managed.ADOPT_SECONDS)
    assert hung.killed
    crash(following, "killed by SIGKILL")
    assert following.host is not hung
    assert following.host.job.takes_over
    following.host.opened()
    assert following.managed.serving


# -- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [Change(size=8192), Change(write_cache=False), Change(cfgstring="y")])
def test_a_change_is_answered_by_the_host(case: Case, change: Change) -> None:
    case.serving()
    future = case.managed.change(change)
    asked = case.host.told[-1]
    assert isinstance(asked, Reconfigure)
    assert asked.change == change
    assert not future.done()
    assert case.managed.status is not None
    (disk,) = case.managed.status.disks
    case.host.say(Changed(asked.id, 0, "", dataclasses.replace(disk, size=8192)))
    assert future.result(0) == (0, "")
    assert case.managed.status.disks[0].size == 8192


def test_a_change_that_fails_says_why(case: Case) -> None:
    case.serving()
    future = case.managed.change(Change(size=8192))
    asked = case.host.told[-1]
    assert isinstance(asked, Reconfigure)
    case.host.say(Changed(asked.id, errno.ENOSPC, "full"))
    assert future.result(0) == (errno.ENOSPC, "full")


def test_a_change_is_answered_when_the_host_dies_or_takes_too_long(case: Case) -> None:
    case.serving()
    late = case.managed.change(Change(size=8192))
    case.parent.loop.advance(managed.CHANGE_SECONDS)
    assert late.result(0)[0] == errno.ETIMEDOUT
    lost = case.managed.change(Change(size=8192))
    crash(case)
    assert lost.result(0)[0] == errno.EIO
    assert case.managed.change(Change(size=8192)).result(0)[0] == errno.EAGAIN


def test_disks_that_are_missing_are_tried_again_on_request(case: Case) -> None:
    case.serving()
    case.managed.retry()
    assert case.host.told == [Retry()]


# -- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Close(), Drain()], ids=["close", "drain"])
def test_an_end_is_told_when_the_host_is_gone(case: Case, way: Close | Drain) -> None:
    case.serving()
    done: list[bool] = []
    if isinstance(way, Close):
        case.managed.close(lambda: done.append(True))
    else:
        case.managed.drain(10.0, lambda: done.append(True))
    assert case.host.told[-1] == way
    assert not done
    crash(case, "it ended")
    assert done
    assert not case.exists


def test_an_end_that_hangs_is_killed_and_told_even_if_the_host_stays(case: Case) -> None:
    case.serving()
    done: list[bool] = []
    case.managed.close(lambda: done.append(True))
    case.parent.loop.advance(managed.CLOSE_SECONDS)
    assert case.host.killed
    case.parent.loop.advance(managed.HOPELESS_SECONDS)
    assert done


def test_an_end_while_nothing_serves_is_told_too(case: Case) -> None:
    case.serving()
    crash(case)
    done: list[bool] = []
    case.managed.drain(10.0, lambda: done.append(True))
    assert case.host.killed
    crash(case, "killed by SIGKILL")
    assert done


def test_the_source_stops_when_every_host_has_ended(case: Case) -> None:
    case.serving()
    done: list[bool] = []
    case.source.stop(lambda: done.append(True))
    for process in case.parent.processes:
        assert process.told[-1] == Drain()
        assert not done
        process.die("it ended")
    case.parent.loop.advance(0.0)
    assert done


def test_what_an_earlier_host_still_says_is_not_heard(case: Case) -> None:
    case.serving()
    old = case.host
    crash(case)
    old.say(Failed(errno.EIO, "late"))
    old.die("again")
    case.host.opened()
    assert case.managed.serving
    assert Adopt() not in case.host.told
