"""A disk that tells by a command of its own how often it was read."""

from tcmu_core import Access, Opcode, Status, hookimpl

TELL_READS = Opcode(
    0xC0,
    "TELL READS",
    usage=bytes.fromhex("ff 01 00 00 00 00 00 00 ff 00"),  # bit 0 of byte 1: begin anew; byte 8: allocation length
    access=Access.READ,
)


class Counted:
    """Memory, and a counter."""

    @hookimpl
    def open(self, device):
        self.data = bytearray(device.size)
        self.reads = 0
        device.opcodes = (TELL_READS,)

    @hookimpl
    def read(self, offset, buffers):
        self.reads += 1
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    @hookimpl
    def handle_cmd(self, command):
        if command.cdb[0] != TELL_READS.code:
            return None
        command.put(self.reads.to_bytes(8, "big")[: command.cdb[8]])
        if command.cdb[1] & 0x01:
            self.reads = 0
        return Status.GOOD
