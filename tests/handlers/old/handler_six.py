"""A class with the six hooks alone, each with all of its arguments, and no options."""

import os

from tcmu_core import ConfigError, NotHandled, hookimpl


class Six:
    """A file."""

    @hookimpl
    def open(self, device):
        if not device.cfgstring:
            raise ConfigError("no path")
        self.fd = os.open(device.cfgstring, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            device.size = device.size or os.fstat(self.fd).st_size
            os.ftruncate(self.fd, device.size)
        except OSError:
            os.close(self.fd)
            raise

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

    @hookimpl
    def flush(self, device):
        os.fsync(self.fd)

    @hookimpl
    def handle_cmd(self, device, command):
        return NotHandled
