"""A disk from open to close: what is looked at, what a change means, whose word counts, and who it is."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from concurrent.futures import Future

import pytest

from tcmu_core import Body, Change, ConfigError, HandlerError, Option, Options, WriteProtected, hookimpl
from tcmu_core.disk.disk import check_config
from tcmu_core.progress import Progress
from tests.disk.conftest import SIZE, Minimal, Writable, opened


class Watched(Minimal):
    """Sets attributes of its device in open, and notes its calls."""

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


# -- opening and closing --------------------------------------------------------------------------------------------


def test_a_device_is_checked_opened_and_closed_once():
    handler = Watched()
    disk = opened(handler)
    disk.close()
    disk.close()
    assert handler.calls == ["check_config", "open", "close"]


def test_a_bad_cfgstring_opens_nothing():
    handler = Watched()
    with pytest.raises(ConfigError, match="it is bad"):
        opened(handler, "bad")
    assert handler.calls == ["check_config"]
    with pytest.raises(ConfigError, match="it is bad"):
        check_config(handler, "test", "bad")
    check_config(handler, "test", "good")


@pytest.mark.parametrize("late", [False, True])
def test_an_error_of_open_is_the_callers_and_nothing_is_closed(late):
    class Fails(Watched):
        @hookimpl
        def open(self, device):
            error = FileNotFoundError(2, "no such image")
            if not late:
                raise error
            future = Future()
            future.set_exception(error)
            return future

    handler = Fails()
    with pytest.raises(FileNotFoundError, match="no such image"):
        opened(handler)
    assert handler.calls == ["check_config"]


@pytest.mark.parametrize("hook", ["open", "reconfigure", "close"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [None, OSError(5, "broken"), ZeroDivisionError("x")])
def test_what_a_hook_tells_the_progress_of_is_over_with_it(hook, late, error):
    told = []

    def slow(self, device):
        device.reported = told.append
        device.progress(1, 4, hook)
        if not late and error:
            raise error
        future = Future()
        future.set_exception(error) if error else future.set_result(None)
        return future if late else None

    handler = type("Handler", (Writable,), {hook: hookimpl(slow)})()
    with contextlib.suppress(OSError, HandlerError):
        disk = opened(handler, size=SIZE)
        disk.change(Change(size=SIZE))
        disk.close()
    assert told == [Progress(hook, 1, 4), None]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ZeroDivisionError("x")])
@pytest.mark.parametrize("hook", ["check_config", "open", "close", "reconfigure"])
@pytest.mark.parametrize("late", [False, True])
def test_whatever_a_hook_raises_ends_no_process(hook, error, late):
    def fails(self):
        if not late or hook == "check_config":
            raise error
        future = Future()
        future.set_exception(error)
        return future

    handler = type("Handler", (Writable,), {hook: hookimpl(fails)})()

    def live():
        disk = opened(handler, size=SIZE)
        disk.change(Change(size=SIZE))
        disk.close()

    with pytest.raises(HandlerError, match=f"handler 'test' broke while it .*{type(error).__name__}"):
        live()


def test_a_future_of_open_is_waited_for_and_anything_else_is_refused():
    later = Future()

    class Opens(Minimal):
        @hookimpl
        def open(self, device):
            threading.Timer(0.01, lambda: (setattr(device, "size", SIZE), later.set_result(None))).start()
            return later

    assert opened(Opens()).device.size == SIZE

    class Answers(Watched):
        @hookimpl
        def open(self, device):
            Watched.open(self, device)
            return 0

    handler = Answers()
    with pytest.raises(HandlerError, match="handler 'test', open: a hook returned 'int'"):
        opened(handler)
    assert handler.calls[-1] == "close"


def test_close_waits_for_the_pool_and_comes_after_the_last_data_hook():
    release = threading.Event()
    order = []

    class Handler(Minimal):
        @hookimpl
        def close(self, device):
            order.append("close")

    disk = opened(Handler())
    disk.device.offload(lambda: (release.wait(), order.append("work")))
    threading.Timer(0.01, release.set).start()
    disk.close()
    assert order == ["work", "close"]


def test_a_close_that_uses_the_pool_leaves_no_thread():
    class Handler(Minimal):
        @hookimpl
        def close(self, device):
            device.offload(threading.get_ident).result()

    disk = opened(Handler(), name="leaves")
    disk.close()
    for thread in threading.enumerate():
        if thread.name.startswith("tcmu-leaves"):
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize("expression", [bytearray, lambda size: size // 512, range])
def test_a_handler_that_counts_on_a_size_tells_what_to_do_when_there_is_none(expression):
    class Array(Minimal):
        @hookimpl
        def open(self, device):
            expression(device.size)

    with pytest.raises(ConfigError, match="no size: give one"):
        opened(Array())
    opened(Array(), size=512)


def test_another_error_without_a_size_is_the_handlers_own():
    class Broken(Minimal):
        @hookimpl
        def open(self, device):
            device.blocksize = 512

    with pytest.raises(HandlerError, match="did you mean 'block_size'"):
        opened(Broken())


# -- what open has left ---------------------------------------------------------------------------------------------

LEFT = {
    "no size": ({"size": None}, ConfigError, "no size: give one"),
    "nothing": ({"size": 0}, ConfigError, "size 0 is less than one block"),
    "negative": ({"size": -512}, ConfigError, "size -512 is less than one block"),
    "less than a block": ({"size": 511}, ConfigError, "size 511 is less than one block"),
    "a float": ({"size": 1e6}, HandlerError, "size is 1000000.0: it must be a whole number of bytes"),
    "a text": ({"size": "1M"}, HandlerError, "size is '1M': it must be a whole number"),
    "a truth": ({"size": True}, HandlerError, "size is True: it must be a whole number"),
    "odd block": ({"block_size": 520}, HandlerError, "block_size 520 is no power of two"),
    "small block": ({"block_size": 256}, HandlerError, "block_size 256 is no power of two"),
    "large block": ({"block_size": 1 << 17}, HandlerError, "block_size 131072 is no power of two"),
    "block of text": ({"block_size": "512"}, HandlerError, "block_size is '512': it must be a whole number"),
    "small physical block": (
        {"block_size": 4096, "physical_block_size": 512},
        HandlerError,
        "physical_block_size 512 is no multiple of 4096",
    ),
    "odd physical block": ({"physical_block_size": 1536}, HandlerError, "physical_block_size 1536 is no power of two"),
    "huge physical block": ({"physical_block_size": 1 << 40}, HandlerError, "is no power of two from 512 to 16777216"),
    "a transfer of less than a block": (
        {"max_transfer_length": 511},
        HandlerError,
        "max_transfer_length is 511, less than one block of 512 bytes: 0 is no limit",
    ),
    "a discard of less than a block": (
        {"block_size": 4096, "max_discard_length": 512},
        HandlerError,
        "max_discard_length is 512, less than one block of 4096 bytes",
    ),
    "a granularity that no page holds": (
        {"discard_granularity": 1 << 41},
        HandlerError,
        "discard_granularity is 2199023255552: at most 2199023255040 bytes",
    ),
    "threads": ({"threads": "4"}, HandlerError, "threads is '4': it must be a whole number"),
    "fewer threads than none": ({"threads": -1}, HandlerError, "threads is -1"),
    "limit": ({"max_transfer_length": 1e6}, HandlerError, "max_transfer_length is 1000000.0"),
    "granularity": ({"discard_granularity": None}, HandlerError, "discard_granularity is None"),
    "no alignment": ({"buffer_alignment": 0}, HandlerError, "buffer_alignment is 0: it must be a power of two"),
    "odd alignment": ({"buffer_alignment": 48}, HandlerError, "buffer_alignment is 48: it must be a power of two"),
    "huge alignment": ({"buffer_alignment": 1 << 17}, HandlerError, "power of two, 65536 bytes at most"),
    "type": ({"device_type": 0x20}, HandlerError, "device_type is 0x20: it has five bits"),
    "read_only": ({"read_only": "no"}, HandlerError, "read_only is 'no': it must be True or False"),
    "write_cache": ({"write_cache": 1}, HandlerError, "write_cache is 1: it must be True or False"),
    "thin": ({"thin": None}, HandlerError, "thin is None: it must be True or False"),
    "long vendor": ({"vendor": "NINE BYTE"}, HandlerError, "vendor is 'NINE BYTE': at most 8 printable ASCII"),
    "long product": ({"product": "p" * 17}, HandlerError, "at most 16 printable ASCII"),
    "long revision": ({"revision": "00002"}, HandlerError, "at most 4 printable ASCII"),
    "long serial": ({"serial": "s" * 253}, HandlerError, "at most 252 printable ASCII"),
    "bytes": ({"vendor": b"ACME"}, HandlerError, "vendor is b'ACME'"),
    "umlaut": ({"vendor": "Gerät"}, HandlerError, "at most 8 printable ASCII"),
    "line end": ({"serial": "a\nb"}, HandlerError, "at most 252 printable ASCII"),
    "opcodes": ({"opcodes": (0xC1,)}, HandlerError, "opcodes must be a tuple of tcmu_core.Opcode"),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_makes_no_disk_is_refused_and_the_storage_closed(what):
    attributes, kind, message = LEFT[what]
    handler = Watched(**attributes)
    with pytest.raises(kind, match=re.escape(message)):
        opened(handler)
    assert handler.calls == ["check_config", "open", "close"]


def test_a_removable_device_may_be_empty():
    assert opened(Watched(size=0, removable=True)).device.blocks == 0


def test_a_storage_that_is_not_whole_blocks_is_cut_and_that_is_logged(caplog):
    disk = opened(Watched(size=1300))
    assert disk.device.blocks == 2
    assert "1300 bytes are no whole blocks of 512: the last 276 are left out" in caplog.text


# -- read-only ------------------------------------------------------------------------------------------------------


def test_no_handler_overrules_a_person_who_said_read_only():
    class Overrules(Writable):
        @hookimpl
        def open(self, device):
            device.size, device.read_only = SIZE, False

        @hookimpl
        def reconfigure(self, device, change):
            device.read_only = False

    disk = opened(Overrules(), read_only=True)
    for _ in range(2):
        assert disk.read_only
        assert disk.device.read_only
        with pytest.raises(WriteProtected):
            disk.operations.write(0, [])
        disk.change(Change(size=SIZE))
        disk.device.threads = 2
        disk.resolve()
    assert not opened(Overrules()).read_only


def test_a_handler_may_make_its_own_device_read_only_and_writable_again():
    disk = opened(Writable())
    assert not disk.read_only
    disk.device.read_only = True
    assert disk.read_only
    disk.device.read_only = False
    assert not disk.read_only


# -- changes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "attribute", "value"),
    [
        (Change(size=4096), "size", 4096),
        (Change(cfgstring="/other"), "cfgstring", "/other"),
        (Change(write_cache=False), "write_cache", False),
    ],
)
def test_a_change_is_the_handlers_and_the_device_shows_it(change, attribute, value):
    changes = []

    class Changing(Minimal):
        @hookimpl
        def reconfigure(self, device, change):
            changes.append((device.name, change))

    disk = opened(Changing())
    disk.change(change)
    assert changes == [("disk", change)]
    assert getattr(disk.device, attribute) == value


@pytest.mark.parametrize("error", [ConfigError("not now"), OSError(28, "full"), ZeroDivisionError("x")])
def test_a_change_that_is_refused_is_none_whatever_the_handler_set_on_the_way(error):
    class Halfway(Writable):
        @hookimpl
        def flush(self):
            pass

        @hookimpl
        def reconfigure(self, device, change):
            device.size, device.cfgstring, device.write_cache, device.serial = 512, "other", False, "other"
            raise error

    disk = opened(Halfway(), "first", serial="first")
    with pytest.raises((ConfigError, OSError, HandlerError)):
        disk.change(Change(size=2 * SIZE))
    device = disk.device
    assert (device.size, device.cfgstring, device.write_cache, device.serial) == (SIZE, "first", True, "first")


def test_a_change_that_the_handler_refuses_is_none():
    class Refuses(Minimal):
        @hookimpl
        def reconfigure(self, device, change):
            raise ConfigError("not now")

    disk = opened(Refuses())
    with pytest.raises(ConfigError, match="not now"):
        disk.change(Change(size=4096))
    assert disk.device.size == SIZE


def test_a_handler_that_takes_no_change_says_so():
    with pytest.raises(NotImplementedError, match="handler 'test' can't change a device that is open"):
        opened(Minimal()).change(Change(size=4096))


def test_such_a_handler_need_not_take_the_write_cache_that_there_is():
    class Flushes(Minimal):
        @hookimpl
        def flush(self): ...

    disk = opened(Flushes())
    disk.change(Change(write_cache=True))
    with pytest.raises(NotImplementedError):
        disk.change(Change(write_cache=False))


def test_what_can_not_be_flushed_has_no_write_cache_to_be_switched_on():
    class Changing(Minimal):
        @hookimpl
        def reconfigure(self, change): ...

    disk = opened(Changing())
    with pytest.raises(ConfigError, match="no write cache"):
        disk.change(Change(write_cache=True))
    disk.change(Change(write_cache=False))
    assert not disk.device.write_cache


@pytest.mark.parametrize("size", [0, -512, 513, 1000])
def test_a_size_that_is_not_whole_blocks_never_reaches_the_handler(size):
    with pytest.raises(ConfigError, match=f"{size} bytes are not whole blocks of 512"):
        opened(Writable()).change(Change(size=size))


# -- identity -------------------------------------------------------------------------------------------------------


def serial(cfgstring="/disk.img", handler=Minimal, **attributes):
    return opened(handler(), cfgstring, **attributes).device.serial


def test_a_disk_in_its_place_keeps_its_identity():
    assert serial(place=("target", "0")) == serial(place=("target", "0"))
    assert re.fullmatch("[0-9a-f]{32}", serial(place=("target", "0")))


def test_disks_that_share_nothing_have_nothing_in_common():
    places = [("target", "0"), ("target", "1"), ("other", "0"), ("kernel", "0", "a"), ("kernel", "1", "a")]
    found = {serial(place=place) for place in places}
    found.add(serial("/other.img", place=places[0]))
    assert len(found) == len(places) + 1


def test_one_without_a_place_is_another_each_time():
    assert serial() != serial()


def test_one_that_ends_with_its_process_is_another_each_time():
    class Memory(Minimal):
        @hookimpl
        def open(self, device):
            device.size, device.ephemeral = SIZE, True

    assert serial(handler=Memory, place=("target", "0")) != serial(handler=Memory, place=("target", "0"))


def test_a_serial_number_that_was_given_stays():
    assert serial(serial="SN1") == "SN1"

    class Own(Minimal):
        @hookimpl
        def open(self, device):
            device.size, device.serial = SIZE, "OWN"

    assert serial(handler=Own, serial="SN1") == "OWN"


def test_a_drive_stays_the_same_when_its_disc_changes():
    class Drive(Minimal):
        @hookimpl
        def open(self, device):
            device.size, device.removable = SIZE, True

    assert serial("/a.iso", Drive, place=("t", "0")) == serial("/b.iso", Drive, place=("t", "0"))


def test_failing_to_close_what_was_refused_is_logged(caplog):
    class Twice(Minimal):
        @hookimpl
        def open(self, device):
            device.size = -1

        @hookimpl
        def close(self, device):
            raise OSError("stuck")

    with caplog.at_level(logging.ERROR, "tcmu.handler.test"), pytest.raises(ConfigError, match="less than one block"):
        opened(Twice())
    assert "closing failed: stuck" in caplog.text


# -- declared options -----------------------------------------------------------------------------------------------


class Declares(Writable):
    options = Options(Option("depth", int, least=1), body=Body("IMAGE", "an image"))

    def __init__(self):
        self.opens = 0

    @hookimpl
    def open(self, device):
        self.opens += 1
        device.size = SIZE


@pytest.mark.parametrize(
    ("cfgstring", "defaults", "message"),
    [
        ("/i;dept=1", {}, "unknown option 'dept': did you mean 'depth'?"),
        ("/i;depth=0", {}, "option 'depth': '0' is too small"),
        ("", {}, "no image: write an image"),
        ("/i", {"dept": "1"}, "the handler's defaults in tcmu.conf: unknown option 'dept'"),
    ],
)
def test_what_a_handler_declares_is_checked_for_it(cfgstring, defaults, message):
    handler = Declares()
    with pytest.raises(ConfigError, match=re.escape(message)):
        opened(handler, cfgstring, options=defaults)
    assert not handler.opens
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(handler, "test", cfgstring, defaults)


def test_a_change_of_the_cfgstring_is_checked_too():
    disk = opened(Declares(), "/i")
    with pytest.raises(ConfigError, match="did you mean 'depth'"):
        disk.change(Change(cfgstring="/i;dept=1"))
    disk.change(Change(cfgstring="/other;depth=2"))
    assert disk.device.cfgstring == "/other;depth=2"


def test_a_size_among_the_defaults_counts_where_the_disk_has_none_of_its_own():
    assert "size" not in opened(Minimal(), size=SIZE, options={"size": "2M", "sync": "yes"}).device.options
    assert opened(Minimal(), options={"size": "2M"}).device.options == {"size": "2M"}


@pytest.mark.parametrize(("size", "block_size"), [(1000, 512), (SIZE + 512, 4096)])
def test_a_size_that_is_asked_for_is_whole_blocks(size, block_size):
    handler = Watched()
    with pytest.raises(ConfigError, match=f"{size} bytes are not whole blocks of {block_size}"):
        opened(handler, size=size, block_size=block_size)
    assert handler.calls == ["check_config"]


@pytest.mark.parametrize(
    "error", [OSError(22, "Invalid argument"), OSError(5, "the server said no"), OSError(2, "No", "x")]
)
def test_an_error_of_open_that_is_a_number_alone_is_told_with_the_cfgstring(error):
    class Failing(Minimal):
        @hookimpl
        def open(self, device):
            raise error

    told = {22: "/proc/cpuinfo", 5: None, 2: "x"}[error.errno]
    with pytest.raises(OSError, match=re.escape(error.strerror)):
        opened(Failing(), "/proc/cpuinfo")
    assert error.filename == told
