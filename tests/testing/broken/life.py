"""Faults of opening, changing, closing, crashing and failing; of commands together; and of calls that never end."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from concurrent.futures import Future

from tcmu_core import ConfigError, Extent, hookimpl
from tests.testing.broken.sound import Memory, Sparse, Stored


class RoundsTheSize(Memory):
    """The size is rounded up to whole MiB."""

    @hookimpl
    def open(self, device):
        device.size = (device.size + (1 << 20) - 1) >> 20 << 20
        self.data = bytearray(device.size)


class IgnoresTheBlockSize(Memory):
    """Blocks are of 512 bytes whatever is asked for."""

    @hookimpl
    def open(self, device):
        Memory.open(self, device)
        device.block_size = 512


class MarksAReadOnlyDisk(Stored):
    """A mark is left in the storage when it is closed, though it was opened read-only."""

    @hookimpl
    def close(self, device):
        os.close(self.fd)
        with open(self.path, "r+b") as file:
            if device.read_only:
                file.write(b"CLEAN")


class RefusesTheSame(Memory):
    """A change to what is there already is refused."""

    @hookimpl
    def reconfigure(self, device, change):
        raise ConfigError("no")


class ResizingLosesData(Memory):
    """A new size means new memory."""

    @hookimpl
    def reconfigure(self, device, change):
        if change.size not in (None, device.size):
            self.data = bytearray(change.size)


class GrowsInNameOnly(Memory):
    """A new size is accepted, and nothing is done."""

    @hookimpl
    def reconfigure(self, device, change):
        pass


class StaysOpen(Stored):
    """The storage is opened exclusively, and close does not let go of it."""

    users = set()

    @hookimpl
    def open(self, device):
        if device.cfgstring in self.users:
            raise ConfigError("it is in use")
        Stored.open(self, device)
        self.users.add(device.cfgstring)

    @hookimpl
    def close(self, device):
        os.close(self.fd)


class LeaksDescriptors(Stored):
    """Close forgets the file."""

    @hookimpl
    def close(self, device):
        pass


class LeaksWhenItFails(Stored):
    """An open that fails forgets the file that it had open already."""

    @hookimpl
    def open(self, device):
        Stored.open(self, device)
        os.fstat(self.fd)

    def size_up(self, device):
        if not device.read_only:
            os.truncate(self.path, max(device.size, os.path.getsize(self.path)))


class LeaksThreads(Memory):
    """Each device has a thread that never ends."""

    @hookimpl
    def open(self, device):
        Memory.open(self, device)
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class GrowsSmaller(Stored):
    """The file is cut by a block each time it is closed, and what is there is the size."""

    @hookimpl
    def open(self, device):
        Stored.open(self, device)
        with open(self.path + ".count", "ab") as file:
            file.write(b"x")
        device.size -= 512 * os.path.getsize(self.path + ".count")


class FlushesNothing(Stored):
    """Writes are kept until close; flush only says that it is done."""

    @hookimpl
    def open(self, device):
        Stored.open(self, device)
        device.threads = 0
        self.cache = {}

    @hookimpl
    def write(self, device, offset, buffers):
        data = b"".join(buffers)
        for at in range(0, len(data), 512):
            self.cache[offset + at] = data[at : at + 512]

    @hookimpl
    def read(self, device, offset, buffers):
        length = sum(map(len, buffers))
        data = bytearray(os.pread(self.fd, length, offset))
        for at in range(0, length, 512):
            if offset + at in self.cache:
                data[at : at + 512] = self.cache[offset + at]
        for buffer in buffers:
            buffer[:], data = data[: len(buffer)], data[len(buffer) :]

    @hookimpl
    def flush(self, device):
        pass

    @hookimpl
    def reconfigure(self, device, change):
        if change.size not in (None, device.size):
            raise ConfigError("not while it is open")

    @hookimpl
    def close(self, device):
        for offset, data in self.cache.items():
            os.pwrite(self.fd, data, offset)
        os.close(self.fd)


class ForgetsAtClose(Stored):
    """What was written is gone when it is closed."""

    @hookimpl
    def close(self, device):
        if not device.read_only:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, device.size)
        os.close(self.fd)


class SwallowsWriteErrors(Stored):
    """A write that fails is passed over in silence, and flush has nothing to say either."""

    @hookimpl
    def write(self, device, offset, buffers):
        with contextlib.suppress(OSError):
            Stored.write(self, device, offset, buffers)

    @hookimpl
    def flush(self, device):
        with contextlib.suppress(OSError):
            Stored.flush(self, device)


class ForgetsAFailedFlush(Stored):
    """The flush after one that failed says that all is well."""

    @hookimpl
    def flush(self, device):
        os.fdatasync(self.fd)


class SwallowsReadErrors(Stored):
    """A read that fails gives zeros."""

    @hookimpl
    def read(self, device, offset, buffers):
        try:
            Stored.read(self, device, offset, buffers)
        except OSError:
            for buffer in buffers:
                buffer[:] = bytes(len(buffer))


class FlushFails(Memory):
    """Flush fails on a device that is sound."""

    @hookimpl
    def flush(self, device):
        raise OSError("no")


class SeeksAndReads(Stored):
    """Threads share one file position."""

    @hookimpl
    def read(self, device, offset, buffers):
        for buffer in buffers:
            os.lseek(self.fd, offset, os.SEEK_SET)
            time.sleep(0.0005)  # as long as a disk would take
            buffer[:] = os.read(self.fd, len(buffer)).ljust(len(buffer), b"\0")
            offset += len(buffer)


class ReadsModifiesWrites(Stored):
    """Writes are of 4 KiB, read before, and nothing keeps two of them apart."""

    @hookimpl
    def write(self, device, offset, buffers):
        data = b"".join(buffers)
        start = offset & ~4095
        length = (offset + len(data) + 4095 & ~4095) - start
        whole = bytearray(os.pread(self.fd, length, start))
        time.sleep(0.0005)  # as long as a disk would take
        whole[offset - start : offset - start + len(data)] = data
        os.pwrite(self.fd, whole, start)


class OneRoomForAll(Memory):
    """Data waits in one place until the Future is asked for: commands in flight together overwrite each other's."""

    @hookimpl
    def write(self, device, offset, buffers):
        self.waiting = (offset, [bytes(buffer) for buffer in buffers])

        class Later(Future):
            def result(_, timeout=None):
                Memory.write(self, device, *self.waiting)

        return Later()


