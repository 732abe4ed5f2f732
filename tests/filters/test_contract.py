"""How filters are stacked, opened, changed and closed; what they don't know does not pass them by."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from tcmu_core.disk.device import Change
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.layers import OPERATIONS, Operations, resolve
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import ConfigError, HandlerError
from tcmu_core.filters.base import EVERY_HOOK, Filter, after
from tcmu_core.filters.control import command
from tcmu_core.handlers import Registry
from tcmu_core.scsi.command import Command
from tests.filters.conftest import SIZE, rig_upon, upon
from tests.scsi.harness import Memory, cdb10


class Passing(Filter):
    passes = EVERY_HOOK


class Noisy(Passing):
    """Notes what happens to it."""

    def __init__(self, name: str, said: list[str], fails: str = "") -> None:
        super().__init__()
        self.name, self.said, self.fails = name, said, fails

    def open(self, device: Any, below: Operations, options: Any) -> None:
        self._do("open")

    def close(self) -> None:
        self._do("close")

    def _do(self, what: str) -> None:
        self.said.append(f"{what} {self.name}")
        if self.fails == what:
            raise ConfigError(f"{self.name} fails")


def test_without_a_filter_nothing_stands_between_engine_and_handler() -> None:
    handler = Memory()
    with upon(handler=handler) as disk:
        assert disk.disk.operations.read == handler.read


def test_what_a_filter_passes_is_the_lower_operation_itself() -> None:
    with upon(Passing()) as disk:
        below = resolve(disk.disk._manager, disk.device, read_only=False)
        assert [getattr(disk.disk.operations, name) for name in OPERATIONS] == [
            getattr(below, name) for name in OPERATIONS
        ]


@pytest.mark.parametrize("hook", sorted(EVERY_HOOK - {"read", "reconfigure", "handle_cmd"}))
def test_a_hook_that_a_filter_does_not_know_is_gone(hook: str) -> None:
    class Ignorant(Filter):
        passes = EVERY_HOOK - {hook}

    with upon(Ignorant()) as disk:
        assert getattr(disk.disk.operations, hook) is None
        others = [name for name in OPERATIONS if name not in (hook, "handle_cmd")]
        assert all(getattr(disk.disk.operations, name) is not None for name in others)


def test_a_filter_that_can_not_read_is_refused() -> None:
    class Blind(Filter):
        passes = EVERY_HOOK - {"read"}

    with pytest.raises(HandlerError, match="Blind has no 'read'"), upon(Blind()):
        pass


def test_a_disk_whose_filter_does_not_know_writes_is_read_only() -> None:
    class NoWrites(Filter):
        passes = frozenset({"read", "flush"})

    with upon(NoWrites()) as disk:
        assert disk.disk.read_only
        assert disk.device.read_only


def test_a_filter_that_provides_an_operation_is_called_with_nothing_below() -> None:
    class Provides(Filter):
        passes = EVERY_HOOK - {"extents"}
        provides = frozenset({"extents"})

        def extents(self, below: Any, offset: int, length: int) -> list[Any]:
            assert below is None
            return []

    class Bare(Memory):
        extents = None  # type: ignore[assignment]

    with upon(Provides(), handler=Bare()) as disk:
        assert disk.disk.operations.extents(0, 512) == []


def test_a_filter_sees_commands_though_the_handler_does_not() -> None:
    seen = []

    class Watches(Passing):
        passes = EVERY_HOOK - {"handle_cmd"}

        def handle_cmd(self, below: Any, command: Command) -> Any:
            seen.append(command.cdb[0])
            return below(command)

    rig = rig_upon(Watches())
    rig.good(cdb10(0x28, 0, 1), room=512)
    assert seen == [0x28]


def test_a_filter_that_watches_no_commands_leaves_the_fast_path_open() -> None:
    rig = rig_upon(Passing())
    rig.good(cdb10(0x28, 0, 1), room=512)
    assert 0x28 in rig.engine.fast


def test_the_last_filter_is_on_top() -> None:
    order: list[str] = []

    class Says(Passing):
        passes = EVERY_HOOK - {"read"}

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def read(self, below: Any, offset: int, buffers: list[memoryview]) -> Any:
            order.append(self.name)
            return below(offset, buffers)

    with upon(Says("low"), Says("high")) as disk:
        disk.read(0, 512)
    assert order == ["high", "low"]


def test_filters_open_from_the_lowest_on_and_close_from_the_top_down() -> None:
    said: list[str] = []
    with upon(Noisy("low", said), Noisy("high", said)):
        assert said == ["open low", "open high"]
    assert said[2:] == ["close high", "close low"]


def test_a_filter_that_can_not_open_closes_those_that_are_open_and_the_handler() -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match="high fails"), upon(Noisy("low", said), Noisy("high", said, fails="open")):
        pass
    assert said == ["open low", "open high", "close low"]


def test_a_filter_that_can_not_close_does_not_keep_the_others_open() -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match="high fails"), upon(Noisy("low", said), Noisy("high", said, fails="close")):
        pass
    assert said[2:] == ["close high", "close low"]


def test_a_filter_that_breaks_is_named() -> None:
    class Broken(Passing):
        def open(self, *_: Any) -> None:
            raise ZeroDivisionError("oh")

    with (
        pytest.raises(HandlerError, match="filter 'broken' broke while it opened: ZeroDivisionError: oh"),
        upon(Broken()),
    ):
        pass


def test_options_that_make_a_disk_as_none_can_be_are_refused() -> None:
    class Shrinks(Passing):
        def open(self, device: Any, below: Operations, options: Any) -> None:
            device.size = 100

    with pytest.raises(ConfigError, match="less than one block"), upon(Shrinks()):
        pass


# -- changes ----------------------------------------------------------------------------------------------------------


class Grows(Memory):
    asked: Any = None

    from tcmu_core import hookimpl as _hook

    @_hook
    def reconfigure(self, device: Any, change: Change) -> None:
        self.asked = change


def test_a_change_goes_through_the_filters_that_let_it() -> None:
    handler = Grows()
    with upon(Passing(), handler=handler) as disk:
        disk.reconfigure(size=2 * SIZE)
        assert handler.asked == Change(size=2 * SIZE)
        assert disk.size == 2 * SIZE


def test_a_change_that_a_filter_does_not_know_is_refused_unless_nothing_would_change() -> None:
    class Stiff(Filter):
        passes = EVERY_HOOK - {"reconfigure"}

    handler = Grows()
    with upon(Stiff(), handler=handler) as disk:
        with pytest.raises(NotImplementedError, match="the filter 'stiff' lets no change through"):
            disk.reconfigure(size=2 * SIZE)
        disk.reconfigure(size=SIZE)
        assert handler.asked is None


# -- while it is in use -----------------------------------------------------------------------------------------------


def test_a_filter_can_be_put_on_and_taken_off_while_the_disk_is_in_use() -> None:
    said: list[str] = []
    with upon() as disk:
        disk.disk.push(Noisy("late", said))
        assert disk.disk.filter("late").name == "late"
        disk.disk.pop("late")
        assert said == ["open late", "close late"]
        with pytest.raises(ConfigError, match="has no filter 'late': it has none"):
            disk.disk.filter("late")
    assert said == ["open late", "close late"]


def test_what_is_told_of_filters_has_the_options_of_those_that_the_disk_was_opened_with() -> None:
    disk = Registry().get("ram").disk(DiskSpec("ram", size=SIZE, filters=("stats", "delay;read=1ms")))
    disk.open()
    try:
        command(disk, {"do": "push", "text": "delay;read=2ms"})
        assert disk.filter_texts == ("stats", "delay;read=1ms", "delay")
        command(disk, {"do": "pop", "name": "stats"})
        assert disk.filter_texts == ("delay;read=1ms", "delay")
    finally:
        disk.close()


def test_a_filter_that_changes_what_is_read_is_not_put_on_a_disk_in_use() -> None:
    class Other(Passing):
        live = False

    with upon(Other()) as disk:
        with pytest.raises(ConfigError, match="can't be put on a disk that is in use"):
            disk.disk.push(Other())
        with pytest.raises(ConfigError, match="can't be taken off"):
            disk.disk.pop("other")
        assert len(disk.disk.filters) == 1


def test_a_filter_that_can_not_open_leaves_the_disk_as_it_was() -> None:
    with upon() as disk:
        with pytest.raises(ConfigError, match="late fails"):
            disk.disk.push(Noisy("late", [], fails="open"))
        assert disk.disk.filters == []
        disk.write(0, b"x" * 512)


def test_a_filter_that_takes_no_messages_says_so() -> None:
    with upon(Passing()) as disk, pytest.raises(ConfigError, match="'passing' takes no messages"):
        disk.disk.tell("passing", {})


def _breaks(*_arguments: Any) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "control",
    [_breaks, lambda self, message: 5, lambda self, message: None, lambda self, message: {"a": object()},
     lambda self, message: {(1, 2): 3}],
)  # fmt: skip
@pytest.mark.parametrize("question", [{"do": "tell", "name": "odd", "message": {}}, {"do": "settings"}])
def test_a_filter_whose_answer_breaks_is_named_and_ends_nothing_else(control: Any, question: dict[str, Any]) -> None:
    kind = type("Odd", (Passing,), {"control": control, "settable": frozenset({"a"})})
    with upon(kind()) as disk:
        with pytest.raises(HandlerError, match="filter 'odd' broke while it answered: "):
            command(disk.disk, question)
        disk.write(0, b"x" * 512)


def test_a_filter_that_breaks_while_it_is_taken_off_is_off() -> None:
    with upon(type("Odd", (Passing,), {"close": _breaks})()) as disk:
        with pytest.raises(HandlerError, match="filter 'odd' broke while it closed: SystemExit: 3"):
            disk.disk.pop("odd")
        assert disk.disk.filters == []
        disk.write(0, b"x" * 512)


@pytest.mark.parametrize(("name", "value"), [("size", SIZE // 2), ("block_size", 4096), ("read_only", True)])
@pytest.mark.parametrize("fails", [False, True])
def test_a_filter_that_is_put_on_while_the_disk_is_in_use_makes_no_other_disk_of_it(
    name: str, value: Any, fails: bool
) -> None:
    def open_it(self: Any, device: Any, below: Operations, options: Any) -> None:
        setattr(device, name, value)
        if fails:
            raise ConfigError("it fails")

    with upon() as disk:
        before = getattr(disk.device, name)
        with pytest.raises((ConfigError, HandlerError), match=rf"it fails|has changed the {name} .* live = False"):
            disk.disk.push(type("Odd", (Passing,), {"open": open_it})())
        assert (getattr(disk.device, name), disk.disk.filters) == (before, [])
        disk.write(0, b"x" * 512)


@pytest.mark.parametrize("lost", ["write", "flush"])
def test_a_filter_that_does_not_know_writes_or_flushes_is_not_put_on_a_disk_in_use(lost: str) -> None:
    with upon() as disk:
        with pytest.raises(HandlerError, match=r"has changed the (read_only|write_cache) of a disk that is in use"):
            disk.disk.push(type("Odd", (Passing,), {"passes": EVERY_HOOK - {lost}})())
        assert not disk.device.read_only
        assert disk.device.write_cache
        disk.write(0, b"x" * 512)


# -- after ------------------------------------------------------------------------------------------------------------


def test_after_runs_at_once_where_nothing_waits() -> None:
    assert after(None, lambda: 7) == 7


def test_after_waits_for_what_waits_and_passes_its_error_on() -> None:
    pending: Future[None] = Future()
    then = after(pending, lambda: 7)
    assert isinstance(then, Future)
    assert not then.done()
    pending.set_result(None)
    assert then.result(0) == 7
    failed: Future[None] = Future()
    broken = after(failed, lambda: 7)
    failed.set_exception(OSError("no"))
    with pytest.raises(OSError, match="no"):
        broken.result(0)  # type: ignore[union-attr]


def test_the_disk_of_a_spec_has_the_filters_that_it_names() -> None:
    disk = Disk(DiskSpec("memory", size=SIZE), Memory(), [Passing()])
    disk.open()
    disk.close()
    with pytest.raises(ConfigError, match="has no filter 'other': it has passing"):
        disk.filter("other")
