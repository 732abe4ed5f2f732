"""Commands that ask for what there is not: each with its sense, and a pointer to the field where it is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.errors import CommandError
from tcmu_core.scsi.words import ADDITIONAL
from tcmu_fbo import sense

INVALID = (0x05, 0x24, 0x00)
OUT_OF_RANGE = (0x05, 0x21, 0x00)
OTHER_KIND = (0x05, 0x30, 0x02)

CASES: list[tuple[str, str, tuple[int, int, int], int | None]] = [
    # profile, CDB, sense, byte of the CDB that is pointed at
    ("cd-rom", "43 00 00 000000 02 00ff 00", INVALID, 6),
    ("cd-rom", "43 00 03 000000 00 00ff 00", INVALID, 2),
    ("cd-rom", "43 00 05 000000 00 00ff 00", INVALID, 2),
    ("dvd-rom", "43 00 02 000000 00 00ff 00", INVALID, 2),
    ("dvd-rom", "43 00 04 000000 00 00ff 00", INVALID, 2),
    ("cd-rom", "46 03 0000 000000 00ff 00", INVALID, 1),
    ("cd-rom", "4a 00 0000 10 0000 00ff 00", INVALID, 1),
    ("cd-rom", "51 01 0000000000 00ff 00", INVALID, 1),
    ("cd-rom", "52 03 00000001 00 00ff 00", INVALID, 1),
    ("cd-rom", "52 01 00000002 00 00ff 00", INVALID, 2),
    ("cd-rom", "52 01 000000ff 00 00ff 00", INVALID, 2),
    ("cd-rom", "52 00 00000064 00 00ff 00", OUT_OF_RANGE, None),
    ("cd-rom", "42 02 40 04 0000 00 00ff 00", INVALID, 3),
    ("cd-rom", "42 02 40 03 0000 02 00ff 00", INVALID, 6),
    ("cd-rom", "ad 00 00000000 00 00 00ff 00 00", OTHER_KIND, None),
    ("dvd-rom", "ad 01 00000000 00 00 00ff 00 00", OTHER_KIND, None),
    ("bd-rom", "ad 00 00000000 00 00 00ff 00 00", OTHER_KIND, None),
    ("dvd-rom", "ad 00 00000000 00 02 00ff 00 00", INVALID, 7),
    ("dvd-rom", "ad 00 00000000 00 09 00ff 00 00", INVALID, 7),
    ("dvd-rom", "ad 00 00000000 01 00 00ff 00 00", INVALID, 6),
    ("dvd-rom", "ac 00 00000000 0000 0001 00 00", INVALID, 1),
    ("dvd-rom", "ac 13 00000000 0000 0001 00 00", INVALID, 1),
    ("dvd-rom", "ac 10 00000064 0000 0001 00 00", OUT_OF_RANGE, None),
    ("dvd-rom", "ac 10 00000000 0000 0001 05 00", INVALID, 10),
    ("dvd-rom", "ac 01 00000000 0000 0001 03 00", INVALID, 1),
    ("cd-rom", "bb 02 ffff ffff 000000000000", INVALID, 1),
    ("cd-rom", "28 00 00000000 00 ffff 00", OUT_OF_RANGE, None),
    ("cd-rom", "be 00 00000000 000001 06 00 00", INVALID, 9),
    ("cd-rom", "1a 00 01 05 ff 00", INVALID, 3),
    ("cd-rom", "a4 00 00000000 00 00 0008 08 00", (0x05, 0x20, 0x00), None),
    ("cd-rom", "ff 00 00 00 00 00", (0x05, 0x20, 0x00), None),
]


@pytest.mark.parametrize(("profile", "cdb", "error", "byte"), CASES)
def test_what_there_is_not_is_refused(
    bench: Callable[..., Any],
    image: Callable[..., Path],
    profile: str,
    cdb: str,
    error: tuple[int, int, int],
    byte: int | None,
) -> None:
    got = bench(f"{image(blocks=100)};profile={profile}").send(cdb)
    assert got.error == error
    if byte is not None:
        assert got.field is not None
        assert got.field[:2] == (True, byte)


def test_two_layers_have_an_opposite_track_path(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image(blocks=4_000_000, sparse=True)}")
    data = drive.good("ad 00 00000000 01 00 0804 00 00")
    assert data[6] >> 4 == 0b0011  # two layers, opposite
    middle = int.from_bytes(data[17:20], "big")
    assert middle == 0x030000 + 2_000_000 - 1
    assert int.from_bytes(data[13:16], "big") == (0xFFFFFF ^ middle) + 2_000_000 - 1
    assert drive.send("ad 00 00000000 02 00 0804 00 00").error == INVALID


def test_all_that_a_drive_says_has_words() -> None:
    kinds = [kind for kind in vars(sense).values() if isinstance(kind, type) and issubclass(kind, CommandError)]
    assert len(kinds) > 5
    assert not [kind for kind in kinds if (kind.asc, kind.ascq) not in ADDITIONAL]
