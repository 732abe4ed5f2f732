"""XTS-AES on sectors (IEEE 1619), the tweak being the number of the sector as dm-crypt's plain64 counts it."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

COUNTED = 512  # bytes: dm-crypt counts in these whatever the sector's size is, and so do LUKS1 and LUKS2


class Sectors:
    """Encrypts and decrypts whole sectors of `size` bytes; `key` is the two keys of XTS, 32 or 64 bytes."""

    def __init__(self, key: bytes, size: int) -> None:
        self._algorithm = AES(key)
        self.size = size

    def encrypt(self, offset: int, data: bytes) -> bytes:
        """Return what stands for `data`, the sectors from `offset` (bytes) on."""
        size, first = self.size, offset // COUNTED
        return b"".join(
            self._cipher(first + at // COUNTED).encryptor().update(data[at : at + size])
            for at in range(0, len(data), size)
        )

    def decrypt(self, offset: int, data: bytes) -> bytes:
        """Return what `data`, as it is kept from `offset` on, stands for."""
        size, first = self.size, offset // COUNTED
        return b"".join(
            self._cipher(first + at // COUNTED).decryptor().update(data[at : at + size])
            for at in range(0, len(data), size)
        )

    def _cipher(self, number: int) -> Cipher[XTS]:
        return Cipher(self._algorithm, XTS(number.to_bytes(16, "little")))  # IEEE 1619 5.1
