"""Identities: serial numbers that differ give NAA designators that differ, and a UUID the one that LIO gives it."""

from __future__ import annotations

import uuid

from tcmu_core.scsi.identity import Identity

SERIALS = [
    "",
    "A1",
    "a1",
    " a1",
    "a1 ",
    "1234567890123456",
    "12345678901234560",
    "123456789012345600",
    "1234-5678-9012-3456",
    "ABCDEFABCDEFABCD",
    "abcdefabcdefabcd",
    *(f"{number:032x}" for number in range(3)),
    *(f"00000000-0000-0000-0000-{number:012x}" for number in range(3)),
    *(f"{0x1122334455667788:016x}{number:09x}" for number in (0, 1, 0x100000000)),
    "6001405" + "0" * 25,
    "f" * 40,
    "f" * 41,
    "a" * 251,
    "a" * 252,
]
UUID = "5f05292a-a75f-437f-8e2b-6a1c90d3b7f4"


def test_no_two_serial_numbers_give_one_designator() -> None:
    variants = [UUID, UUID.upper(), UUID.replace("-", ""), UUID.replace("-", "", 1)]
    made = {serial: Identity.of(serial).naa for serial in [*SERIALS, *variants]}
    assert len(set(made.values())) == len(made)
    assert {(len(naa), naa[:3].hex(), naa[3] >> 4) for naa in made.values()} == {(16, "600140", 5)}


def test_a_uuid_has_the_designator_of_lio() -> None:
    for serial in (UUID, str(uuid.uuid4()), str(uuid.uuid1())):
        assert Identity.of(serial).naa.hex() == "6001405" + serial.replace("-", "")[:25]
