"""Layouts: a structure's fields as data, from which it is both built and taken apart."""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """`bits` bits that begin at bit `high` of byte `byte`, most significant first, as the standards draw them."""

    byte: int
    high: int = 7
    bits: int = 8


class Layout:
    """A structure of `size` bytes with named fields; what no field covers is reserved and zero."""

    def __init__(self, size: int, /, **fields: Field) -> None:
        self.size = size
        self.fields = fields
        self._shift = {
            name: size * 8 - (field.byte * 8 + 7 - field.high) - field.bits for name, field in fields.items()
        }

    def pack(self, **values: int) -> bytes:
        """Return the structure with these values; fields that are not named are zero."""
        number = 0
        for name, value in values.items():
            bits = self.fields[name].bits
            if not 0 <= value < 1 << bits:
                raise ValueError(f"{name} = {value} does not fit into {bits} bits")
            number |= value << self._shift[name]
        return number.to_bytes(self.size, "big")

    def unpack(self, data: bytes) -> dict[str, int]:
        """Return every field of the structure that `data` begins with; what is missing at its end reads as zero."""
        number = int.from_bytes(data[: self.size].ljust(self.size, b"\0"), "big")
        return {name: number >> self._shift[name] & (1 << field.bits) - 1 for name, field in self.fields.items()}


def word(byte: int) -> Field:
    """Return a field of 16 bits."""
    return Field(byte, 7, 16)


def triple(byte: int) -> Field:
    """Return a field of 24 bits."""
    return Field(byte, 7, 24)


def long(byte: int) -> Field:
    """Return a field of 32 bits."""
    return Field(byte, 7, 32)


def flag(byte: int, bit: int) -> Field:
    """Return a field of one bit."""
    return Field(byte, bit, 1)
