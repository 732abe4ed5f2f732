"""A class that answers with Futures of a pool of its own, leaves out arguments, and parses its cfgstring itself."""

from concurrent.futures import ThreadPoolExecutor

from tcmu_core import Change, Extent, hookimpl, parse_cfgstring, size


class Futures:
    """Memory, behind a pool."""

    config_desc = "[;size=SIZE]"

    @hookimpl
    def check_config(self, cfgstring):
        parse_cfgstring(cfgstring, {"size": size})

    @hookimpl
    def open(self, device):
        parsed = parse_cfgstring(device.cfgstring, {"size": size}, device.options)
        device.size = device.size or parsed.options.get("size") or 1 << 20
        self.data = bytearray(device.size)
        self.pool = ThreadPoolExecutor(2)

    @hookimpl
    def close(self):
        self.pool.shutdown()

    def _read(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def _write(self, offset, buffers):
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    @hookimpl
    def read(self, offset, buffers):
        return self.pool.submit(self._read, offset, buffers)

    @hookimpl
    def write(self, offset, buffers):
        return self.pool.submit(self._write, offset, buffers)

    @hookimpl
    def discard(self, offset, length):
        self.data[offset : offset + length] = bytes(length)

    @hookimpl
    def extents(self, offset, length):
        return [Extent(offset, length, mapped=True)]

    @hookimpl
    def reconfigure(self, change: Change):
        if change.size is not None:
            self.data = self.data[: change.size].ljust(change.size, b"\0")
