"""The simulation itself: a seed is a schedule, a schedule is text, and a failure shrinks to what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import registrations as r
from tests.simulation.schedule import CHOICES, Schedule, format_step, parse_step
from tests.simulation.search import LEVELS, schedule_of, violation_of
from tests.simulation.shrink import shrink

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("level", LEVELS)
def test_a_seed_is_always_the_same_schedule(level: str) -> None:
    assert schedule_of(level, 7) == schedule_of(level, 7) != schedule_of(level, 8)


@pytest.mark.parametrize("level", ["engine", "session", "ring"])
def test_a_run_is_the_same_each_time(level: str) -> None:
    def story(seed: int) -> list[str]:
        lines: list[str] = []
        violation_of(schedule_of(level, seed), lines.append)
        return lines

    for seed in range(20):
        assert story(seed) == story(seed)


TALES = """
from tests.simulation.search import schedule_of, violation_of
for level in ("engine", "session", "ring"):
    for seed in range(150):
        violation_of(schedule_of(level, seed), print)
"""


def test_a_run_is_the_same_in_another_process() -> None:
    """What hashes by its address, as None and enumerations do, gives sets another order in each process."""
    told = [subprocess.run([sys.executable, "-c", TALES], cwd=ROOT, capture_output=True, check=True) for _ in range(2)]
    assert len(told[0].stdout) > 100_000
    assert told[0].stdout == told[1].stdout


@pytest.mark.parametrize("choices", [bytes(CHOICES), b"\1\2\3\4\5\6", b"\0\0\xff\0\0\0"])
def test_a_step_is_read_as_it_was_written(choices: bytes) -> None:
    assert parse_step(format_step(("write", choices))) == ("write", choices)


@pytest.mark.parametrize("level", ["engine", "session", "ring"])
def test_each_step_of_a_level_can_be_done_first(level: str) -> None:
    for name in LEVELS[level].weights:
        assert violation_of(Schedule(level, ((name, bytes(CHOICES)),))) is None


def test_a_failure_shrinks_to_the_steps_and_the_choices_that_it_needs() -> None:
    def run(schedule: Schedule) -> str | None:
        wanted = iter([("a", 3), ("b", 0)])
        at = next(wanted)
        for name, choices in schedule.steps:
            if name == at[0] and choices[0] >= at[1]:
                at = next(wanted, ("", 0))
        return "found" if at == ("", 0) else None

    steps = tuple((name, bytes([9] * CHOICES)) for name in "xaybzabx")
    small = shrink(Schedule("engine", steps), run)
    assert small.steps == (("a", b"\3" + bytes(5)), ("b", bytes(6)))


def test_a_schedule_runs_from_the_command_line() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--steps", "write read:01 complete complete drop"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "#1 write of a to unit 0" in done.stdout
    assert done.stdout.endswith("all is well\n")


# -- the model of reservations ----------------------------------------------------------------------------------------


def request(number: int, who: int, action: int, key: int = 0, new: int = 0, kind: int = 5) -> r.Request:
    return r.Request(number, who, action, key, new, kind, False)


def test_what_is_not_answered_yet_may_have_been_done() -> None:
    possible = r.Possible()
    possible.begin(request(1, 0, r.REGISTER, new=7))
    assert {state.key(0) for state in possible.states} == {None, 7}
    assert possible.answered(1, r.GOOD) == frozenset()
    assert {state.key(0) for state in possible.states} == {7}


def test_an_answer_that_no_order_of_events_explains_is_told() -> None:
    possible = r.Possible()
    possible.begin(request(1, 0, r.RESERVE, key=7))
    assert possible.answered(1, r.GOOD) is None


def test_whom_a_preemption_took_is_known_when_it_is_answered() -> None:
    possible = r.Possible({r.State(frozenset({(0, 1), (1, 2), (2, 2)}))})
    possible.begin(request(1, 0, r.PREEMPT_AND_ABORT, key=1, new=2))
    assert possible.answered(1, r.GOOD) == {1, 2}


def test_what_could_not_be_kept_changes_nothing() -> None:
    possible = r.Possible()
    possible.full = True
    possible.begin(request(1, 0, r.REGISTER, new=7))
    assert possible.answered(1, r.CHECK) == frozenset()
    assert possible.states == {r.State()}


def test_a_reset_under_way_may_release_whom_nobody_had_heard_of_when_it_was_sent() -> None:
    steps = "reset_unit:01 reserve_6 read:02 deliver:0000a2 compare:02"
    assert violation_of(Schedule("session", tuple(map(parse_step, steps.split())), 0)) is None
