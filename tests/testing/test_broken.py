"""Every handler that is broken on purpose is caught, by the promise that it breaks; those that are sound pass."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from tcmu_core import ConfigError, hookimpl
from tcmu_core.testing import THROUGH, WAYS, PromiseBroken, check_handler, harness, kit, open_device, reached
from tests.testing.broken import by_command, data, life, sound
from tests.testing.broken.sound import SIZE

CAUGHT = {**data.CAUGHT, **life.CAUGHT, **by_command.CAUGHT}


@pytest.fixture
def maker(tmp_path):
    """Return a maker of devices of a class, in a file of its own where it has one."""

    def of(handler):
        path = f"{tmp_path}/{handler.__name__}" if issubclass(handler, sound.Stored) else ""
        return lambda: open_device(handler, path, size=SIZE)

    return of


@pytest.mark.parametrize("handler", CAUGHT, ids=lambda handler: handler.__name__)
def test_a_broken_handler_is_caught_with_the_promise_the_call_and_the_values(handler, maker, monkeypatch):
    monkeypatch.setattr(harness, "TIMEOUT", 1.0 if handler.__name__.startswith("Never") else 60.0)
    monkeypatch.setattr(kit, "LIMIT", 2)
    with pytest.raises((PromiseBroken, ConfigError)) as told:
        check_handler(maker(handler), persistent=issubclass(handler, sound.Stored), examples=3)
    assert re.search(CAUGHT[handler], str(told.value), re.DOTALL), str(told.value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "handler", [one for one in by_command.CAUGHT if one not in by_command.COPIED], ids=lambda handler: handler.__name__
)
def test_what_commands_show_is_caught_through_each_way_in(handler, way, maker):
    wanted = by_command.CAUGHT[handler].replace("engine", way)
    (promise,) = (one for one in THROUGH if wanted.startswith(f"{one.__name__} through the {way}: "))
    with pytest.raises(PromiseBroken) as told:
        promise(lambda: reached(way, maker(handler)))
    assert re.search(wanted.partition(f"{way}: ")[2], str(told.value), re.DOTALL), str(told.value)


def test_a_hook_that_never_returns_is_noticed_after_the_time_of_one_call(maker, monkeypatch):
    monkeypatch.setattr(harness, "TIMEOUT", 1.0)
    began = time.monotonic()
    with pytest.raises(harness.Hangs, match="it has not returned"):
        check_handler(maker(life.NeverCloses))
    assert time.monotonic() - began < 10 < kit.LIMIT


def test_the_kernels_memory_is_left_alone_when_a_command_has_ended(maker):
    with pytest.raises(PromiseBroken, match="the last command through the ring: buffers in the kernel's memory were"):
        WritesLate.check(maker)


class WritesLate(sound.Memory):
    """Buffers of a read are filled once more by the next one."""

    before = None

    @hookimpl
    def read(self, device, offset, buffers):
        if self.before is not None:
            sound.Memory.read(self, device, *self.before)
        self.before = offset, list(buffers)
        sound.Memory.read(self, device, offset, buffers)

    @classmethod
    def check(cls, maker):
        with reached("ring", maker(cls)) as disk:
            disk.read(0, 8192)
            disk.read(65536, 512)


def test_what_is_cut_into_several_commands_comes_together(maker):
    data = random.Random(1).randbytes(sound.SIZE)
    for way in WAYS:
        with reached(way, lambda: open_device(sound.Memory, size=sound.SIZE, max_transfer_length=8192)) as disk:
            disk.write(0, data, [1, 513, 70000])
            assert disk.read(0, len(data), [4095, 4097]) == data


def test_there_are_enough_of_them():
    assert len(CAUGHT) >= 40
    assert all(handler.__doc__ for handler in CAUGHT)


SOUND = {
    sound.Memory: {
        "check_far_offsets",
        "check_write_errors",
        "check_read_errors",
        "check_flush_errors",
        "check_failing_open",
    },
    sound.Stored: {"check_extents", "check_zeros", "check_far_offsets"},
    sound.Sparse: {
        "check_extents",
        "check_failing_open",
        "check_flush",
        "check_flush_errors",
        "check_read_errors",
        "check_resizing",
        "check_sizes",
        "check_write_errors",
        "check_zeros",
    },
    sound.ReadOnly: {
        "check_buffers",
        "check_ends",
        "check_extents",
        "check_failing_open",
        "check_far_offsets",
        "check_flush",
        "check_flush_errors",
        "check_model",
        "check_read_errors",
        "check_resizing",
        "check_sizes",
        "check_write_errors",
        "check_zeros",
    },
}


@pytest.mark.parametrize("handler", SOUND, ids=lambda handler: handler.__name__)
def test_a_sound_handler_passes_and_what_was_left_out_is_listed(handler, maker, capsys):
    report = check_handler(maker(handler), persistent=handler is sound.Stored, examples=5)
    left_out = dict(report.left_out)
    staying = set() if handler is sound.Stored else {"check_persistence", "check_crash"}
    assert left_out.keys() == SOUND[handler] | staying
    assert not left_out.keys() & set(report.checked)
    said = capsys.readouterr().out
    for name, reason in left_out.items():
        assert f"left out: {name}: {reason}\n" in said


def test_what_a_handler_claims_not_to_do_is_not_checked_and_listed(maker):
    report = check_handler(maker(life.ResizingLosesData), examples=2, claims=["fixed size"])
    assert ("check_resizing", "claimed: fixed size") in report.left_out
    with pytest.raises(KeyError):
        check_handler(maker(sound.Memory), claims=["what nobody knows"])


def test_the_guide_tells_every_claim():
    guide = (Path(__file__).parents[2] / "docs" / "handlers.md").read_text()
    for claim, promises in kit.CLAIMS.items():
        assert f"| `{claim}` |" in guide
        assert set(promises) <= {promise.__name__ for promise in (*kit.PROMISES, *kit.STAYING, *kit.LAST)}
