"""The 2352 bytes of a CD sector in Mode 1 (ECMA-130 clause 14, annexes A and B): sync, header, data, EDC and ECC."""

from __future__ import annotations

from functools import cache

from tcmu_fbo.address import msf

SYNC = b"\x00" + b"\xff" * 10 + b"\x00"
MODE_1 = 0x01
USER_DATA = 2048
SECTOR = 2352
_EDC_POLYNOMIAL = 0xD8018001  # (x^16 + x^15 + x^2 + 1)(x^16 + x^2 + x + 1), bit-reversed (ECMA-130 14.3)
_GF_POLYNOMIAL = 0x11D  # x^8 + x^4 + x^3 + x^2 + 1 (ECMA-130 annex A)


@cache
def _edc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_EDC_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


def edc(data: bytes) -> int:
    """Return the error detection code of `data`."""
    table = _edc_table()
    value = 0
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value


@cache
def _doubled() -> tuple[bytes, bytes]:
    """Return the tables for x*2 and for x/3 in GF(2^8)."""
    double = [value << 1 ^ (_GF_POLYNOMIAL if value & 0x80 else 0) for value in range(256)]
    third = [0] * 256
    for value in range(256):
        third[value ^ double[value]] = value
    return bytes(double), bytes(third)


def _parity(rows: list[bytes]) -> tuple[bytes, bytes]:
    """Return the two parity rows of a Reed-Solomon product code whose code words run down `rows`, all columns at once.

    The parity P satisfies both: the sum of a code word is zero, and so is its sum weighted with powers of 2.
    """
    double, third = _doubled()
    width = len(rows[0])
    plain, weighted = 0, bytes(width)
    for row in rows:
        number = int.from_bytes(row, "big")
        plain ^= number
        # Horner: what has been summed is multiplied by 2 as the next row comes in.
        weighted = (int.from_bytes(weighted, "big") ^ number).to_bytes(width, "big").translate(double)
    # p0 * 2 + p1 = weighted * 2 and p0 + p1 = plain give p0 * 3.
    both = int.from_bytes(weighted.translate(double), "big") ^ plain
    first = both.to_bytes(width, "big").translate(third)
    second = (int.from_bytes(first, "big") ^ plain).to_bytes(width, "big")
    return first, second


def ecc(body: bytes) -> bytes:
    """Return the 276 bytes of P and Q parity for the 2064 bytes from the header on (ECMA-130 annex A)."""
    # P: 43 columns of 24 words of two bytes; both bytes of a word are coded alike, so a row is 86 bytes.
    rows = [body[at : at + 86] for at in range(0, 2064, 86)]
    whole = body + b"".join(_parity(rows))
    # Q: 26 diagonals of 43 words; word m of diagonal n is word (44 m + 43 n) mod 1118.
    q_rows = []
    for m in range(43):
        row = bytearray()
        for n in range(26):
            at = (44 * m + 43 * n) % 1118 * 2
            row += whole[at : at + 2]
        q_rows.append(bytes(row))
    return whole[2064:] + b"".join(_parity(q_rows))


def header(lba: int) -> bytes:
    """Return a sector's header: its address as three BCD numbers, and its mode."""
    minute, second, frame = msf(lba)
    return bytes([_bcd(minute), _bcd(second), _bcd(frame), MODE_1])


def _bcd(number: int) -> int:
    # The lead-in counts on past 99 minutes as A0h and so on, which is also the best there is for an oversized image.
    return (number // 10 % 16) << 4 | number % 10


def parts(lba: int, data: bytes, *, with_parity: bool) -> tuple[bytes, bytes, bytes, bytes]:
    """Return sync, header, user data, and EDC with ECC (empty unless asked for: it takes the time) of one sector."""
    head = header(lba)
    if not with_parity:
        return SYNC, head, data, b""
    code = edc(SYNC + head + data).to_bytes(4, "little")
    return SYNC, head, data, code + bytes(8) + ecc(head + data + code + bytes(8))
