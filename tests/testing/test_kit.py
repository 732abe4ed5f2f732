"""The conformance kit passes a sound handler, and catches each fault that it is there to catch."""

import ctypes
import os
import subprocess
import sys
import threading
import types
from concurrent.futures import Future

import pytest

from tcmu_core import ConfigError, Device, Extent, HandlerError, hookimpl
from tcmu_core.testing import PROMISES, check_handler, open_device
from tcmu_core.testing.lives import await_ending_threads
from tcmu_core.testing.together import check_model

SIZE = 256 << 10


class Sound:
    """Every hook, over a bytearray."""

    @hookimpl
    def open(self, device: Device) -> None:
        device.size = device.size or SIZE
        self.data = bytearray(device.size)

    @hookimpl
    def read(self, device, offset, buffers):
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    @hookimpl
    def write(self, device, offset, buffers):
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    @hookimpl
    def flush(self, device):
        pass

    @hookimpl
    def discard(self, device, offset, length):
        self.data[offset : offset + length] = bytes(length)

    @hookimpl
    def write_zeroes(self, device, offset, length):
        return device.offload(self.discard, device, offset, length)

    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset, length, mapped=True)]

    @hookimpl
    def reconfigure(self, device, change):
        if change.size is not None:
            self.data = self.data[: change.size].ljust(change.size, b"\0")


def test_a_sound_handler_passes():
    check_handler(lambda: open_device(Sound, size=SIZE))


def test_it_passes_without_hypothesis_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    check_handler(lambda: open_device(Sound, size=SIZE))


def test_the_kit_itself_needs_nothing_but_the_core():
    code = "import sys, tcmu_core.testing; sys.exit(bool({'hypothesis', 'pytest'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


class LosesTheEnd(Sound):
    @hookimpl
    def write(self, device, offset, buffers):
        if offset + len(buffers[0]) < device.size:
            Sound.write(self, device, offset, buffers)


class FirstBufferOnly(Sound):
    @hookimpl
    def read(self, device, offset, buffers):
        Sound.read(self, device, offset, buffers[:1])


class IovMax(Sound):
    @hookimpl
    def write(self, device, offset, buffers):
        Sound.write(self, device, offset, buffers[:1024])


class SkipsZeros(Sound):
    @hookimpl
    def read(self, device, offset, buffers):
        for buffer in buffers:
            data = self.data[offset : offset + len(buffer)]
            if any(data):
                buffer[:] = data
            offset += len(buffer)


class PopsTheList(Sound):
    @hookimpl
    def read(self, device, offset, buffers):
        while buffers:
            Sound.read(self, device, offset, [buffer := buffers.pop(0)])
            offset += len(buffer)


class SpoilsTheData(Sound):
    @hookimpl
    def write(self, device, offset, buffers):
        Sound.write(self, device, offset, buffers)
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))


class DiscardsNothing(Sound):
    @hookimpl
    def discard(self, device, offset, length):
        pass


class DiscardsTooMuch(Sound):
    @hookimpl
    def discard(self, device, offset, length):
        Sound.discard(self, device, offset // 4096 * 4096, -(-length // 4096) * 4096)


class HalfZeroes(Sound):
    @hookimpl
    def write_zeroes(self, device, offset, length):
        Sound.discard(self, device, offset, max(512, length // 2))


class FlushFails(Sound):
    @hookimpl
    def flush(self, device):
        raise OSError("no")


class ExtentsWithAGap(Sound):
    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset + 512, length - 512, mapped=True)]


class ExtentsTooLong(Sound):
    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset, length + 512, mapped=True)]


class ExtentsForgetData(Sound):
    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset, length, mapped=False)]


class OddSize(Sound):
    @hookimpl
    def open(self, device):
        device.size = SIZE + 100
        self.data = bytearray(device.size)


class RefusesTheSame(Sound):
    @hookimpl
    def reconfigure(self, device, change):
        raise ConfigError("no")


class WrongAnswer(Sound):
    @hookimpl
    def write(self, device, offset, buffers):
        return True


