"""Hooks become plain callables; filters stand upon them; what can't be a hook is refused when it is loaded."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import threading
import types
from concurrent.futures import CancelledError, Future

import pluggy
import pytest

from tcmu_core import Extent, HandlerError, WriteProtected, hookimpl
from tcmu_core.disk.layers import OPERATIONS, WRITING, Operations, plugin_manager, stack
from tcmu_core.hookspecs import HOOKS, HandlerHooks
from tests.disk.conftest import SIZE, Minimal, Writable, opened

# -- hooks become callables -----------------------------------------------------------------------------------------


def test_hooks_that_are_not_there_are_none_and_the_disk_is_read_only_without_a_cache():
    disk = opened(Minimal())
    for name in OPERATIONS:
        assert (getattr(disk.operations, name) is None) == (name != "read")
    assert disk.read_only
    assert disk.device.read_only
    assert not disk.device.write_cache


def test_every_hook_is_called_with_the_engines_arguments():
    calls = []

    class All(Minimal):
        @hookimpl
        def read(self, device, offset, buffers):
            calls.append(("read", device.name, offset, buffers))

        @hookimpl
        def write(self, device, offset, buffers):
            calls.append(("write", device.name, offset, buffers))

        @hookimpl
        def flush(self, device):
            calls.append(("flush", device.name))

        @hookimpl
        def discard(self, device, offset, length):
            calls.append(("discard", device.name, offset, length))

        @hookimpl
        def write_zeroes(self, device, offset, length):
            calls.append(("write_zeroes", device.name, offset, length))

        @hookimpl
        def extents(self, device, offset, length):
            return [Extent(offset, length, mapped=True)]

        @hookimpl
        def handle_cmd(self, device, command):
            return command

    disk = opened(All())
    does = disk.operations
    does.read(1, [])
    does.write(2, [])
    does.flush()
    does.discard(3, 4)
    does.write_zeroes(5, 6)
    assert calls == [
        ("read", "disk", 1, []),
        ("write", "disk", 2, []),
        ("flush", "disk"),
        ("discard", "disk", 3, 4),
        ("write_zeroes", "disk", 5, 6),
    ]
    assert list(does.extents(7, 8)) == [Extent(7, 8, mapped=True)]
    assert does.handle_cmd("the command") == "the command"
    assert not disk.read_only


def _signatures():
    def plain(device, offset, buffers):
        return device.name, offset, buffers

    def without_device(offset, buffers):
        return "disk", offset, buffers

    def in_another_order(buffers, device, offset):
        return device.name, offset, buffers

    def offset_only(offset):
        return "disk", offset, "buffers"

    def nothing():
        return "disk", 4096, "buffers"

    return [plain, without_device, in_another_order, offset_only, nothing]


@pytest.mark.parametrize("function", _signatures(), ids=lambda function: function.__name__)
@pytest.mark.parametrize("form", ["module", "method", "static", "class"])
def test_a_hook_names_the_arguments_that_it_needs_in_any_order(function, form):
    names = ", ".join(inspect.signature(function).parameters)
    if form == "module":
        handler = types.ModuleType("handler")
        handler.open = hookimpl(lambda device: setattr(device, "size", SIZE))
        handler.read = hookimpl(function)
    else:
        first = {"method": "self, ", "static": "", "class": "cls, "}[form]
        space = {"function": function, "hookimpl": hookimpl}
        exec(f"def read({first}{names}): return function({names})", space)
        wrapped = {"method": lambda it: it, "static": staticmethod, "class": classmethod}[form]
        handler = type("Handler", (Minimal,), {"read": wrapped(hookimpl(space["read"]))})()
    assert opened(handler).operations.read(4096, "buffers") == ("disk", 4096, "buffers")


def test_the_hot_path_has_no_pluggy_in_it():
    class Handler(Minimal):
        @hookimpl
        def read(self, device, offset, buffers):
            return [frame.function for frame in inspect.stack()[1:3]]

    assert opened(Handler()).operations.read(0, [])[0] == inspect.currentframe().f_code.co_name


def test_one_handlers_hooks_never_reach_another_device():
    calls = []

    class Told(Minimal):
        @hookimpl
        def read(self, device, offset, buffers):
            calls.append(device.name)

    one, two = opened(Told(), name="one"), opened(Told(), name="two")
    one.operations.read(0, [])
    two.operations.read(0, [])
    assert calls == ["one", "two"]


@pytest.mark.parametrize("name", WRITING)
def test_what_a_person_made_read_only_calls_no_hook_that_writes(name):
    called = []
    handler = Writable()
    disk = opened(type("Handler", (Writable,), {name: hookimpl(lambda self: called.append(name))})(), read_only=True)
    with pytest.raises(WriteProtected):
        getattr(disk.operations, name)(0, [] if name == "write" else 512)
    assert not called
    assert getattr(opened(handler).operations, name)(0, []) is None


# -- filters --------------------------------------------------------------------------------------------------------


class Loud:
    """A filter of all operations that says which it saw."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen
        for operation in OPERATIONS:
            setattr(self, operation, functools.partial(self._pass, operation))

    def _pass(self, operation, below, *arguments):
        self.seen.append((self.name, operation))
        return below(*arguments)


