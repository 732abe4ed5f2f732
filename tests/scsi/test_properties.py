"""Any sequence of block commands leaves what a bytearray says; any bytes as a CDB get an answer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_core.scsi.opcodes import Direction, describe
from tests.scsi.harness import BLOCK, Memory, cdb10, cdb12, cdb16, make_rig

BLOCKS = 64
lbas, counts, fills = st.integers(0, BLOCKS - 1), st.integers(0, 8), st.integers(0, 255)
KINDS = ["write10", "write12", "write16", "unmap", "same", "zeroes", "caw", "orwrite", "atomic", "verify", "read"]
operations = st.lists(st.tuples(st.sampled_from(KINDS), lbas, counts, fills), max_size=30)


@settings(max_examples=150, deadline=None)
@given(operations)
def test_block_commands_against_a_bytearray(operations: list[tuple[str, int, int, int]]) -> None:
    rig = make_rig(size=BLOCKS * BLOCK)
    model = bytearray(BLOCKS * BLOCK)
    for kind, lba, count, fill in operations:
        count = min(count, BLOCKS - lba)
        start, end = lba * BLOCK, (lba + count) * BLOCK
        data = bytes((fill + at) % 256 for at in range(end - start))
        if kind.startswith("write"):
            build = {"write10": (0x2A, cdb10), "write12": (0xAA, cdb12), "write16": (0x8A, cdb16)}[kind]
            rig.good(build[1](build[0], lba, count), data)
            model[start:end] = data
        elif kind == "unmap":
            body = lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4)
            rig.good("42 0 0 0 0 0 0 0 18 0", bytes([0, 22, 0, 16]) + bytes(4) + body)
            model[start:end] = bytes(end - start)
        elif kind in ("same", "zeroes") and count:
            one = bytes([fill]) * BLOCK if kind == "same" else bytes(BLOCK)
            rig.good(cdb16(0x93, lba, count, 8 if kind == "zeroes" else 0), one)
            model[start:end] = one * count
        elif kind == "caw" and count:
            cdb = bytes([0x89, 0]) + lba.to_bytes(8, "big") + bytes([0, 0, 0, count, 0, 0])
            rig.good(cdb, bytes(model[start:end]) + data)
            model[start:end] = data
        elif kind == "orwrite":
            rig.good(cdb16(0x8B, lba, count), data)
            model[start:end] = bytes(one | two for one, two in zip(model[start:end], data, strict=True))
        elif kind == "atomic" and count:
            rig.good(bytes([0x9C, 0]) + lba.to_bytes(8, "big") + bytes([0, 0, 0, count, 0, 0]), data)
            model[start:end] = data
        elif kind == "verify" and count:
            rig.good(cdb10(0x2F, lba, count, 2), bytes(model[start:end]))
        else:
            assert rig.good(cdb16(0x88, lba, count), room=end - start) == model[start:end]
    assert rig.memory.data == model


@settings(max_examples=600, deadline=None)
@given(st.binary(min_size=6, max_size=32), st.binary(max_size=2048), st.integers(0, 4096))
def test_any_cdb_is_answered(cdb: bytes, data: bytes, room: int) -> None:
    handler = Memory()
    rig = make_rig(handler, size=BLOCKS * BLOCK)
    got = rig.send(cdb + bytes(max(0, 16 - len(cdb))), data, room)
    assert got.error != (4, 0x44, 0), "an exception in the engine"
    assert got.transferred <= max(len(data), room)
    describe(cdb, rig.engine.table)
    direction, most = rig.engine.expects(cdb + bytes(16))
    assert direction in Direction
    assert most is None or most >= 0


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(range(256)), st.lists(st.integers(0, 255), min_size=15, max_size=15), st.binary(max_size=600))
def test_commands_of_the_table_with_any_fields_are_answered(code: int, rest: list[int], data: bytes) -> None:
    rig = make_rig(size=BLOCKS * BLOCK)
    row = next((row for row in rig.engine.table.values() if row.code == code), None)
    cdb = bytearray([code, *rest])
    if row is not None:  # mask the reserved bits away, so that the fields are what is tried
        cdb[: len(row.usage)] = bytes(one & two for one, two in zip(cdb, row.usage, strict=False))
        if row.service_action is not None:
            cdb[1] = (cdb[1] & 0xE0) | row.service_action
    assert rig.send(bytes(cdb), data).error != (4, 0x44, 0), "an exception in the engine"
