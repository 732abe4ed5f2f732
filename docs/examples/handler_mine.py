from tcmu_core import hookimpl


class Mine:
    """Nothing: the disk is in memory, as large as --size says."""

    @hookimpl
    def open(self, device):
        self.data = bytearray(device.size)

    @hookimpl
    def read(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    @hookimpl
    def write(self, offset, buffers):
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)