def test_filters_stand_one_upon_another_and_see_each_operation():
    seen = []
    below = Operations(**dict.fromkeys(OPERATIONS, lambda *arguments: arguments))
    disk = stack(Loud("top", seen), stack(Loud("bottom", seen), below))
    for name in OPERATIONS:
        assert getattr(disk, name)(1, 2) == (1, 2)
        assert seen == [("top", name), ("bottom", name)]
        seen.clear()


def test_an_operation_that_a_filter_does_not_know_does_not_pass_it_by():
    class Reads:
        def read(self, below, offset, buffers):
            return below(offset, buffers)

    disk = stack(Reads(), Operations(**dict.fromkeys(OPERATIONS, lambda *_: None)))
    assert [name for name in OPERATIONS if getattr(disk, name)] == ["read"]


def test_a_filter_makes_no_operation_of_nothing_but_sees_commands():
    disk = stack(Loud("it", []), Operations(read=lambda *_: None))
    assert [name for name in OPERATIONS if getattr(disk, name)] == ["read", "handle_cmd"]  # there are commands always


def test_a_filter_that_nothing_could_be_read_through_is_refused():
    with pytest.raises(HandlerError, match="the filter object has no 'read'"):
        stack(object(), Operations(read=lambda *_: None))


# -- threads --------------------------------------------------------------------------------------------------------


def threaded(result, threads=2):
    """Return an open disk whose `read` returns what `result()` does."""

    class Threaded(Minimal):
        @hookimpl
        def open(self, device):
            device.size, device.threads = SIZE, threads

        @hookimpl
        def read(self, device, offset, buffers):
            return result()

        @hookimpl
        def extents(self, offset, length):
            return threading.current_thread()

    return opened(Threaded())


def test_without_threads_a_hook_is_called_on_the_loops_thread():
    seen = []
    threaded(lambda: seen.append(threading.current_thread()), threads=0).operations.read(0, [])
    assert seen == [threading.current_thread()]


def test_with_threads_data_hooks_are_called_on_the_devices_pool():
    seen = []
    disk = threaded(lambda: seen.append(threading.current_thread().name))
    assert disk.operations.read(0, []).result() is None
    assert seen[0].startswith("tcmu-disk")
    assert disk.operations.extents(0, 1) is threading.current_thread()
    disk.close()


def finished(result=None, error=None):
    future = Future()
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
    return future


def test_a_future_that_comes_from_a_thread_is_waited_for():
    inner = Future()
    disk = threaded(lambda: inner)
    pending = disk.operations.read(0, [])
    disk.device.shutdown()  # the hook has returned
    assert not pending.done()
    inner.set_result(None)
    assert pending.result() is None


def test_an_error_in_a_future_that_comes_from_a_thread_is_the_commands():
    for error in (OSError(5, "no"), ValueError("no")):
        with pytest.raises(type(error), match="no"):
            threaded(lambda error=error: finished(error=error)).operations.read(0, []).result()


def test_a_future_that_was_cancelled_ends_the_command():
    inner = Future()
    inner.cancel()
    with pytest.raises(CancelledError):
        threaded(lambda: inner).operations.read(0, []).result(timeout=60)


async def coroutine():
    pass


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (lambda: b"the secret on the disk", "'bytes'"),
        (lambda: 512, "'int'"),
        (lambda: True, "'bool'"),
        (lambda: iter(()), "'tuple_iterator'"),
        (lambda: asyncio.run(coroutine()) or 0, "'int'"),
    ],
    ids=["data", "count", "truth", "iterator", "zero"],
)
def test_a_result_that_no_hook_may_have_fails_on_a_thread_too_and_is_not_quoted(result, kind):
    with pytest.raises(HandlerError) as told:
        threaded(result).operations.read(0, []).result()
    assert f"a hook returned {kind}: it must return None, or a concurrent.futures.Future" in str(told.value)
    assert "secret" not in str(told.value)


def test_a_coroutine_that_nobody_awaits_fails_on_a_thread_too():
    made = coroutine()
    with pytest.raises(HandlerError, match="its coroutine was never awaited"):
        threaded(lambda: made).operations.read(0, []).result()
    made.close()


