"""Logical unit numbers as they stand in an eight-byte LUN field."""

from __future__ import annotations

import pytest

from tcmu_core.scsi.lun import format_lun, parse_lun

TABLE = [
    (0, "0000 0000 0000 0000"),
    (1, "0001 0000 0000 0000"),
    (255, "00ff 0000 0000 0000"),
    (256, "4100 0000 0000 0000"),
    (0x3FFF, "7fff 0000 0000 0000"),
]


@pytest.mark.parametrize(("number", "raw"), TABLE)
def test_a_lun_comes_back_from_its_bytes(number: int, raw: str) -> None:
    assert format_lun(number).hex(" ", 2) == raw
    assert parse_lun(bytes.fromhex(raw)) == number


@pytest.mark.parametrize(
    "raw",
    [
        "0100 0000 0000 0000",  # a bus that is not there
        "8001 0000 0000 0000",  # logical unit addressing
        "c101 0000 0000 0000",  # a well known logical unit
        "0001 0001 0000 0000",  # a second level
        "0001 0000 0000 0001",
    ],
)
def test_other_addressing_names_no_unit(raw: str) -> None:
    assert parse_lun(bytes.fromhex(raw)) is None


def test_small_numbers_are_understood_in_flat_space_too() -> None:
    assert parse_lun(bytes.fromhex("4005 0000 0000 0000")) == 5
