"""Where a recording can be replayed: a disk that this process opens, or one behind an iSCSI URL."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from tcmu_core.disk.disk import Disk
from tcmu_core.errors import ConfigError
from tcmu_core.filters.record import outcome_of
from tcmu_core.recording.file import GOOD, Outcome, Record
from tcmu_core.recording.layout import Flag, Kind
from tcmu_core.testing.client import Client
from tcmu_core.testing.initiator import Reply

PATIENCE = 300.0  # seconds that one operation may take
MOST_BLOCKS = (1 << 32) - 1  # of one UNMAP descriptor, or one WRITE SAME(16)
_FUA = 0x08


class LocalGoal:
    """An open disk of this process."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def do(self, record: Record, data: bytes) -> tuple[Outcome, bytes]:
        """Call the hook that the record is of; raises `ConfigError` if the disk has none."""
        operations = self.disk.operations
        room = bytearray(data or (record.length if record.kind is Kind.READ else 0))
        call: Any = getattr(operations, record.kind.name.lower())
        if call is None:
            raise ConfigError(f"the disk has no {record.kind.name.lower()}")
        arguments: dict[Kind, tuple[Any, ...]] = {
            Kind.READ: (record.offset, [memoryview(room)]),
            Kind.WRITE: (record.offset, [memoryview(room)]),
            Kind.FLUSH: (),
        }
        try:
            pending = call(*arguments.get(record.kind, (record.offset, record.length)))
            if isinstance(pending, Future):
                pending.result(PATIENCE)
        except Exception as error:
            return outcome_of(error, writing=record.kind is not Kind.READ), b""
        if record.flags & Flag.FUA and operations.flush is not None:
            flushed = operations.flush()
            if flushed is not None:
                flushed.result(PATIENCE)
        return GOOD, bytes(room) if record.kind is Kind.READ else b""


class IscsiGoal:
    """A disk behind an iSCSI URL, ours or anybody's."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.blocks, self.block_size = client.capacity()

    def do(self, record: Record, data: bytes) -> tuple[Outcome, bytes]:
        """Send the commands that do what the record did: one, but where it has more blocks than a command can."""
        lba, blocks = record.offset // self.block_size, record.length // self.block_size
        while True:
            count = min(blocks, MOST_BLOCKS)
            reply = self._send(record, lba, count, data)
            lba, blocks = lba + count, blocks - count
            if not blocks or reply.status:
                return Outcome(reply.status, reply.error), reply.data

    def _send(self, record: Record, lba: int, blocks: int, data: bytes) -> Reply:
        span = lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)
        match record.kind:
            case Kind.READ:
                return self.client.command(b"\x88\0" + span, read=record.length)  # READ(16)
            case Kind.WRITE:
                fua = _FUA if record.flags & Flag.FUA else 0
                return self.client.command(bytes([0x8A, fua]) + span, write=data)  # WRITE(16)
            case Kind.FLUSH:
                return self.client.command(b"\x35" + bytes(9))  # SYNCHRONIZE CACHE(10)
            case Kind.DISCARD:
                descriptor = lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4)
                head = (22).to_bytes(2, "big") + (16).to_bytes(2, "big") + bytes(4)
                return self.client.command(b"\x42" + bytes(6) + b"\0\x18\0", write=head + descriptor)  # UNMAP
            case Kind.WRITE_ZEROES:
                return self.client.command(b"\x93\0" + span, write=bytes(self.block_size))  # WRITE SAME(16)