# -- what a handler must look like ----------------------------------------------------------------------------------


async def _async(*_args):
    pass


async def _async_generator(*_args):
    yield


def _generator(*_args):
    yield


class _Callable:
    def __call__(self, offset, buffers):
        pass


class _AsyncCallable:
    async def __call__(self, offset, buffers):
        pass


NO_HOOKS = {
    "coroutine function": (_async, "a coroutine function"),
    "asynchronous generator": (_async_generator, "an asynchronous generator"),
    "generator": (_generator, "a generator"),
    "partial of one": (functools.partial(_async), "a coroutine function"),
    "partial of a partial": (functools.partial(functools.partial(_generator)), "a generator"),
    "old coroutine": (types.coroutine(_generator), "a generator"),
    "callable with async __call__": (_AsyncCallable(), "a coroutine function"),
    "callable": (_Callable(), "an object of '_Callable'"),
    "partial": (functools.partial(print), "an object of 'partial'"),
    "class": (type("Read", (), {}), "an object of 'type'"),
}
HOLDERS = ["module", "class", "static", "classmethod", "instance"]


@pytest.mark.parametrize("hook", ["open", "read", "write", "flush", "handle_cmd", "reconfigure"])
@pytest.mark.parametrize("what", NO_HOOKS)
def test_a_hook_whose_call_would_do_nothing_is_refused_when_it_is_loaded(what, hook):
    function, reason = NO_HOOKS[what]
    handler = type("Handler", (Minimal,), {hook: hookimpl(copied(function))})()
    with pytest.raises(HandlerError, match=re.escape(f"handler 'x': its {hook!r} is {reason}")):
        plugin_manager(handler, "x")


def copied(function):
    """Return the function as an object of its own, which can be marked without marking the original."""
    if isinstance(function, types.FunctionType):
        return types.FunctionType(function.__code__, function.__globals__, function.__name__)
    if isinstance(function, functools.partial):
        return functools.partial(function.func)
    return type(function)("Read", (), {}) if function.__class__ is type else type(function)()


@pytest.mark.parametrize("holder", HOLDERS)
def test_it_is_refused_wherever_it_stands(holder):
    hook = hookimpl(copied(_async))
    if holder == "module":
        handler = types.ModuleType("handler")
        handler.open, handler.read = hookimpl(lambda device: None), hook
    elif holder == "instance":
        handler = Minimal()
        handler.read = hook
    else:
        wrap = {"class": lambda it: it, "static": staticmethod, "classmethod": classmethod}[holder]
        handler = type("Handler", (Minimal,), {"read": wrap(hook)})()
    with pytest.raises(HandlerError, match="its 'read' is a coroutine function"):
        plugin_manager(handler, "x")


def test_extents_may_be_a_generator():
    class Handler(Minimal):
        @hookimpl
        def extents(self, offset, length):
            yield Extent(offset, length, mapped=True)

    assert list(opened(Handler()).operations.extents(0, 512)) == [Extent(0, 512, mapped=True)]


def test_a_decorated_hook_is_a_hook():
    def noted(function):
        @functools.wraps(function)
        def call(self, offset, buffers):
            return function(self, offset, buffers)

        return call

    class Handler(Minimal):
        @hookimpl
        @noted
        def read(self, offset, buffers):
            buffers.append(offset)

    room = []
    opened(Handler()).operations.read(7, room)
    assert room == [7]


def test_arguments_that_have_a_default_are_given_too():
    calls = []

    class Handler(Minimal):
        @hookimpl
        def open(self, device=None):
            device.size = SIZE

        @hookimpl
        def read(self, offset, buffers=(), retries=3):
            calls.append((offset, buffers, retries))

        @hookimpl
        def write(self, buffers=(), offset=0):
            calls.append((offset, buffers))

    disk = opened(Handler())
    disk.operations.read(7, "buffers")
    disk.operations.write(8, "data")
    assert calls == [(7, "buffers", 3), (8, "data")]


NEVER_GIVEN = {
    "*args": "'*args'",
    "**kwargs": "'**kwargs'",
    "offset, *more": "'*more'",
    "*, offset, buffers": "'offset' could be given by name alone",
    "offset, buffers, *, timeout": "'timeout' could be given by name alone",
    "offset, *, buffers=()": "'buffers' could be given by name alone",
    "offset, retries=3, buffers=()": "'buffers' stands behind what can't be given",
}


@pytest.mark.parametrize("arguments", NEVER_GIVEN)
def test_an_argument_that_would_never_be_given_is_refused_when_it_is_loaded(arguments):
    space = {"hookimpl": hookimpl}
    exec(f"def read(self, {arguments}): pass", space)
    handler = type("Handler", (Minimal,), {"read": hookimpl(space["read"])})()
    with pytest.raises(HandlerError, match=re.escape(NEVER_GIVEN[arguments]) + ".*write read.device, offset, buffers"):
        plugin_manager(handler, "x")


