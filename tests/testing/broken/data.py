"""Faults of reading, writing and freeing."""

from __future__ import annotations

from tcmu_core import Extent, hookimpl
from tests.testing.broken.sound import Memory, ReadOnly


class LosesTheEnd(Memory):
    """The last block is never written."""

    @hookimpl
    def write(self, device, offset, buffers):
        if offset + len(buffers[0]) < device.size:
            Memory.write(self, device, offset, buffers)


class FirstBufferOnly(Memory):
    """Buffers after the first are not filled."""

    @hookimpl
    def read(self, device, offset, buffers):
        Memory.read(self, device, offset, buffers[:1])


class IovMax(Memory):
    """Buffers after as many as one system call takes are not written."""

    @hookimpl
    def write(self, device, offset, buffers):
        Memory.write(self, device, offset, buffers[:1024])


class SkipsZeros(Memory):
    """Zeros are not put into the buffers: they are taken to be zeros already."""

    @hookimpl
    def read(self, device, offset, buffers):
        for buffer in buffers:
            data = self.data[offset : offset + len(buffer)]
            if any(data):
                buffer[:] = data
            offset += len(buffer)


class PopsTheList(Memory):
    """The engine's list of buffers is used up."""

    @hookimpl
    def read(self, device, offset, buffers):
        while buffers:
            Memory.read(self, device, offset, [buffer := buffers.pop(0)])
            offset += len(buffer)


class SpoilsTheData(Memory):
    """What was written is wiped out of the initiator's memory."""

    @hookimpl
    def write(self, device, offset, buffers):
        Memory.write(self, device, offset, buffers)
        for buffer in buffers:
            buffer[:] = bytes(len(buffer))


class KeepsWriteBuffers(Memory):
    """A write only remembers its buffers; what is in them when they are looked at next is stored."""

    def __init__(self):
        self.waiting = []

    def settle(self, device):
        for offset, buffers in self.waiting:
            Memory.write(self, device, offset, buffers)
        self.waiting = []

    @hookimpl
    def write(self, device, offset, buffers):
        self.waiting.append((offset, list(buffers)))

    @hookimpl
    def read(self, device, offset, buffers):
        self.settle(device)
        Memory.read(self, device, offset, buffers)

    @hookimpl
    def flush(self, device):
        self.settle(device)


class WritesIntoReadBuffersLater(Memory):
    """The buffers of a read are filled once more when the next command comes."""

    last = None

    @hookimpl
    def read(self, device, offset, buffers):
        if self.last is not None:
            Memory.read(self, device, *self.last)
        Memory.read(self, device, offset, buffers)
        self.last = (offset, list(buffers))


class DiscardsNothing(Memory):
    """A discard frees nothing."""

    @hookimpl
    def discard(self, device, offset, length):
        pass


class DiscardsTooMuch(Memory):
    """A discard is widened to 4 KiB."""

    @hookimpl
    def discard(self, device, offset, length):
        self.clear(offset // 4096 * 4096, -(-length // 4096) * 4096)


class HalfZeroes(Memory):
    """Zeros are written over half of what was asked for."""

    @hookimpl
    def write_zeroes(self, device, offset, length):
        self.clear(offset, max(512, length // 2))


class ExtentsWithAGap(Memory):
    """The first block of a range is in no extent."""

    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset + 512, length - 512, mapped=True)]


class ExtentsTooLong(Memory):
    """The extents go on after the range."""

    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset, length + 512, mapped=True)]


class ExtentsForgetData(Memory):
    """Data is called unmapped."""

    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset, length, mapped=False)]


class ReadsAnew(ReadOnly):
    """What is read differs from one time to the next."""

    count = 0

    @hookimpl
    def read(self, device, offset, buffers):
        self.count += 1
        for buffer in buffers:
            buffer[:] = bytes([self.count & 0xFF]) * len(buffer)


class ReadsByBuffer(ReadOnly):
    """Each buffer is filled as if it were the first; the disk can't be written to, so only reading tells."""

    @hookimpl
    def read(self, device, offset, buffers):
        for buffer in buffers:
            buffer[:] = bytes(self.at(place) for place in range(offset, offset + len(buffer)))


class OddSize(Memory):
    """The size is not whole blocks."""

    @hookimpl
    def open(self, device):
        device.size += 100
        self.data = bytearray(device.size)


CAUGHT = {
    LosesTheEnd: r"check_ends: read\(261632, 512 bytes in 1 buffers\): the block that was written: byte 261632 is 0x00",
    FirstBufferOnly: r"check_reading: read\(0, 2048 bytes in 1101 buffers\): cut into other buffers: byte 1 is 0xa5",
    IovMax: r"check_buffers: read\(512, .*: written from buffers of \[1, 1, 1, 1\]…: byte 1536 is 0x00",
    SkipsZeros: r"check_reading: read\(0, .*: byte 0 is 0x00, it should be 0xa5",
    PopsTheList: r"check_reading: read\(0, 2048 bytes in 0 buffers\)|check_buffers: read\(512, .*list of buffers",
    SpoilsTheData: r"check_ends: write\(0, 512 bytes in 1 buffers\): the buffers were changed",
    KeepsWriteBuffers: r"check_ends: read\(0, .*: the block that was written: byte 0 is 0xee, it should be 0x5a",
    WritesIntoReadBuffersLater: r"check_giving_back: .*the buffers of read\(0, …\) were written to afterwards",
    DiscardsNothing: r"check_zeros: read\(0, .*: after discard\(512, 512\): byte 512 is 0x.., it should be 0x00",
    DiscardsTooMuch: r"check_zeros: read\(0, .*: after discard\(512, 512\): byte 0 is 0x00",
    HalfZeroes: r"check_zeros: read\(0, .*: after write_zeroes\(1536, 8704\): byte 5888 is 0x..",
    ExtentsWithAGap: r"check_extents: extents\(0, 262144\): there is a gap or an overlap",
    ExtentsTooLong: r"check_extents: extents\(0, 262144\): the extents of 0\+262144 end at 262656",
    ExtentsForgetData: r"check_extents: read\(0, .*: unmapped extent: byte 512 is 0x78",
    ReadsAnew: r"check_reading: read\(0, 2048 bytes in 1 buffers\): read again: byte 0 is 0x02, it should be 0x01",
    ReadsByBuffer: r"check_reading: read\(0, 2048 bytes in 1101 buffers\): cut into other buffers: byte 1 is 0x00",
    OddSize: r"check_geometry: open: size 262244 is not whole blocks of 512",
}
