"""What Linux asks a new disk while it logs in, and what the disk must say."""

from __future__ import annotations

import pytest

from tests.scsi.harness import Rig, make_rig

SERIAL = b"5f05292aa75fe37f"
MIB_BLOCKS = 2048

STANDARD = bytes.fromhex("00 00 06 12 5b 18 00 02") + b"LIO-ORG TCMU device     0002"
PAGES = bytes.fromhex("00 00 00 07 00 80 83 86 b0 b1 b2")
LIMITS = (
    bytes.fromhex("00 b0 00 3c 01 ff 00 01 00 00 80 00 00 00 00 00 00 00 00 00")
    + bytes.fromhex("00 10 00 00 00 00 01 00 00 00 00 01 80 00 00 00 00 00 00 00 00 00 80 00")
    + bytes.fromhex("00 00 08 00")
    + bytes(16)
)
CHARACTERISTICS = bytes.fromhex("00 b1 00 3c 00 01 00 40 02") + bytes(55)
CAPACITY = (MIB_BLOCKS - 1).to_bytes(8, "big") + (512).to_bytes(4, "big") + bytes.fromhex("00 00 c0 00") + bytes(16)
WRITE_SAME_10_USAGE = bytes.fromhex("00 03 00 0a 41 08 ff ff ff ff 1f ff ff 00")
WRITE_SAME_16_USAGE = bytes.fromhex("00 03 00 10 93 09 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00")

# (CDB, what comes back)
TABLE = [
    ("12 0 0 0 24 0", STANDARD),
    ("12 1 0 0 ff 0", PAGES),
    ("12 1 80 0 ff 0", bytes.fromhex("00 80 00 10") + SERIAL),
    ("0 0 0 0 0 0", b""),
    ("9e 10 0 0 0 0 0 0 0 0 0 0 0 20 0 0", CAPACITY),
    ("12 1 0 0 40 0", PAGES),
    ("12 1 b0 0 40 0", LIMITS),
    ("12 1 b1 0 40 0", CHARACTERISTICS),
    ("1a 0 3f 0 4 0", bytes.fromhex("53 00 10 08")),
    ("1a 0 8 0 4 0", bytes.fromhex("1f 00 10 08")),
    # REPORT SUPPORTED OPERATION CODES: the C runner has none of it
    ("a3 c 1 12 0 0 0 0 2 0 0 0", bytes.fromhex("00 03 00 06 12 01 ff ff ff 00")),
    ("a3 c 1 93 0 0 0 0 2 0 0 0", WRITE_SAME_16_USAGE),
    ("a3 c 1 41 0 0 0 0 2 0 0 0", WRITE_SAME_10_USAGE),
    ("28 0 0 0 0 0 0 0 8 0", b"m" * 8 * 512),
    ("12 0 0 0 fe 0", STANDARD),
    ("12 1 0 0 fe 0", PAGES),
    ("12 1 80 0 fe 0", bytes.fromhex("00 80 00 10") + SERIAL),
]


@pytest.fixture
def disk() -> Rig:
    rig = make_rig(serial=SERIAL.decode())
    rig.memory.data[:] = b"m" * len(rig.memory.data)
    return rig


@pytest.mark.parametrize(("cdb", "expected"), TABLE, ids=[cdb for cdb, _ in TABLE])
def test_login_command_gets_what_the_standard_asks(disk: Rig, cdb: str, expected: bytes) -> None:
    got = disk.good(cdb, room=8192)
    if cdb.startswith(("12 0 0 0 24", "12 0 0 0 fe")):
        got = got[:36]  # the version descriptors have a test of their own
    assert got == expected


@pytest.mark.parametrize("room", ["ff", "fe"])
def test_device_identification_names_unit_port_and_target(disk: Rig, room: str) -> None:
    page = disk.good(f"12 1 83 0 {room} 0", room=512)
    assert page[:2] == b"\x00\x83"
    assert int.from_bytes(page[2:4], "big") == len(page) - 4
    found = {}
    at = 4
    while at < len(page):
        length = page[at + 3]
        found[page[at + 1] & 0x3F] = page[at + 4 : at + 4 + length]
        at += 4 + length
    assert found[0x03] == bytes.fromhex("6001405" + SERIAL.decode() + "0" * 9)
    assert found[0x01] == b"LIO-ORG " + SERIAL
    assert found[0x14] == found[0x15] == bytes([0, 0, 0, 1])
    assert found[0x18].rstrip(b"\0") == b"iqn.2020-01.test:target,t,0x0001"
    assert found[0x28].rstrip(b"\0") == b"iqn.2020-01.test:target"


@pytest.mark.parametrize("cdb", ["85 6 20 0 5 0 fe 0 0 0 0 0 0 40 ef 0", "85 8 e 0 0 0 1 0 0 0 0 0 0 40 ec 0"])
def test_ata_pass_through_is_refused_at_once(disk: Rig, cdb: str) -> None:
    got = disk.send(cdb, room=512)
    assert (got.status, got.error, got.data) == (2, (5, 0x20, 0), b"")


def test_version_descriptors_name_the_standards(disk: Rig) -> None:
    data = disk.good("12 0 0 0 ff 0", room=255)
    assert len(data) == 96
    versions = [int.from_bytes(data[at : at + 2], "big") for at in range(58, 74, 2)]
    assert versions == [0x00A0, 0x0960, 0x0460, 0x04C0, 0x0600, 0, 0, 0]