class OneRoomForAll(Sound):
    """Data waits in one place until the Future is asked for: commands in flight together overwrite each other's."""

    @hookimpl
    def write(self, device, offset, buffers):
        self.waiting = (offset, [bytes(buffer) for buffer in buffers])

        class Later(Future):
            def result(_, timeout=None):
                Sound.write(self, device, *self.waiting)

        return Later()


FAULTS = [value for value in list(vars().values()) if isinstance(value, type) and issubclass(value, Sound)][1:]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_caught(fault):
    with pytest.raises((AssertionError, OSError, ConfigError, HandlerError)):
        check_handler(lambda: open_device(fault, size=SIZE))


def test_data_that_does_not_stay_is_caught():
    with pytest.raises(AssertionError, match="closed and opened again: byte 0"):
        check_handler(lambda: open_device(Sound, size=SIZE), persistent=True)


def test_a_storage_that_stays_open_is_caught():
    class Hoards(Sound):
        users = 0

        @hookimpl
        def open(self, device):
            Hoards.users += 1
            if Hoards.users > 1:
                raise ConfigError("it is in use")
            Sound.open(self, device)

    with pytest.raises(ConfigError, match="it is in use"):
        check_handler(lambda: open_device(Hoards, size=SIZE))


@pytest.mark.parametrize("hypothesis", [True, False])
def test_a_rare_fault_is_found_by_the_model(monkeypatch, hypothesis):
    class Rare(Sound):
        @hookimpl
        def discard(self, device, offset, length):
            if offset // 512 % 16:
                Sound.discard(self, device, offset, length)

    if not hypothesis:
        monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(
        AssertionError, match=r"after (discard|write_zeroes)\(\d+, \d+\): byte \d+ is 0x.., it should be 0x00"
    ):
        check_model(lambda: open_device(Rare, size=SIZE // 4), examples=300)


def test_a_promise_can_be_checked_alone():
    assert {promise.__name__ for promise in PROMISES} >= {"check_buffers", "check_extents", "check_zeros"}
    for promise in PROMISES:
        assert promise.__doc__
        promise(lambda: open_device(Sound, size=SIZE))


# -- open_device ----------------------------------------------------------------------------------------------------


def test_open_device_gives_blocking_reads_and_writes():
    with open_device(Sound, size=SIZE, block_size=4096) as disk:
        assert (disk.size, disk.device.block_size, disk.device.handler) == (SIZE, 4096, "Sound")
        disk.write(4096, b"w" * 4096, parts=[1, 2, 3])
        assert disk.read(0, 12288, parts=[5000]) == bytes(4096) + b"w" * 4096 + bytes(4096)
        disk.write_zeroes(4096, 4096)
        assert disk.read(4096, 4096) == bytes(4096)
        assert disk.extents(0, 512) == [Extent(0, 512, mapped=True)]


def test_a_module_will_do_and_a_missing_hook_is_named():
    module = types.ModuleType("some.module")
    module.open = hookimpl(lambda device: setattr(device, "size", SIZE))
    module.read = hookimpl(lambda offset, buffers: None)
    with open_device(module) as disk:
        assert disk.device.handler == "module"
        assert disk.read(0, 512) == b"\xa5" * 512, "the room is not zeros to begin with"
        with pytest.raises(HandlerError, match="handler 'module' has no write hook"):
            disk.write(0, bytes(512))


def test_errors_of_a_thread_arrive():
    class Fails(Sound):
        @hookimpl
        def flush(self, device):
            return device.offload(int, "x")

    with open_device(Fails, size=SIZE) as disk, pytest.raises(ValueError, match="invalid literal"):
        disk.flush()


def test_a_thread_that_has_been_joined_has_ended_before_a_child_is_forked():
    libc = ctypes.CDLL(None)
    key = ctypes.c_uint()
    assert libc.pthread_key_create(ctypes.byref(key), libc.usleep) == 0  # called with the value, as the thread ends
    thread = threading.Thread(target=libc.pthread_setspecific, args=(key, ctypes.c_void_p(200_000)))
    thread.start()
    thread.join()
    lasting = f"/proc/self/task/{thread.native_id}"
    assert os.path.exists(lasting)
    await_ending_threads()
    assert not os.path.exists(lasting)
    libc.pthread_key_delete(key)
