import inspect
import logging
import threading
import types
from concurrent.futures import Future

import pluggy
import pytest
from tcmu_core.disk.backend import Backend, check_config, plugin_manager

from tcmu_core import Change, ConfigError, Device, Extent, HandlerError, hookimpl
from tcmu_core.hookspecs import DATA_HOOKS, HandlerHooks

SIZE = 1 << 20


class Minimal:
    """A handler of the two hooks that a disk needs."""

    @hookimpl
    def open(self, device):
        device.size = SIZE

    @hookimpl
    def read(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = b"m" * len(buffer)


def opened(handler, **attributes):
    backend = Backend(handler, Device("disk", "test", **attributes))
    backend.open()
    return backend


# -- hooks become callables -----------------------------------------------------------------------------------------


def test_hooks_that_are_not_there_are_none_and_the_disk_is_read_only_without_a_cache():
    backend = opened(Minimal())
    for name in ("write", "flush", "discard", "write_zeroes", "extents", "handle_cmd"):
        assert getattr(backend, name) is None
    assert backend.device.read_only
    assert not backend.device.write_cache


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

    backend = opened(All())
    assert backend.write is not None
    assert backend.flush is not None
    assert backend.discard is not None
    assert backend.write_zeroes is not None
    assert backend.extents is not None
    assert backend.handle_cmd is not None
    backend.read(1, [])
    backend.write(2, [])
    backend.flush()
    backend.discard(3, 4)
    backend.write_zeroes(5, 6)
    assert calls == [
        ("read", "disk", 1, []),
        ("write", "disk", 2, []),
        ("flush", "disk"),
        ("discard", "disk", 3, 4),
        ("write_zeroes", "disk", 5, 6),
    ]
    assert list(backend.extents(7, 8)) == [Extent(7, 8, mapped=True)]
    assert backend.handle_cmd("the command") == "the command"
    assert not backend.device.read_only


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
    assert opened(handler).read(4096, "buffers") == ("disk", 4096, "buffers")


def test_the_hot_path_has_no_pluggy_in_it():
    class Handler(Minimal):
        @hookimpl
        def read(self, device, offset, buffers):
            return [frame.function for frame in inspect.stack()[1:3]]

    assert opened(Handler()).read(0, [])[0] == inspect.currentframe().f_code.co_name


def test_one_handlers_hooks_never_reach_another_device():
    one, two = opened(Minimal()), opened(Minimal())
    assert one.manager is not two.manager
    assert len(one.manager.get_plugins()) == 1


def test_a_filter_around_the_handler_is_called_too():
    class Filter:
        @hookimpl(wrapper=True)
        def read(self, device, offset, buffers):
            result = yield
            return "filtered", result

    backend = opened(Minimal())
    backend.manager.register(Filter())
    backend.resolve()
    room = [memoryview(bytearray(2))]
    assert backend.read(0, room) == ("filtered", None)
    assert room[0] == b"mm"


# -- threads --------------------------------------------------------------------------------------------------------


class Threaded(Minimal):
    def __init__(self, threads):
        self.threads = threads
        self.at_close = None

    @hookimpl
    def open(self, device):
        device.size, device.threads = SIZE, self.threads

    @hookimpl
    def read(self, device, offset, buffers):
        return threading.current_thread()

    @hookimpl
    def extents(self, offset, length):
        return threading.current_thread()

    @hookimpl
    def close(self, device):
        self.at_close = threading.active_count()


def test_without_threads_a_hook_is_called_on_the_loops_thread():
    assert opened(Threaded(0)).read(0, []) is threading.current_thread()


def test_with_threads_data_hooks_are_called_on_the_devices_pool():
    backend = opened(Threaded(2))
    pending = backend.read(0, [])
    assert isinstance(pending, Future)
    assert pending.result().name.startswith("tcmu-disk")
    assert backend.extents(0, 1) is threading.current_thread()
    backend.close()


def test_close_waits_for_the_pool_and_comes_after_the_last_data_hook():
    before = threading.active_count()
    handler = Threaded(2)
    backend = opened(handler)
    release = threading.Event()
    pending = backend.device.offload(release.wait)
    threading.Timer(0.01, release.set).start()
    backend.close()
    assert pending.done()
    assert handler.at_close is not None
    assert handler.at_close <= before + 1  # the timer may still be ending


def test_offload_gives_results_and_errors():
    device = Device("disk", "test")
    assert device.offload(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        device.offload(divmod, 7, 0).result()
    device.shutdown()


# -- opening and closing --------------------------------------------------------------------------------------------


class Watched(Minimal):
    def __init__(self, **attributes):
        self.attributes = attributes
        self.calls = []

    @hookimpl
    def check_config(self, cfgstring):
        self.calls.append("check_config")
        if cfgstring == "bad":
            raise ConfigError("it is bad")

    @hookimpl
    def open(self, device):
        self.calls.append("open")
        device.size = SIZE
        for name, value in self.attributes.items():
            setattr(device, name, value)

    @hookimpl
    def close(self, device):
        self.calls.append("close")


def test_a_device_is_checked_opened_and_closed_once():
    handler = Watched()
    backend = opened(handler)
    backend.close()
    backend.close()
    assert handler.calls == ["check_config", "open", "close"]


def test_a_bad_cfgstring_opens_nothing():
    handler = Watched()
    with pytest.raises(ConfigError, match="it is bad"):
        opened(handler, cfgstring="bad")
    assert handler.calls == ["check_config"]
    with pytest.raises(ConfigError, match="it is bad"):
        check_config(handler, "test", "bad")
    check_config(handler, "test", "good")


def test_an_error_of_open_is_the_callers_and_nothing_is_closed():
    class Fails(Watched):
        @hookimpl
        def open(self, device):
            raise FileNotFoundError(2, "no such image")

    handler = Fails()
    with pytest.raises(FileNotFoundError, match="no such image"):
        opened(handler)
    assert handler.calls == ["check_config"]


BAD_GEOMETRY = {
    "no size": ({"size": None}, ConfigError, "no size: give one"),
    "nothing": ({"size": 0}, ConfigError, "size 0 is less than one block"),
    "negative": ({"size": -512}, ConfigError, "size -512 is less than one block"),
    "less than a block": ({"size": 511}, ConfigError, "size 511 is less than one block"),
    "odd block": ({"block_size": 520}, HandlerError, "block_size 520 is no power of two"),
    "small block": ({"block_size": 256}, HandlerError, "block_size 256 is no power of two"),
    "large block": ({"block_size": 1 << 17}, HandlerError, "block_size 131072 is no power of two"),
    "small physical block": (
        {"block_size": 4096, "physical_block_size": 512},
        HandlerError,
        "physical_block_size 512 is no multiple of 4096",
    ),
}


@pytest.mark.parametrize("what", BAD_GEOMETRY)
def test_a_geometry_that_makes_no_disk_is_refused_and_the_storage_closed(what):
    attributes, kind, message = BAD_GEOMETRY[what]
    handler = Watched(**attributes)
    with pytest.raises(kind, match=message):
        opened(handler)
    assert handler.calls == ["check_config", "open", "close"]


def test_a_removable_device_may_be_empty():
    assert opened(Watched(size=0, removable=True)).device.blocks == 0


def test_changes_are_the_handlers():
    changes = []

    class Changing(Minimal):
        @hookimpl
        def reconfigure(self, device, change):
            changes.append((device.name, change))

    opened(Changing()).reconfigure(Change(size=4096))
    assert changes == [("disk", Change(size=4096))]
    with pytest.raises(NotImplementedError, match="'test' can't reconfigure"):
        opened(Minimal()).reconfigure(Change(size=4096))


# -- what a handler must look like ----------------------------------------------------------------------------------


def test_a_handler_of_raw_commands_needs_no_data_hooks():
    class Raw:
        @hookimpl
        def handle_cmd(self, command):
            return 0

    manager = plugin_manager(Raw(), "raw")
    assert isinstance(manager, pluggy.PluginManager)
    backend = Backend(Raw(), Device("disk", "raw", size=SIZE))
    backend.open()
    with pytest.raises(OSError, match="no read hook"):
        backend.read(0, [])


@pytest.mark.parametrize("hook", [name for name in vars(HandlerHooks) if not name.startswith("_")])
def test_every_hook_is_documented_and_the_first_answer_counts(hook):
    specification = getattr(HandlerHooks, hook)
    assert specification.__doc__
    assert specification.tcmu_spec["firstresult"]


def test_data_hooks_are_hooks():
    assert set(DATA_HOOKS) <= set(vars(HandlerHooks))


def test_a_devices_log_lines_begin_with_its_name(caplog):
    with caplog.at_level(logging.INFO, "tcmu.handler.test"):
        Device("disk", "test").log.info("hello")
    assert caplog.records[0].device == "test/disk"
