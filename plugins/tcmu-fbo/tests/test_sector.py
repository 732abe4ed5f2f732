"""Raw CD sectors, checked against the definitions of ECMA-130 rather than against the code that makes them."""

from __future__ import annotations

import pytest

from tcmu_fbo.sector import SECTOR, edc, parts


def multiply(a: int, b: int) -> int:
    """Multiply in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def remainder(data: bytes) -> int:
    """Divide the bits of `data`, least significant first, by the EDC's polynomial (ECMA-130 14.3)."""
    first, second = 0x18005, 0x10007  # x^16 + x^15 + x^2 + 1 and x^16 + x^2 + x + 1
    polynomial = 0
    for bit in range(17):
        if second >> bit & 1:
            polynomial ^= first << bit
    rest = 0
    for byte in data:
        for bit in range(8):
            rest = rest << 1 | byte >> bit & 1
            if rest >> 32:
                rest ^= polynomial
    return rest


def sector(lba: int, data: bytes) -> bytes:
    return b"".join(parts(lba, data, with_parity=True))


USER = bytes(range(256)) * 8


def test_a_sector_has_sync_address_mode_and_data() -> None:
    raw = sector(4500 - 150 + 61, USER)  # 01:00:61
    assert len(raw) == SECTOR
    assert raw[:12] == b"\0" + b"\xff" * 10 + b"\0"
    assert raw[12:16] == bytes([0x01, 0x00, 0x61, 0x01])
    assert raw[16:2064] == USER
    assert raw[2068:2076] == bytes(8)


@pytest.mark.parametrize("data", [bytes(2048), USER, b"\xff" * 2048])
def test_the_edc_makes_the_sector_divisible_by_its_polynomial(data: bytes) -> None:
    raw = sector(7, data)
    assert remainder(raw[:2068]) == 0
    assert edc(raw[:2068]) == 0


@pytest.mark.parametrize("data", [bytes(2048), USER, b"\xff" * 2048])
@pytest.mark.parametrize("which", [0, 1])
def test_every_p_and_q_code_word_has_zero_syndromes(data: bytes, which: int) -> None:
    words = sector(12345, data)[12:][which::2]  # the two bytes of a word are coded apart
    powers = [1]
    for _ in range(44):
        powers.append(multiply(powers[-1], 2))
    codes = [[n + 43 * m for m in range(26)] for n in range(43)]
    codes += [[(44 * m + 43 * n) % 1118 for m in range(43)] + [1118 + n, 1144 + n] for n in range(26)]
    for code in codes:
        total = weighted = 0
        for number, at in enumerate(code):
            total ^= words[at]
            weighted ^= multiply(words[at], powers[len(code) - 1 - number])
        assert (total, weighted) == (0, 0)
