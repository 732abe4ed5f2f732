"""Random commands: none crashes the drive, none hangs it, each ends with a status that the standard has."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcmu_fbo.table import COMMANDS

BLOCK = 2048
BLOCKS = 40
DESTRUCTIVE = {0x5F}  # PERSISTENT RESERVE OUT: a reservation would hide the rest of the run
CODES = sorted({command.row.code for command in COMMANDS} | {0x12, 0xA0, 0xA3, 0x5E, 0x00, 0x03, 0x1E})
INTERNAL = (0x04, 0x44, 0x00)  # what the engine makes of an exception that is no SCSI error


@pytest.fixture(scope="module", params=["ro/{}", "{};profile=dvd-rom", "{};profile=bd-rom", "{}", ""])
def fuzzed(request: pytest.FixtureRequest) -> Iterator[Any]:
    make = request.getfixturevalue("make_bench")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "disc.img"
        path.write_bytes(os.urandom(BLOCKS * BLOCK))
        drive = make(request.param.format(path))
        yield drive
        drive.close()


def usage_guided(draw: st.DrawFn) -> bytes:
    """Draw the CDB of a command that the drive has, with random bits where it has fields."""
    row = draw(st.sampled_from(COMMANDS)).row
    cdb = bytearray(draw(st.binary(min_size=len(row.usage), max_size=len(row.usage))))
    small = draw(st.booleans())  # small numbers hit the disc
    for at, mask in enumerate(row.usage):
        cdb[at] &= mask
        if small and at in (2, 3, 4) and mask == 0xFF:
            cdb[at] = 0
    cdb[0] = row.code
    if row.service_action is not None:
        cdb[1] = row.service_action
    return bytes(cdb)


CDBS = st.one_of(
    st.composite(usage_guided)(),
    st.tuples(st.sampled_from(CODES), st.binary(min_size=15, max_size=15)).map(lambda pair: bytes([pair[0]]) + pair[1]),
    st.binary(min_size=16, max_size=16),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cdb=CDBS, data=st.binary(max_size=64), room=st.sampled_from([0, 4, 255, 5 * BLOCK]))
def test_a_random_command_ends_in_good_order(fuzzed: Any, cdb: bytes, data: bytes, room: int) -> None:
    if cdb[0] in DESTRUCTIVE:
        return
    got = fuzzed.send(cdb, data, room)
    assert got.status in (0x00, 0x02, 0x18)
    assert (got.status == 0x02) == bool(got.sense)
    assert got.error != INTERNAL, cdb.hex()
    assert got.transferred <= max(got.wanted, 0) or got.status
    fuzzed.device.shutdown()  # lets a format end
    fuzzed.nexus("a").attentions.clear()
    for tidy in ("1e 00 00 00 00 00", "1b 00 00 00 03 00"):  # a disc for the next command
        fuzzed.good(tidy)
    fuzzed.nexus("a").attentions.clear()