@pytest.mark.parametrize("arguments", ["offset, buffers, *more", "buffers, offset, **more", "offset, buffers, *, n=1"])
def test_what_a_hook_may_take_beside_its_arguments_is_its_own(arguments):
    space = {"hookimpl": hookimpl}
    exec(f"def read(self, {arguments}): return offset, buffers", space)
    handler = type("Handler", (Minimal,), {"read": hookimpl(space["read"])})()
    assert opened(handler).operations.read(7, "buffers") == (7, "buffers")


@pytest.mark.parametrize("option", [{"wrapper": True}, {"hookwrapper": True}, {"specname": "write"}])
@pytest.mark.parametrize("hook", ["extents", "flush"])
def test_a_mark_that_means_something_else_is_refused(option, hook):
    handler = type("Handler", (Minimal,), {hook: hookimpl(**option)(lambda self: (yield))})()
    with pytest.raises(HandlerError, match=f"its {hook!r} is marked with {next(iter(option))}.*write @hookimpl alone"):
        plugin_manager(handler, "x")


def test_a_mark_that_nobody_sees_is_refused():
    def written(self, how, offset, buffers):
        pass

    handler = type("Handler", (Minimal,), {"write": hookimpl(functools.partialmethod(written, "so"))})()
    with pytest.raises(HandlerError, match=r"its 'write' is an object of 'partialmethod'.*write one that calls it"):
        plugin_manager(handler, "x")


@pytest.mark.parametrize(
    ("wrong", "right"), [("wirte", "write"), ("flsh", "flush"), ("raed", "read"), ("handle_command", "handle_cmd")]
)
def test_a_misspelt_hook_is_told_what_may_be_meant(wrong, right):
    handler = type("Handler", (Minimal,), {wrong: hookimpl(lambda self: None)})()
    with pytest.raises(HandlerError, match=f"there is no hook {wrong!r}: did you mean {right!r}"):
        plugin_manager(handler, "x")


def test_a_hook_that_is_not_marked_beside_marked_ones_is_refused():
    def write(self, offset, buffers):
        pass

    forms = (write, staticmethod(write), classmethod(write), functools.lru_cache(write), functools.partial(write),
             functools.partialmethod(write), _Callable())  # fmt: skip
    for form in forms:
        handler = type("Handler", (Minimal,), {"write": form})()
        with pytest.raises(HandlerError, match=r"its 'write' is not marked with @tcmu_core\.hookimpl"):
            plugin_manager(handler, "x")
    module = types.ModuleType("some")
    exec("def write(offset, buffers): pass", vars(module))
    module.open, module.read = (hookimpl(lambda: None) for _ in "ab")
    with pytest.raises(HandlerError, match="its 'write' is not marked"):
        plugin_manager(module, "x")


def test_what_an_instance_keeps_under_the_name_of_a_hook_is_its_own():
    class Handler(Minimal):
        def __init__(self):
            self.flush = [].clear

    assert opened(Handler()).operations.flush is None


def test_a_function_that_a_module_imported_is_no_hook_of_its_own():
    module = types.ModuleType("some")
    exec("from os.path import join as write", vars(module))
    module.open, module.read = (hookimpl(lambda: None) for _ in "ab")
    plugin_manager(module, "x")


def test_a_marked_hook_may_stand_upon_an_unmarked_one_of_its_base():
    class Base:
        def read(self, offset, buffers):
            pass

    class Handler(Base):
        @hookimpl
        def open(self, device): ...

        @hookimpl
        def read(self, offset, buffers):
            super().read(offset, buffers)

    plugin_manager(Handler(), "x")


def test_a_handler_of_raw_commands_needs_no_data_hooks():
    class Raw:
        @hookimpl
        def handle_cmd(self, command):
            return 0

    assert isinstance(plugin_manager(Raw(), "raw"), pluggy.PluginManager)
    with pytest.raises(OSError, match="no read hook"):
        opened(Raw(), size=SIZE).operations.read(0, [])


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_and_the_first_answer_counts(hook):
    specification = getattr(HandlerHooks, hook)
    assert specification.__doc__
    assert specification.tcmu_spec["firstresult"]


def test_the_table_of_hooks_has_them_all():
    assert list(HOOKS) == [name for name in vars(HandlerHooks) if not name.startswith("_")]
    assert {name for name, hook in HOOKS.items() if hook.operation} == set(OPERATIONS)
    assert HOOKS["write"].arguments == ("offset", "buffers")