class CutsOffsets(Sparse):
    """Offsets are taken to be of 32 bits."""

    def number(self, offset):
        return (offset & 0xFFFFFFFF) // 512


class CutsBlockNumbers(Sparse):
    """Block numbers are taken to be of 32 bits."""

    def number(self, offset):
        return offset // 512 & 0xFFFFFFFF


class WrongAnswer(Memory):
    """A write says how much was written."""

    @hookimpl
    def write(self, device, offset, buffers):
        Memory.write(self, device, offset, buffers)
        return 512


class WrongAnswerLater(Memory):
    """A Future ends with data."""

    @hookimpl
    def read(self, device, offset, buffers):
        Memory.read(self, device, offset, buffers)
        return device.offload(bytes, 512)


class NeverEnds(Memory):
    """A Future that nobody completes."""

    @hookimpl
    def flush(self, device):
        return Future()


class NeverReturns(Memory):
    """A hook that waits for ever."""

    @hookimpl
    def flush(self, device):
        threading.Event().wait()


class NeverCloses(Memory):
    """A hook that is no data hook waits for ever."""

    @hookimpl
    def close(self, device):
        threading.Event().wait()


class ExtentsWithoutEnd(Memory):
    """Extents of which there is no last one."""

    @hookimpl
    def extents(self, device, offset, length):
        return itertools.repeat(Extent(offset, 512, mapped=True))


