"""Handlers that keep every promise; the broken ones beside this are each of them but for one fault."""

from __future__ import annotations

import os
import threading

from tcmu_core import ConfigError, Extent, hookimpl

SIZE = 256 << 10


class Memory:
    """Every hook, over a bytearray."""

    @hookimpl
    def open(self, device):
        device.size = device.size or SIZE
        self.data = bytearray(device.size)

    @hookimpl
    def close(self, device):
        pass

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
        return device.offload(self.clear, offset, length)

    def clear(self, offset, length):
        self.data[offset : offset + length] = bytes(length)

    @hookimpl
    def extents(self, device, offset, length):
        return [Extent(offset, length, mapped=True)]

    @hookimpl
    def reconfigure(self, device, change):
        if change.size is not None:
            self.data = self.data[: change.size].ljust(change.size, b"\0")


class Stored:
    """A file, by pread and pwrite on threads."""

    @hookimpl
    def open(self, device):
        if not device.cfgstring:
            raise ConfigError("no path")
        flags = os.O_RDONLY if device.read_only else os.O_RDWR | os.O_CREAT
        self.path = device.cfgstring
        self.fd = os.open(self.path, flags, 0o600)
        self.lock = threading.Lock()
        device.threads = 4
        try:
            self.size_up(device)
        except BaseException:
            os.close(self.fd)
            raise

    def size_up(self, device):
        if not device.read_only and os.fstat(self.fd).st_size < device.size:
            os.ftruncate(self.fd, device.size)

    @hookimpl
    def close(self, device):
        os.close(self.fd)

    @hookimpl
    def read(self, device, offset, buffers):
        for buffer in buffers:
            buffer[:] = os.pread(self.fd, len(buffer), offset)
            offset += len(buffer)

    @hookimpl
    def write(self, device, offset, buffers):
        for buffer in buffers:
            os.pwrite(self.fd, buffer, offset)
            offset += len(buffer)

    failed = False

    @hookimpl
    def flush(self, device):
        if self.failed:
            raise OSError("an earlier flush failed")
        try:
            os.fdatasync(self.fd)
        except OSError:
            self.failed = True
            raise

    @hookimpl
    def reconfigure(self, device, change):
        if change.size is not None:
            os.ftruncate(self.fd, change.size)


class Sparse:
    """Blocks in a dictionary: as large as one likes."""

    @hookimpl
    def open(self, device):
        self.blocks = {}
        device.thin = True

    @hookimpl
    def read(self, device, offset, buffers):
        data = b"".join(
            self.blocks.get(self.number(at), bytes(512)) for at in range(offset, offset + sum(map(len, buffers)), 512)
        )
        for buffer in buffers:
            buffer[:], data = data[: len(buffer)], data[len(buffer) :]

    @hookimpl
    def write(self, device, offset, buffers):
        data = b"".join(buffers)
        for at in range(0, len(data), 512):
            self.blocks[self.number(offset + at)] = data[at : at + 512]

    def number(self, offset):
        return offset // 512


class ReadOnly:
    """A pattern that nobody can write to."""

    @hookimpl
    def open(self, device):
        device.size = device.size or SIZE

    @hookimpl
    def read(self, device, offset, buffers):
        for buffer in buffers:
            buffer[:] = bytes(self.at(place) for place in range(offset, offset + len(buffer)))
            offset += len(buffer)

    def at(self, place):
        return (place * 7 + place // 512) & 0xFF
