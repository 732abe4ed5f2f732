"""The commands that the simulation sends, as bytes (SBC-4 clause 5, SPC-4 clause 6)."""

from __future__ import annotations

READ_10, WRITE_10, WRITE_AND_VERIFY_10, VERIFY_10 = 0x28, 0x2A, 0x2E, 0x2F
FUA, BYTCHK_1 = 0x08, 0x02


def block_10(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a ten-byte block command."""
    return bytes([code, flags]) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def block_16(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a sixteen-byte block command."""
    return bytes([code, flags]) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


def compare_and_write(lba: int, count: int) -> bytes:
    """SBC-4 5.3."""
    return bytes([0x89, 0]) + lba.to_bytes(8, "big") + bytes([0, 0, 0, count, 0, 0])


def write_atomic(lba: int, count: int) -> bytes:
    """SBC-4 5.47."""
    return bytes([0x9C, 0]) + lba.to_bytes(8, "big") + bytes(2) + count.to_bytes(2, "big") + bytes(2)


def unmap(lba: int, count: int) -> tuple[bytes, bytes]:
    """SBC-4 5.34: the command and its parameter list."""
    data = bytes([0, 22, 0, 16]) + bytes(4) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4)
    return bytes([0x42, 0, 0, 0, 0, 0, 0, 0, len(data), 0]), data


def sanitize(erase: bool, immediate: bool, pattern: bytes) -> tuple[bytes, bytes]:
    """SBC-4 5.30: BLOCK ERASE, or OVERWRITE with a pattern."""
    flags = 0x80 if immediate else 0
    if erase:
        return bytes([0x48, flags | 0x02]) + bytes(8), b""
    data = bytes([1, 0]) + len(pattern).to_bytes(2, "big") + pattern
    return bytes([0x48, flags | 0x01]) + bytes(5) + len(data).to_bytes(2, "big") + b"\0", data


def extended_copy(source: bytes, destination: bytes, segments: list[tuple[int, int, int]]) -> tuple[bytes, bytes]:
    """SPC-4 6.4: copy from one unit (its NAA) to another; segments are (count, source LBA, destination LBA)."""
    targets = b"".join(
        bytes([0xE4, 0, 0, 0, 0x01, 0x03, 0, len(naa)]) + naa.ljust(20, b"\0") + bytes([0, 0, 2, 0])
        for naa in (source, destination)
    )
    body = b"".join(
        bytes([0x02, 0, 0, 24, 0, 0, 0, 1, 0, 0])
        + count.to_bytes(2, "big")
        + first.to_bytes(8, "big")
        + to.to_bytes(8, "big")
        for count, first, to in segments
    )
    head = bytes([0, 0x18]) + len(targets).to_bytes(2, "big") + bytes(4) + len(body).to_bytes(4, "big") + bytes(4)
    data = head + targets + body
    return bytes([0x83, 0]) + bytes(8) + len(data).to_bytes(4, "big") + bytes(2), data


def reserve_out(action: int, kind: int, key: int, new: int, lasting: bool) -> tuple[bytes, bytes]:
    """PERSISTENT RESERVE OUT: SPC-4 6.16."""
    data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes(4) + bytes([1 if lasting else 0]) + bytes(3)
    return bytes([0x5F, action, kind, 0, 0, 0, 0, 0, len(data), 0]), data


def reserve_in(action: int, room: int) -> bytes:
    """PERSISTENT RESERVE IN: SPC-4 6.15."""
    return bytes([0x5E, action, 0, 0, 0, 0, 0]) + room.to_bytes(2, "big") + b"\0"


def write_cache(on: bool) -> tuple[bytes, bytes]:
    """MODE SELECT(6) of the caching page: SPC-4 6.11, SBC-4 6.5.5."""
    data = bytes(4) + bytes([0x08, 0x12, 0x04 if on else 0x00]) + bytes(17)
    return bytes([0x15, 0x10, 0, 0, len(data), 0]), data


def start_stop(start: bool, load: bool) -> bytes:
    """START STOP UNIT: SBC-4 5.31."""
    return bytes([0x1B, 0, 0, 0, (0x02 if load else 0) | start, 0])


def set_groups(states: dict[int, int]) -> tuple[bytes, bytes]:
    """SET TARGET PORT GROUPS: SPC-4 6.46."""
    data = bytes(4) + b"".join(bytes([state, 0]) + group.to_bytes(2, "big") for group, state in states.items())
    return bytes([0xA4, 0x0A, 0, 0, 0, 0]) + len(data).to_bytes(4, "big") + bytes(2), data


def request_sense(room: int) -> bytes:
    """REQUEST SENSE: SPC-4 6.39."""
    return bytes([0x03, 0, 0, 0, room, 0])
