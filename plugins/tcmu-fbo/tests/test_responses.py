"""Each MMC response, field by field: bytes and bits as MMC-6 draws them, apart from the layouts of the drive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KINDS = {"cd": "cd-rom", "dvd": "dvd-rom", "ram": "dvd-ram", "bd": "bd-rom"}
BLOCKS = 1000

# What is expected of a response: its length, and (first byte, highest bit, number of bits): value.
# (byte, n) is n whole bytes.
Expected = dict[tuple[int, ...], int]

CASES: list[tuple[str, str, str, int, Expected]] = [
    # -- READ CAPACITY: last LBA, block length
    ("cd", "READ CAPACITY", "25 00 00000000 0000 00 00", 8, {(0, 4): 999, (4, 4): 2048}),
    (
        "dvd",
        "READ CAPACITY(16)",
        "9e 10 0000000000000000 00000020 00 00",
        32,
        {(0, 8): 999, (8, 4): 2048, (12, 4): 0, (16, 16): 0},
    ),
    # -- READ FORMAT CAPACITIES: list length; blocks, descriptor type, block length; formattable: type, parameter
    (
        "cd",
        "READ FORMAT CAPACITIES",
        "23 00 00000000 00 00ff 00",
        12,
        {(0, 3): 0, (3, 1): 8, (4, 4): 1000, (8, 7, 6): 0, (8, 1, 2): 2, (9, 3): 2048},
    ),
    (
        "ram",
        "READ FORMAT CAPACITIES",
        "23 00 00000000 00 00ff 00",
        20,
        {(3, 1): 16, (4, 4): 1000, (8, 1, 2): 2, (9, 3): 2048, (12, 4): 1000, (16, 7, 6): 0, (17, 3): 2048},
    ),
    # -- READ TOC/PMA/ATIP
    (
        "cd",
        "TOC by LBA",
        "43 00 00 000000 00 00ff 00",
        20,
        {
            (0, 2): 18,
            (2, 1): 1,
            (3, 1): 1,
            (4, 1): 0,
            (5, 7, 4): 1,
            (5, 3, 4): 4,
            (6, 1): 1,
            (7, 1): 0,
            (8, 4): 0,
            (13, 7, 4): 1,
            (13, 3, 4): 4,
            (14, 1): 0xAA,
            (16, 4): 1000,
        },
    ),
    (
        "cd",
        "TOC by MSF",
        "43 02 00 000000 01 00ff 00",
        20,
        {(8, 1): 0, (9, 1): 0, (10, 1): 2, (11, 1): 0, (16, 1): 0, (17, 1): 0, (18, 1): 15, (19, 1): 25},
    ),
    ("cd", "TOC of the lead-out", "43 00 00 000000 aa 00ff 00", 12, {(0, 2): 10, (6, 1): 0xAA, (8, 4): 1000}),
    (
        "dvd",
        "session information",
        "43 00 01 000000 00 00ff 00",
        12,
        {(0, 2): 10, (2, 1): 1, (3, 1): 1, (5, 7, 4): 1, (5, 3, 4): 4, (6, 1): 1, (8, 4): 0},
    ),
    (
        "cd",
        "session information, format in the control byte",
        "43 00 00 000000 00 000c 40",
        12,
        {(0, 2): 10, (8, 4): 0},
    ),
    (
        "cd",
        "full TOC",
        "43 00 02 000000 00 00ff 00",
        48,
        {
            (0, 2): 46,
            (2, 1): 1,
            (3, 1): 1,
            (4, 1): 1,
            (5, 7, 4): 1,
            (5, 3, 4): 4,
            (6, 1): 0,
            (7, 1): 0xA0,
            (12, 1): 1,
            (13, 1): 0,
            (14, 1): 0,
            (18, 1): 0xA1,
            (23, 1): 1,
            (29, 1): 0xA2,
            (34, 1): 0,
            (35, 1): 15,
            (36, 1): 25,
            (40, 1): 1,
            (45, 1): 0,
            (46, 1): 2,
            (47, 1): 0,
        },
    ),
    ("cd", "ATIP: none", "43 00 04 000000 00 00ff 00", 4, {(0, 2): 2, (2, 2): 0}),
    # -- READ DISC INFORMATION
    (
        "cd",
        "disc information",
        "51 00 0000000000 00ff 00",
        34,
        {
            (0, 2): 32,
            (2, 7, 3): 0,
            (2, 4, 1): 0,
            (2, 3, 2): 3,
            (2, 1, 2): 2,
            (3, 1): 1,
            (4, 1): 1,
            (5, 1): 1,
            (6, 1): 1,
            (7, 7, 1): 0,
            (7, 6, 1): 0,
            (7, 5, 1): 1,
            (7, 1, 2): 0,
            (8, 1): 0x00,
            (9, 3): 0,
            (12, 4): 0,
            (16, 4): 0xFFFFFFFF,
            (20, 4): 0xFFFFFFFF,
            (24, 8): 0,
            (33, 1): 0,
        },
    ),
    (
        "dvd",
        "disc information",
        "51 00 0000000000 00ff 00",
        34,
        {(2, 4, 1): 0, (2, 3, 2): 3, (2, 1, 2): 2, (8, 1): 0xFF},
    ),
    (
        "ram",
        "disc information",
        "51 00 0000000000 00ff 00",
        34,
        {(2, 4, 1): 1, (2, 3, 2): 3, (2, 1, 2): 3, (8, 1): 0xFF},
    ),
    # -- READ TRACK INFORMATION
    (
        "cd",
        "track by number",
        "52 01 00000001 00 00ff 00",
        48,
        {
            (0, 2): 46,
            (2, 1): 1,
            (3, 1): 1,
            (5, 5, 1): 0,
            (5, 4, 1): 0,
            (5, 3, 4): 4,
            (6, 7, 4): 0,
            (6, 3, 4): 1,
            (7, 1, 1): 1,
            (7, 0, 1): 0,
            (8, 4): 0,
            (12, 4): 0,
            (16, 4): 0,
            (20, 4): 0,
            (24, 4): 1000,
            (28, 4): 999,
            (32, 2): 0,
        },
    ),
    ("dvd", "track by LBA", "52 00 000003e7 00 00ff 00", 48, {(2, 1): 1, (24, 4): 1000, (28, 4): 999}),
    ("bd", "track by session", "52 02 00000001 00 00ff 00", 48, {(3, 1): 1, (24, 4): 1000}),
    (
        "ram",
        "track by number",
        "52 01 00000001 00 00ff 00",
        48,
        {(6, 5, 1): 1, (6, 4, 1): 1, (20, 4): 16, (24, 4): 1000},
    ),
    # -- READ SUB-CHANNEL
    ("cd", "sub-channel without SUBQ", "42 00 00 00 0000 00 00ff 00", 4, {(0, 1): 0, (1, 1): 0x15, (2, 2): 0}),
    (
        "cd",
        "current position by MSF",
        "42 02 40 01 0000 00 00ff 00",
        16,
        {
            (1, 1): 0x15,
            (2, 2): 12,
            (4, 1): 1,
            (5, 7, 4): 1,
            (5, 3, 4): 4,
            (6, 1): 1,
            (7, 1): 1,
            (8, 1): 0,
            (9, 1): 0,
            (10, 1): 2,
            (11, 1): 0,
            (12, 4): 0,
        },
    ),
    (
        "cd",
        "catalogue number: none",
        "42 02 40 02 0000 00 00ff 00",
        24,
        {(2, 2): 20, (4, 1): 2, (8, 7, 1): 0, (9, 13): 0},
    ),
    (
        "cd",
        "ISRC: none",
        "42 02 40 03 0000 01 00ff 00",
        24,
        {(2, 2): 20, (4, 1): 3, (5, 3, 4): 4, (6, 1): 1, (8, 7, 1): 0},
    ),
    # -- MECHANISM STATUS
    (
        "cd",
        "mechanism status",
        "bd 00 000000000000 0008 00 00",
        8,
        {(0, 7, 1): 0, (0, 6, 2): 0, (1, 7, 3): 0, (1, 4, 1): 0, (2, 3): 0, (5, 1): 0, (6, 2): 0},
    ),
    # -- GET PERFORMANCE: nominal; exceptions; write speeds
    (
        "dvd",
        "nominal read performance",
        "ac 10 00000000 0000 0001 00 00",
        24,
        {(0, 4): 20, (4, 1, 1): 0, (4, 0, 1): 0, (8, 4): 0, (12, 4): 22160, (16, 4): 999, (20, 4): 22160},
    ),
    (
        "ram",
        "nominal write performance",
        "ac 14 00000064 0000 0001 00 00",
        24,
        {(0, 4): 20, (4, 1, 1): 1, (8, 4): 100, (12, 4): 16620, (16, 4): 999, (20, 4): 16620},
    ),
    ("dvd", "nominal write performance of what can't be written", "ac 14 00000000 0000 0001 00 00", 8, {(0, 4): 4}),
    ("dvd", "performance exceptions: none", "ac 11 00000000 0000 0001 00 00", 8, {(0, 4): 4, (4, 0, 1): 1}),
    (
        "ram",
        "write speeds",
        "ac 00 00000000 0000 0010 03 00",
        24,
        {
            (0, 4): 20,
            (8, 4, 2): 0,
            (8, 2, 1): 0,
            (8, 1, 1): 1,
            (8, 0, 1): 0,
            (12, 4): 999,
            (16, 4): 22160,
            (20, 4): 16620,
        },
    ),
    ("cd", "write speeds: none", "ac 00 00000000 0000 0010 03 00", 8, {(0, 4): 4}),
    # -- READ BUFFER CAPACITY
    (
        "cd",
        "buffer capacity in bytes",
        "5c 00 0000000000 00ff 00",
        12,
        {(0, 2): 10, (3, 0, 1): 0, (4, 4): 2 << 20, (8, 4): 2 << 20},
    ),
    ("cd", "buffer capacity in blocks", "5c 01 0000000000 00ff 00", 12, {(3, 0, 1): 1, (4, 4): 0, (8, 4): 1024}),
    # -- GET EVENT STATUS NOTIFICATION: length after itself, NEA, class, supported classes; the event
    (
        "cd",
        "no class asked for",
        "4a 01 0000 00 0000 00ff 00",
        4,
        {(0, 2): 2, (2, 7, 1): 1, (2, 2, 3): 0, (3, 1): 0x56},
    ),
    (
        "cd",
        "operational change",
        "4a 01 0000 02 0000 00ff 00",
        8,
        {(0, 2): 6, (2, 7, 1): 0, (2, 2, 3): 1, (3, 1): 0x56, (4, 3, 4): 0, (5, 7, 1): 0, (5, 3, 4): 0, (6, 2): 0},
    ),
    ("cd", "power management", "4a 01 0000 04 0000 00ff 00", 8, {(2, 2, 3): 2, (4, 3, 4): 0, (5, 1): 1}),
    (
        "cd",
        "media",
        "4a 01 0000 10 0000 00ff 00",
        8,
        {(2, 2, 3): 4, (4, 3, 4): 0, (5, 1, 1): 1, (5, 0, 1): 0, (6, 2): 0},
    ),
    ("cd", "device busy", "4a 01 0000 40 0000 00ff 00", 8, {(2, 2, 3): 6, (4, 3, 4): 0, (5, 1): 0, (6, 2): 0}),
    # -- READ DISC STRUCTURE
    (
        "dvd",
        "physical format of a DVD-ROM",
        "ad 00 00000000 00 00 0804 00 00",
        2052,
        {
            (0, 2): 2050,
            (4, 7, 4): 0,
            (4, 3, 4): 1,
            (5, 7, 4): 0,
            (5, 3, 4): 2,
            (6, 6, 2): 0,
            (6, 4, 1): 0,
            (6, 3, 4): 1,
            (7, 7, 4): 0,
            (7, 3, 4): 0,
            (8, 1): 0,
            (9, 3): 0x030000,
            (12, 1): 0,
            (13, 3): 0x0303E7,
            (16, 4): 0,
            (20, 7, 1): 0,
        },
    ),
    (
        "ram",
        "physical format of a DVD-RAM",
        "ad 00 00000000 00 00 0804 00 00",
        2052,
        {(4, 7, 4): 1, (4, 3, 4): 6, (6, 3, 4): 4, (7, 7, 4): 4, (7, 3, 4): 2, (9, 3): 0x031000, (13, 3): 0x0313E7},
    ),
    ("dvd", "copyright: none, all regions", "ad 00 00000000 00 01 0008 00 00", 8, {(0, 2): 6, (4, 1): 0, (5, 1): 0}),
    ("dvd", "manufacturing information", "ad 00 00000000 00 04 0804 00 00", 2052, {(0, 2): 2050}),
    ("dvd", "copyright management", "ad 00 00000000 00 05 0008 00 00", 8, {(0, 2): 6, (4, 7, 1): 0, (4, 3, 2): 0}),
    (
        "ram",
        "medium status",
        "ad 00 00000000 00 09 0008 00 00",
        8,
        {(0, 2): 6, (4, 7, 1): 0, (4, 6, 1): 0, (4, 2, 1): 0},
    ),
    ("ram", "spare area", "ad 00 00000000 00 0a 00ff 00 00", 16, {(0, 2): 14, (4, 12): 0}),
    ("ram", "write protection", "ad 00 00000000 00 c0 00ff 00 00", 8, {(0, 2): 6, (4, 1): 0}),
    (
        "dvd",
        "list of structures",
        "ad 00 00000000 00 ff 00ff 00 00",
        24,
        {
            (0, 2): 22,
            (4, 1): 0x00,
            (5, 7, 1): 0,
            (5, 6, 1): 1,
            (6, 2): 2052,
            (8, 1): 0x01,
            (10, 2): 8,
            (12, 1): 0x04,
            (14, 2): 2052,
            (16, 1): 0x05,
            (18, 2): 8,
            (20, 1): 0xC0,
            (22, 2): 8,
        },
    ),
    (
        "bd",
        "disc information of a BD-ROM",
        "ad 01 00000000 00 00 1004 00 00",
        4100,
        {
            (0, 2): 4098,
            (4, 2): 0x4449,
            (6, 1): 1,
            (7, 7, 5): 1,
            (7, 2, 3): 0,
            (9, 1): 0,
            (10, 7, 1): 0,
            (10, 6, 7): 112,
            (12, 3): 0x42444F,
            (15, 3, 4): 1,
            (16, 7, 4): 1,
            (16, 3, 4): 1,
        },
    ),
    (
        "bd",
        "list of structures",
        "ad 01 00000000 00 ff 00ff 00 00",
        12,
        {(0, 2): 10, (4, 1): 0, (6, 2): 4100, (8, 1): 0xC0},
    ),
    # -- MODE SENSE: header, then the page
    (
        "cd",
        "error recovery",
        "5a 00 01 00000000 00ff 00",
        20,
        {
            (0, 2): 18,
            (2, 1): 0,
            (6, 2): 0,
            (8, 7, 2): 0,
            (8, 5, 6): 0x01,
            (9, 1): 10,
            (10, 1): 0,
            (11, 1): 5,
            (16, 1): 5,
        },
    ),
    (
        "cd",
        "caching, in the short form",
        "1a 08 08 00 ff 00",
        24,
        {(0, 1): 23, (3, 1): 0, (4, 5, 6): 8, (5, 1): 18, (6, 2, 1): 1},
    ),
    ("cd", "what may change of caching", "5a 00 48 00000000 00ff 00", 28, {(10, 1): 0x04, (11, 17): 0}),
    (
        "cd",
        "control",
        "5a 00 0a 00000000 00ff 00",
        20,
        {(8, 5, 6): 0x0A, (9, 1): 10, (10, 7, 3): 0, (10, 2, 1): 0, (11, 7, 4): 1, (13, 6, 1): 0, (16, 2): 0xFFFF},
    ),
    ("cd", "power condition", "5a 00 1a 00000000 00ff 00", 20, {(8, 5, 6): 0x1A, (9, 1): 10, (11, 1): 0, (12, 8): 0}),
    (
        "cd",
        "timeout and protect",
        "5a 00 1d 00000000 00ff 00",
        20,
        {(8, 5, 6): 0x1D, (9, 1): 10, (12, 3, 4): 0, (14, 2): 10, (16, 2): 120, (18, 2): 0},
    ),
    (
        "ram",
        "capabilities and mechanical status",
        "5a 00 2a 00000000 00ff 00",
        44,
        {
            (0, 2): 42,
            (8, 5, 6): 0x2A,
            (9, 1): 34,
            (10, 5, 1): 1,
            (10, 3, 1): 1,
            (10, 2, 1): 1,
            (10, 1, 1): 1,
            (10, 0, 1): 1,
            (11, 5, 1): 1,
            (11, 4, 1): 0,
            (12, 1): 0,
            (13, 1): 0,
            (14, 7, 3): 1,
            (14, 3, 1): 1,
            (14, 2, 1): 0,
            (14, 1, 1): 0,
            (14, 0, 1): 1,
            (15, 1): 0,
            (16, 2): 22160,
            (18, 2): 0,
            (20, 2): 2048,
            (22, 2): 22160,
            (26, 2): 16620,
            (28, 2): 16620,
            (30, 2): 0,
            (35, 1, 2): 0,
            (36, 2): 16620,
            (38, 2): 1,
            (41, 2, 3): 0,
            (42, 2): 16620,
        },
    ),
    (
        "cd",
        "all pages",
        "5a 00 3f 00000000 00ff 00",
        112,
        {(0, 2): 110, (8, 1): 0x01, (20, 1): 0x08, (40, 1): 0x0A, (52, 1): 0x1A, (64, 1): 0x1D, (76, 1): 0x2A},
    ),
]


def bits(data: bytes, where: tuple[int, ...]) -> int:
    if len(where) == 2:
        return int.from_bytes(data[where[0] : where[0] + where[1]], "big")
    byte, high, count = where
    return data[byte] >> high - count + 1 & (1 << count) - 1


@pytest.fixture
def drive_of(bench: Callable[..., Any], image: Callable[..., Path]) -> Callable[[str], Any]:
    def make(kind: str) -> Any:
        return bench(f"{image(f'{kind}.iso', blocks=BLOCKS, sparse=True)};profile={KINDS[kind]}")

    return make


@pytest.mark.parametrize(
    ("kind", "cdb", "length", "expected"),
    [case[:1] + case[2:] for case in CASES],
    ids=[f"{kind}: {name}" for kind, name, *_ in CASES],
)
def test_a_response_has_the_fields_of_the_standard(
    drive_of: Callable[[str], Any], kind: str, cdb: str, length: int, expected: Expected
) -> None:
    data = drive_of(kind).good(cdb)
    assert len(data) == length
    assert {where: bits(data, where) for where in expected} == expected


@pytest.mark.parametrize(("kind", "cdb"), [case[:1] + case[2:3] for case in CASES if case[2][:2] != "ac"])
def test_a_response_is_cut_to_the_allocation_length(drive_of: Callable[[str], Any], kind: str, cdb: str) -> None:
    drive = drive_of(kind)
    raw = bytearray(bytes.fromhex(cdb))
    whole = drive.good(bytes(raw))
    at, size = {0x25: (0, 0), 0x9E: (10, 4), 0x1A: (4, 1), 0xAD: (8, 2), 0xBD: (8, 2)}.get(raw[0], (7, 2))
    for room in (0, 1, 3, 5) if size else ():
        raw[at : at + size] = room.to_bytes(size, "big")
        got = drive.send(bytes(raw))
        assert (got.status, got.data, got.wanted) == (0, whole[:room], min(room, len(whole)))


# -- features: the whole of GET CONFIGURATION for each kind of disc

CORE = "0001 0b 08 00000001 01000000"
MORPHING = "0002 07 04 02000000"
REMOVABLE = "0003 0b 04 39000000"
TIMEOUT = "0105 07 04 00000000"
POWER = "0100 03 00"
STREAMING = "0107 0d 04 1e000000"


def profiles(current: int) -> str:
    listed = (0x0040, 0x0012, 0x0010, 0x0008)
    return "0000 03 10" + "".join(f"{code:04x}{int(code == current):02x}00" for code in listed)


def readable(blocking: int) -> str:
    return f"0010 01 08 00000800 {blocking:04x} 01 00"


FEATURES = {
    "cd": (0x0008, [readable(1), "001d 01 00", "001e 09 04 00000000"]),
    "dvd": (0x0010, [readable(16), "001f 05 04 00000000"]),
    "ram": (
        0x0012,
        [
            readable(16),
            "001f 05 04 00000000",
            "0020 05 0c 000003e7 00000800 0010 01 00",
            "0023 05 08 0000000000000000",
            "0024 05 04 00000000",
        ],
    ),
    "bd": (0x0040, [readable(32), "0040 01 1c" + "00" * 20 + "0002 0002 0000 0000"]),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_the_current_features_are_those_of_the_disc(drive_of: Callable[[str], Any], kind: str) -> None:
    number, own = FEATURES[kind]
    listed = [profiles(number), CORE, MORPHING, REMOVABLE, *own, POWER, TIMEOUT, STREAMING]
    body = bytes.fromhex("".join(listed))
    head = (4 + len(body)).to_bytes(4, "big") + bytes(2) + number.to_bytes(2, "big")
    assert drive_of(kind).good("46 01 0000 000000 ffff 00").hex() == (head + body).hex()


def descriptors(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 8
    while at < len(data):
        length = 4 + data[at + 3]
        found[int.from_bytes(data[at : at + 2], "big")] = data[at : at + length]
        at += length
    return found


ALL_FEATURES = [0, 1, 2, 3, 0x10, 0x1D, 0x1E, 0x1F, 0x20, 0x23, 0x24, 0x40, 0x100, 0x105, 0x107]


def test_all_features_are_listed_in_ascending_order_whatever_the_disc(drive_of: Callable[[str], Any]) -> None:
    for kind in KINDS:
        data = drive_of(kind).good("46 00 0000 000000 ffff 00")
        assert list(descriptors(data)) == ALL_FEATURES
        assert int.from_bytes(data[:4], "big") == len(data) - 4


def test_page_2ah_reads_what_the_multi_read_feature_says(drive_of: Callable[[str], Any]) -> None:
    """CD-R, CD-RW and their packets, whatever the disc; the feature is current with a CD."""
    for kind in KINDS:
        drive = drive_of(kind)
        assert 0x1D in descriptors(drive.good("46 00 0000 000000 ffff 00"))
        assert drive.good("5a 00 2a 00000000 00ff 00")[10] & 0x07 == 0x07


def test_features_are_listed_from_the_starting_number_on(drive_of: Callable[[str], Any]) -> None:
    found = descriptors(drive_of("ram").good("46 00 0020 000000 ffff 00"))
    assert list(found) == [code for code in ALL_FEATURES if code >= 0x20]


def test_one_feature_is_given_alone_and_one_that_there_is_not_as_the_header(drive_of: Callable[[str], Any]) -> None:
    drive = drive_of("cd")
    assert drive.good("46 02 001e 000000 ffff 00").hex() == "0000000c00000008" + "001e090400000000"
    assert drive.good("46 02 0021 000000 ffff 00").hex() == "0000000400000008"


def test_an_empty_drive_has_no_current_profile(bench: Callable[..., Any]) -> None:
    data = bench().good("46 00 0000 000000 ffff 00")
    assert data[6:8] == bytes(2)
    found = descriptors(data)
    assert [code for code, value in found.items() if value[2] & 1] == [0, 1, 2, 3, 0x100, 0x105]
    assert not any(found[0][at] & 1 for at in range(6, 20, 4))


# -- what the engine serves for this drive


def test_inquiry_says_a_removable_cd_drive(drive_of: Callable[[str], Any]) -> None:
    data = drive_of("cd").good("12 00 00 00 ff 00")
    assert data[0] == 0x05
    assert data[1] & 0x80
    assert data[8:36] == b"LIO-ORG Optical drive   0100"


def test_vpd_pages_are_those_of_no_disk(drive_of: Callable[[str], Any]) -> None:
    drive = drive_of("cd")
    pages = drive.good("12 01 00 00 ff 00")
    assert {0x00, 0x80, 0x83} <= set(pages[4:])
    assert not {0xB0, 0xB1, 0xB2} & set(pages[4:])
    for page in pages[4:]:
        assert drive.good(bytes([0x12, 1, page, 0, 255, 0]))[:2] == bytes([0x05, page])


def test_the_serial_number_stays_when_the_disc_changes(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(str(image("one.iso")))
    before = drive.good("12 01 80 00 ff 00")
    drive.insert(str(image("two.iso")))
    drive.send("00 00 00 00 00 00")
    assert drive.good("12 01 80 00 ff 00") == before


def test_supported_operation_codes_name_every_command_of_the_drive(drive_of: Callable[[str], Any]) -> None:
    data = drive_of("cd").good("a3 0c 00 00 0000 00010000 00 00", room=65536)
    listed = {data[at] for at in range(4, len(data), 8)}
    wanted = (
        "00 03 04 08 0a 12 15 1a 1b 1e 23 25 28 2a 2b 2e 2f 35 42 43 46 4a 51 52 55 5a 5c 88 8a 8f 9e a0 a8 aa ac ad"
    )
    assert set(bytes.fromhex(wanted + "af b6 b9 bb bd be")) <= listed
