"""The least: open and read, with a thread for what waits."""

from tcmu_core import hookimpl


class Reader:
    """The same pattern, anywhere."""

    @hookimpl
    def open(self, device):
        device.size = 1 << 20
        device.threads = 2

    @hookimpl
    def read(self, offset, buffers):
        for buffer in buffers:
            for at in range(len(buffer)):
                buffer[at] = (offset + at) // 512 & 0xFF
            offset += len(buffer)