class Interrupts(Memory):
    """A hook raises what pytest would take for a person's Ctrl-C."""

    @hookimpl
    def flush(self, device):
        raise KeyboardInterrupt


class Leaves(Memory):
    """A hook ends the process, later."""

    @hookimpl
    def discard(self, device, offset, length):
        return device.offload(sys.exit, 3)


class RaisesWhatCanNotBePrinted(Memory):
    """An exception whose text breaks."""

    class Broken(Exception):
        def __str__(self):
            raise ValueError

    @hookimpl
    def flush(self, device):
        raise self.Broken


CAUGHT = {
    RoundsTheSize: r"check_size: open: the size is 1048576, 262144 was asked for",
    IgnoresTheBlockSize: r"check_block_size: open: blocks are of 512 bytes, 4096 was asked for",
    MarksAReadOnlyDisk: r"check_read_only: read\(0, .*: opened read-only in between: byte 0 is 0x43",
    RefusesTheSame: r"check_sizes: reconfigure\(Change\(size=262144, .*: it raised ConfigError: no",
    ResizingLosesData: r"check_resizing: read\(0, .*: after it grew: byte 0 is 0x00",
    GrowsInNameOnly: r"check_resizing: ",
    StaysOpen: r"it is in use",
    LeaksDescriptors: r"check_leaks: close: there are \d+ descriptors, \d+ before",
    LeaksWhenItFails: r"check_failing_open: open: 5 times it failed because os.fstat did \(EIO\), .* descriptors",
    LeaksThreads: r"check_leaks: close: there are \d+ threads, \d+ before",
    GrowsSmaller: r"check_size: open: the size is|check_reopening: open: each opening gives another geometry",
    FlushesNothing: r"check_crash: flush: after a crash without close: byte 0 is 0x",
    ForgetsAtClose: r"check_persistence: read\(0, .*: closed and opened again: byte 0 is 0x00",
    SwallowsWriteErrors: r"check_write_errors: flush\(\): the storage failed with EIO \(\d+ calls\)",
    SwallowsReadErrors: r"check_read_errors: read\(512, .*: the storage failed with EIO, and something was read",
    ForgetsAFailedFlush: r"check_flush_errors: flush\(\): a flush failed, and the one after it said that all is stable",
    FlushFails: r"check_flush: flush\(\): it raised OSError: no",
    SeeksAndReads: r"check_together: read, \d+ commands in flight: .*: byte \d+ is 0x.., it should be 0x..",
    ReadsModifiesWrites: r"check_together: read, \d+ commands in flight: .*: byte \d+ is 0x.., it should be 0x..",
    OneRoomForAll: r"check_together: .*: byte \d+ is 0x.., it should be 0x..",
    CutsOffsets: r"check_far_offsets: read\(0, .*: far offsets: byte 0 is 0x06, it should be 0x01",
    CutsBlockNumbers: r"check_far_offsets: read\(0, .*: far offsets: byte 0 is 0x06, it should be 0x01",
    WrongAnswer: r"check_ends: write\(0, .*returned a int: it must be None",
    WrongAnswerLater: r"check_reading: read\(0, .*ended with a bytes: it must be None",
    NeverEnds: r"check_flush: flush\(\): its Future has not ended within 1 s",
    NeverReturns: r"check_flush: flush\(\): it has not returned",
    NeverCloses: r"check_geometry: close: it has not returned",
    ExtentsWithoutEnd: r"check_extents: extents\(0, 262144\): there is a gap or an overlap",
    Interrupts: r"check_flush: flush\(\): it raised KeyboardInterrupt",
    Leaves: r"check_zeros: discard\(512, 512\): it raised SystemExit: 3",
    RaisesWhatCanNotBePrinted: r"check_flush: flush\(\): it raised Broken \(which can't be printed\)",
}
