"""Persistent reservations and RESERVE/RELEASE between initiators."""

from __future__ import annotations

import itertools
from concurrent.futures import Future

import pytest

from tcmu_core.scsi.command import Command, Status
from tcmu_core.scsi.reservations import EXCLUSIVE, PrType
from tests.scsi.harness import BLOCK, Rig, Shelf, cdb10, initiator, make_rig

CONFLICT = Status.RESERVATION_CONFLICT
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_ABORT, IGNORE, MOVE = range(8)
DATA = b"d" * BLOCK


def out(
    rig: Rig, who: str, action: int, key: int = 0, new: int = 0, kind: int = 0, flags: int = 0, more: bytes = b""
) -> int:
    data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes(4) + bytes([flags, 0, 0, 0]) + more
    return rig.send(bytes([0x5F, action, kind, 0, 0]) + len(data).to_bytes(4, "big") + b"\0", data, who=who).status


def ask(rig: Rig, action: int, who: str = "a") -> bytes:
    return rig.good(bytes([0x5E, action, 0, 0, 0, 0, 0, 4, 0, 0]), room=1024, who=who)


def keys(rig: Rig, who: str = "a") -> list[int]:
    data = ask(rig, 0, who)
    return [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]


def attention(rig: Rig, who: str) -> tuple[int, int, int]:
    return rig.send("0 0 0 0 0 0", who=who).error


@pytest.fixture
def three(rig: Rig) -> Rig:
    """Three initiators; a and b are registered with the keys 1 and 2."""
    for who in "abc":
        rig.nexus(who)
    assert out(rig, "a", REGISTER, new=1) == out(rig, "b", REGISTER, new=2) == 0
    return rig


def test_register_shows_in_read_keys_and_counts_the_generation(three: Rig) -> None:
    assert keys(three) == [1, 2]
    assert ask(three, 0)[:4] == (2).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("who", "action", "key", "new", "status", "after"),
    [
        ("a", REGISTER, 1, 9, 0, [9, 2]),
        ("a", REGISTER, 7, 9, CONFLICT, [1, 2]),
        ("a", IGNORE, 7, 9, 0, [9, 2]),
        ("a", REGISTER, 1, 0, 0, [2]),
        ("c", REGISTER, 5, 9, CONFLICT, [1, 2]),
        ("c", REGISTER, 0, 0, 0, [1, 2]),
        ("c", IGNORE, 5, 9, 0, [1, 2, 9]),
    ],
)
def test_register(three: Rig, who: str, action: int, key: int, new: int, status: int, after: list[int]) -> None:
    assert out(three, who, action, key, new) == status
    assert keys(three) == after


def test_an_unregistered_nexus_can_do_nothing_but_register(three: Rig) -> None:
    for action in (RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_ABORT):
        assert out(three, "c", action, 1, 2, kind=1) == CONFLICT


@pytest.mark.parametrize("kind", list(PrType))
def test_who_may_read_and_write_under_each_type(three: Rig, kind: PrType) -> None:
    assert out(three, "a", RESERVE, 1, kind=kind) == 0
    single = kind in (PrType.WRITE_EXCLUSIVE, PrType.EXCLUSIVE_ACCESS)
    for who, member in (("a", True), ("b", not single), ("c", False)):
        read = three.send(cdb10(0x28, 0, 1), room=BLOCK, who=who).status
        write = three.send(cdb10(0x2A, 0, 1), DATA, who=who).status
        assert (read == 0) == (member or kind not in EXCLUSIVE)
        assert (write == 0) == member
        three.good("0 0 0 0 0 0", who=who)
        three.good("12 0 0 0 24 0", room=36, who=who)
        three.good("25 0 0 0 0 0 0 0 0 0", room=8, who=who)


@pytest.mark.parametrize("kind", list(PrType))
def test_read_reservation_and_full_status(three: Rig, kind: PrType) -> None:
    assert out(three, "a", RESERVE, 1, kind=kind) == 0
    everyone = kind >= PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS
    data = ask(three, 1)
    assert int.from_bytes(data[4:8], "big") == 16
    assert int.from_bytes(data[8:16], "big") == (0 if everyone else 1)
    assert data[21] == kind
    full = ask(three, 3)
    found, at = [], 8
    while at < len(full):
        length = int.from_bytes(full[at + 20 : at + 24], "big")
        found.append(
            (int.from_bytes(full[at : at + 8], "big"), full[at + 12], full[at + 13], full[at + 24 : at + 24 + length])
        )
        at += 24 + length
    assert found == [
        (1, 1, kind, initiator("a").transport_id),
        (2, 1 if everyone else 0, kind if everyone else 0, initiator("b").transport_id),
    ]


@pytest.mark.parametrize("kind", [0, 2, 4, 9, 15])
def test_unknown_types_and_scopes_are_refused(three: Rig, kind: int) -> None:
    for byte in (kind, 0x11):
        data = (1).to_bytes(8, "big") + bytes(16)
        got = three.send(bytes([0x5F, RESERVE, byte, 0, 0, 0, 0, 0, 24, 0]), data)
        assert got.error == (5, 0x24, 0)


def test_reserve_again_is_fine_for_the_holder_and_a_conflict_for_another(three: Rig) -> None:
    assert out(three, "a", RESERVE, 1, kind=1) == 0
    assert out(three, "a", RESERVE, 1, kind=1) == 0
    assert out(three, "a", RESERVE, 1, kind=3) == CONFLICT
    assert out(three, "b", RESERVE, 2, kind=1) == CONFLICT


def test_release_by_another_changes_nothing_and_by_the_holder_tells_registrants(three: Rig) -> None:
    out(three, "a", RESERVE, 1, kind=5)
    assert out(three, "b", RELEASE, 2, kind=5) == 0
    assert ask(three, 1)[4:8] == (16).to_bytes(4, "big")
    assert out(three, "a", RELEASE, 1, kind=6) == Status.CHECK_CONDITION
    assert out(three, "a", RELEASE, 1, kind=5) == 0
    assert ask(three, 1)[4:8] == bytes(4)
    assert attention(three, "b") == (6, 0x2A, 4)
    assert attention(three, "a") == attention(three, "c") == (0, 0, 0)


def test_clear_removes_all_and_tells_the_others(three: Rig) -> None:
    out(three, "a", RESERVE, 1, kind=3)
    assert out(three, "b", CLEAR, 2) == 0
    assert keys(three, "b") == []
    assert attention(three, "a") == (6, 0x2A, 3)
    assert attention(three, "b") == (0, 0, 0)


def test_preempt_takes_the_reservation_and_the_registration(three: Rig) -> None:
    out(three, "a", RESERVE, 1, kind=1)
    assert out(three, "b", PREEMPT, 2, 1, kind=3) == 0
    assert keys(three, "b") == [2]
    data = ask(three, 1, who="b")
    assert (int.from_bytes(data[8:16], "big"), data[21]) == (2, 3)
    assert attention(three, "a") == (6, 0x2A, 5)


def test_preempt_of_a_registrant_that_holds_nothing_removes_it_alone(three: Rig) -> None:
    out(three, "a", RESERVE, 1, kind=1)
    assert out(three, "a", PREEMPT, 1, 2, kind=1) == 0
    assert keys(three) == [1]
    assert ask(three, 1)[21] == 1


def test_preempt_with_an_unknown_key_is_a_conflict(three: Rig) -> None:
    assert out(three, "a", PREEMPT, 1, 77, kind=1) == CONFLICT


def preempt_and_abort(rig: Rig, key: int, victim: int) -> list[Command]:
    """Have b send PREEMPT AND ABORT; the list gets it when it has ended."""
    parameters = key.to_bytes(8, "big") + victim.to_bytes(8, "big") + bytes(8)
    _command, ended = rig.start(bytes([0x5F, 5, 1, 0, 0, 0, 0, 0, 24, 0]), parameters, who="b")
    return ended


@pytest.mark.parametrize("code", [0x28, 0x2A])
def test_preempt_and_abort_answers_when_what_the_victim_had_in_flight_has_ended(three: Rig, code: int) -> None:
    three.memory.hold = True
    victim, ended = three.start(cdb10(code, 0, 1), room=BLOCK)
    three.memory.hold = False
    fence = preempt_and_abort(three, 2, 1)
    three.turn()
    assert victim.aborted
    assert not ended
    assert not fence
    three.memory.release()
    three.turn()
    assert ended == [victim]
    assert [command.status for command in fence] == [0]


def test_preempt_and_abort_waits_for_the_writes_of_a_session_that_is_gone(three: Rig) -> None:
    three.memory.hold = True
    three.start(cdb10(0x2A, 0, 1), b"o" * BLOCK)
    three.target.disconnect(three.nexuses.pop("a"))
    three.memory.hold = False
    fence = preempt_and_abort(three, 2, 1)
    three.turn()
    assert not fence
    three.memory.release()
    three.turn()
    assert [command.status for command in fence] == [0]


def test_who_preempts_itself_aborts_nothing_of_its_own_in_its_next_session_either() -> None:
    shelf = Shelf()
    rig = make_rig(shelf=shelf)
    assert out(rig, "a", REGISTER, new=1, flags=1) == 0
    shelf.later = []
    preempting = (1).to_bytes(8, "big") * 2 + bytes(8)
    rig.start(bytes([0x5F, PREEMPT_ABORT, 1, 0, 0, 0, 0, 0, 24, 0]), preempting)
    rig.target.disconnect(rig.nexuses.pop("a"))
    rig.nexus("a")
    rig.memory.hold = True
    command, ended = rig.start(cdb10(0x28, 0, 1), room=BLOCK)
    for work in shelf.later:
        work()
    rig.turn()
    rig.memory.release()
    rig.turn()
    assert ended == [command]
    assert not command.aborted


def test_unregistering_the_holder_releases(three: Rig) -> None:
    out(three, "a", RESERVE, 1, kind=5)
    out(three, "a", REGISTER, 1, 0)
    assert attention(three, "b") == (6, 0x2A, 4)
    assert ask(three, 1, who="b")[4:8] == bytes(4)


def test_all_registrants_reservation_lasts_until_the_last_leaves(three: Rig) -> None:
    out(three, "a", RESERVE, 1, kind=7)
    out(three, "a", REGISTER, 1, 0)
    assert ask(three, 1)[4:8] == (16).to_bytes(4, "big")
    out(three, "b", REGISTER, 2, 0)
    assert ask(three, 1)[4:8] == bytes(4)


def test_register_and_move_gives_the_reservation_to_another(three: Rig) -> None:
    out(three, "a", RESERVE, 1, kind=1)
    transport = initiator("c").transport_id
    data = (1).to_bytes(8, "big") + (9).to_bytes(8, "big") + bytes([0, 2, 0, 1]) + len(transport).to_bytes(4, "big")
    data += transport
    three.good(bytes([0x5F, MOVE, 0, 0, 0]) + len(data).to_bytes(4, "big") + b"\0", data)
    assert sorted(keys(three)) == [2, 9]
    assert three.send(cdb10(0x2A, 0, 1), DATA, who="c").status == 0
    assert three.send(cdb10(0x2A, 0, 1), DATA, who="a").status == CONFLICT


def test_register_with_other_transport_ids_registers_them_all(rig: Rig) -> None:
    others = b"".join(initiator(who).transport_id for who in "bc")
    assert out(rig, "a", REGISTER, 0, 5, flags=8, more=len(others).to_bytes(4, "big") + others) == 0
    assert keys(rig) == [5, 5, 5]


@pytest.mark.parametrize(
    ("cdb", "data", "error"),
    [
        ("5f 0 0 0 0 0 0 0 17 0", bytes(23), (5, 0x1A, 0)),
        ("5f 0 0 0 0 0 0 0 18 0", bytes(20), (5, 0x1A, 0)),
        ("5f 8 0 0 0 0 0 0 18 0", bytes(24), (5, 0x24, 0)),
        ("5f 0 0 0 0 0 0 0 18 0", bytes(20) + b"\x10" + bytes(3), (5, 0x26, 0)),
        ("5f 0 0 0 0 0 0 0 18 0", bytes(20) + b"\x01" + bytes(3), (5, 0x26, 0)),  # APTPL with nowhere to keep it
        ("5f 0 0 0 0 0 0 0 20 0", bytes(20) + b"\x08" + bytes(3) + b"\0\0\0\x08" + bytes(4), (5, 0x26, 0)),
        ("5e 4 0 0 0 0 0 0 18 0", b"", (5, 0x24, 0)),
    ],
)
def test_malformed_commands_are_refused(rig: Rig, cdb: str, data: bytes, error: tuple[int, int, int]) -> None:
    assert rig.send(cdb, data).error == error


def test_capabilities(rig: Rig) -> None:
    assert ask(rig, 2) == bytes.fromhex("00 08 0c 80 ea 01 00 00")
    assert ask(make_rig(shelf=Shelf()), 2) == bytes.fromhex("00 08 0d 80 ea 01 00 00")


def test_aptpl_survives_a_restart_and_its_absence_does_not() -> None:
    for flags, after in ((1, [1]), (0, [])):
        shelf = Shelf()
        first = make_rig(shelf=shelf)
        out(first, "a", REGISTER, new=1, flags=flags)
        out(first, "a", RESERVE, 1, kind=3)
        second = make_rig(shelf=shelf)
        assert keys(second) == after
        expected = CONFLICT if after else 0
        assert second.send(cdb10(0x28, 0, 1), room=BLOCK, who="b").status == expected
        assert second.send(cdb10(0x28, 0, 1), room=BLOCK, who="a").status == 0


def test_a_damaged_aptpl_file_is_reported_and_harmless() -> None:
    shelf = Shelf()
    shelf.data = b"{not json"
    assert keys(make_rig(shelf=shelf)) == []


# -- a store that several processes have -------------------------------------------------------------------------------


def gateways() -> tuple[Shelf, Rig, Rig]:
    """Return two targets of one disk, of which each serves another initiator: a is registered at one of them."""
    shelf = Shelf()
    first, second = make_rig(shelf=shelf), make_rig(shelf=shelf)
    first.nexus("a")
    second.nexus("b")
    assert out(first, "a", REGISTER, new=1, flags=1) == 0
    second.turn()
    return shelf, first, second


def test_what_one_gateway_stores_counts_at_the_other(rig: Rig) -> None:
    _, first, second = gateways()
    assert keys(second, "b") == [1]
    assert out(second, "b", REGISTER, new=2, flags=1) == 0
    first.turn()
    assert out(first, "a", RESERVE, 1, kind=5) == 0
    second.turn()
    assert keys(first) == keys(second, "b") == [1, 2]
    assert second.send(cdb10(0x2A, 0, 1), DATA, who="c").status == CONFLICT
    assert second.send(cdb10(0x2A, 0, 1), DATA, who="b").status == 0
    assert not second.engine.fast


def test_who_is_preempted_through_another_gateway_hears_of_it() -> None:
    _, first, second = gateways()
    assert out(second, "b", REGISTER, new=2, flags=1) == 0
    assert out(second, "b", PREEMPT, 2, 1, kind=1) == 0
    first.turn()
    assert attention(first, "a") == (6, 0x2A, 0x05)
    assert keys(first) == [2]


def test_who_is_cleared_or_released_through_another_gateway_hears_of_it() -> None:
    _, first, second = gateways()
    assert out(second, "b", REGISTER, new=2, flags=1) == out(second, "b", RESERVE, 2, kind=5) == 0
    first.turn()
    assert out(second, "b", RELEASE, 2, kind=5) == 0
    first.turn()
    assert attention(first, "a") == (6, 0x2A, 0x04)
    assert out(second, "b", CLEAR, 2) == 0
    first.turn()
    assert attention(first, "a") == (6, 0x2A, 0x03)


def test_the_loser_of_a_race_makes_its_change_upon_the_winners() -> None:
    shelf, first, second = gateways()
    shelf.watching.clear()  # so that nobody knows before it tries
    assert out(second, "b", REGISTER, new=2, flags=1) == 0
    assert out(first, "c", REGISTER, new=3, flags=1) == 0
    assert keys(first) == [1, 2, 3]


def test_a_race_is_lost_while_the_change_is_on_its_way() -> None:
    shelf, first, second = gateways()
    shelf.later = []
    data = bytes(8) + (3).to_bytes(8, "big") + bytes(4) + bytes([1, 0, 0, 0])
    _, ended = first.start("5f 0 0 0 0 0 0 0 18 0", data, who="c")
    (late,), shelf.later = shelf.later, None
    assert out(second, "b", REGISTER, new=2, flags=1) == 0
    first.turn()
    assert ended == []
    late()
    first.turn()
    assert [one.status for one in ended] == [0]
    assert keys(first) == [1, 2, 3]
    second.turn()
    assert keys(second, "b") == [1, 2, 3]


def test_who_always_loses_is_told_busy() -> None:
    shelf, first, _ = gateways()
    replace = shelf.replace
    shelf.replace = lambda state, version: replace(state, "another")  # type: ignore[method-assign]
    assert out(first, "a", REGISTER, 1, 9, flags=1) == Status.BUSY
    assert keys(first) == [1]


def test_a_unit_that_is_closed_watches_no_more() -> None:
    shelf, first, second = gateways()
    first.engine.close()
    second.engine.close()
    assert shelf.watching == []


# -- a store that is the state of all gateways -------------------------------------------------------------------------


def shared_gateways() -> tuple[Rig, Rig]:
    """Return two targets of one disk and one state; a is registered through the first, b through the second."""
    shelf = Shelf(shared=True)
    first, second = make_rig(shelf=shelf), make_rig(shelf=shelf)
    for rig, other, who, key in ((first, second, "a", 1), (second, first, "b", 2)):
        rig.nexus(who)
        assert between(rig, other, who, REGISTER, new=key) == 0
    return first, second


def between(rig: Rig, other: Rig, who: str, action: int, key: int = 0, new: int = 0, kind: int = 0) -> int:
    """Send PERSISTENT RESERVE OUT to a gateway; it is not answered before the other one has taken the change."""
    data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes(8)
    _, ended = rig.start(bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]), data, who=who)
    rig.turn()
    if not ended:
        other.turn()
        rig.turn()
    (command,) = ended
    return command.status


def test_what_is_shared_needs_no_aptpl_and_has_one_generation() -> None:
    first, second = shared_gateways()
    assert keys(first) == keys(second, "b") == [1, 2]
    assert between(first, second, "a", RESERVE, 1, kind=5) == 0  # which is not counted (SPC-4 6.15.2)
    assert ask(first, 0)[:4] == ask(second, 0, "b")[:4] == (2).to_bytes(4, "big")
    assert not ask(first, 2)[3] & 1  # nobody has asked for APTPL


def test_a_change_is_answered_when_the_other_gateway_has_it() -> None:
    first, second = shared_gateways()
    data = (1).to_bytes(8, "big") + bytes(16)
    _, ended = first.start(bytes([0x5F, RESERVE, 3, 0, 0, 0, 0, 0, 24, 0]), data, who="a")
    first.turn()
    assert ended == []
    second.turn()
    first.turn()
    assert [one.status for one in ended] == [0]
    assert second.send(cdb10(0x28, 0, 1), room=BLOCK, who="b").status == CONFLICT


def test_a_change_that_waits_for_another_gateway_keeps_nobody_waiting_and_may_be_aborted() -> None:
    first, second = shared_gateways()
    register = bytes([0x5F, IGNORE, 0, 0, 0, 0, 0, 0, 24, 0])
    command, waits = first.start(register, bytes(8) + (7).to_bytes(8, "big") + bytes(8), who="a")
    _, next_one = first.start(register, bytes(8) + (8).to_bytes(8, "big") + bytes(8), who="c")
    first.turn()
    assert keys(first) == [7, 2, 8]
    first.engine.abort(command, lambda: None)
    first.turn()
    assert [one.aborted for one in waits] == [True]
    assert next_one == []
    second.turn()
    first.turn()
    assert [one.status for one in next_one] == [0]
    assert keys(second, "b") == [7, 2, 8]


def test_preempt_and_abort_has_another_gateway_drop_what_waits_for_its_data() -> None:
    first, second = shared_gateways()
    cleared: list[str] = []
    for who in ("b", "c"):
        second.nexus(who).luns[0][1].on_clear = lambda who=who: cleared.append(who)
    assert between(first, second, "a", PREEMPT_ABORT, 1, 2, 5) == 0
    assert cleared == ["b"]


def test_preempt_and_abort_reaches_what_another_gateway_has_in_flight() -> None:
    first, second = shared_gateways()
    second.memory.hold = True
    _, late = second.start(cdb10(0x2A, 0, 1), DATA, who="b")
    data = (1).to_bytes(8, "big") + (2).to_bytes(8, "big") + bytes(8)
    _, ended = first.start(bytes([0x5F, PREEMPT_ABORT, 5, 0, 0, 0, 0, 0, 24, 0]), data, who="a")
    for _ in range(3):
        first.turn()
        second.turn()
    assert ended == []  # its hook has not returned: it may still write
    second.memory.release()
    for _ in range(3):
        second.turn()
        first.turn()
    assert [one.status for one in ended] == [0]
    assert [one.aborted for one in late] == [True]
    assert attention(second, "b") == (6, 0x2A, 5)


@pytest.mark.parametrize("tas", [False, True])
def test_what_another_gateway_has_aborted_is_answered_if_tas_is_set(tas: bool) -> None:
    first, second = shared_gateways()
    if tas:
        second.good("15 10 0 0 10 0", bytes(4) + bytes.fromhex("0a 0a 02 10 00 40 00 00 ff ff 00 00"), who="b")
    second.memory.hold = True
    _, late = second.start(cdb10(0x2A, 0, 1), DATA, who="b")
    assert not late
    data = (1).to_bytes(8, "big") + (2).to_bytes(8, "big") + bytes(8)
    first.start(bytes([0x5F, PREEMPT_ABORT, 5, 0, 0, 0, 0, 0, 24, 0]), data, who="a")
    second.turn()
    second.memory.release()
    second.turn()
    assert [(one.status, one.silent) for one in late] == [(0x40, False) if tas else (0, True)]


def test_a_state_that_was_loaded_while_ours_was_on_its_way_stays() -> None:
    shelf, first, second = gateways()
    replace, versions, answer = shelf.replace, [], Future[str]()

    def slow(state: bytes, version: str) -> Future[str]:
        versions.append(replace(state, version))
        return answer

    shelf.replace = slow  # type: ignore[method-assign]
    data = bytes(8) + (3).to_bytes(8, "big") + bytes(4) + bytes([1, 0, 0, 0])
    _, ended = first.start("5f 0 0 0 0 0 0 0 18 0", data, who="c")
    shelf.replace = replace  # type: ignore[method-assign]
    second.turn()
    assert out(second, "b", REGISTER, new=2, flags=1) == 0
    first.turn()
    answer.set_result(versions[0])  # it was there before the other's, and the answer is late
    first.turn()
    assert [one.status for one in ended] == [0]
    assert keys(first) == keys(second, "b") == [1, 3, 2]


# -- RESERVE(6) --------------------------------------------------------------------------------------------------------


def test_reserve_6_keeps_others_out_until_released(rig: Rig) -> None:
    rig.good("16 0 0 0 0 0")
    rig.good("16 0 0 0 0 0")
    for cdb in ("16 0 0 0 0 0", "0 0 0 0 0 0", cdb10(0x28, 0, 1)):
        assert rig.send(cdb, room=BLOCK, who="b").status == CONFLICT
    rig.good("12 0 0 0 24 0", room=36, who="b")
    rig.good("17 0 0 0 0 0", who="b")
    assert rig.send("0 0 0 0 0 0", who="b").status == CONFLICT
    rig.good("17 0 0 0 0 0")
    rig.good("0 0 0 0 0 0", who="b")


def test_reserve_6_ends_with_the_nexus_and_with_a_reset(rig: Rig) -> None:
    rig.good("16 0 0 0 0 0")
    rig.target.disconnect(rig.nexuses.pop("a"))
    rig.good("0 0 0 0 0 0", who="b")
    rig.good("16 0 0 0 0 0", who="b")
    rig.engine.reset(None, lambda: None)
    assert attention(rig, "c") == (0, 0, 0)


def test_reserve_6_and_registrations_exclude_each_other(rig: Rig) -> None:
    out(rig, "a", REGISTER, new=1)
    assert rig.send("16 0 0 0 0 0", who="b").status == CONFLICT
    out(rig, "a", REGISTER, 1, 0)
    rig.good("16 0 0 0 0 0", who="b")
    assert out(rig, "a", REGISTER, new=1) == CONFLICT


def test_reserve_6_waits_for_a_registration_that_is_being_stored() -> None:
    shelf = Shelf()
    shelf.later = []
    rig = make_rig(shelf=shelf)
    parameters = bytes(8) + (1).to_bytes(8, "big") + bytes(4) + bytes([1, 0, 0, 0])
    registration, registered = rig.start(bytes([0x5F, REGISTER, 0, 0, 0, 0, 0, 0, 24, 0]), parameters)
    reserve, reserved = rig.start("16 0 0 0 0 0", who="b")
    rig.turn()
    assert (registered, reserved) == ([], [])
    shelf.later[0]()
    rig.turn()
    assert (registration.status, reserve.status) == (Status.GOOD, CONFLICT)


def test_reserve_6_is_a_conflict_for_persistent_reserve_in_of_its_holder_too(rig: Rig) -> None:
    rig.good("16 0 0 0 0 0")
    assert rig.send("5e 0 0 0 0 0 0 0 ff 0", room=255).status == CONFLICT


def test_random_sequences_keep_the_invariants(rig: Rig) -> None:
    """Whatever happens: a holder is registered, and a reservation has a holder."""
    reservations = rig.unit.reservations
    for who, action, kind in itertools.product("abc", range(7), list(PrType)):
        out(rig, who, action, 1, 1, kind=kind)
        state = reservations.now
        if state.type is not None:
            assert state.holder in state.keys if state.holder is not None else state.keys
        else:
            assert state.holder is None


@pytest.mark.parametrize(("flags", "byte"), [(0x01, 17), (0x80, 17)])
def test_a_move_that_asks_for_what_there_is_not_moves_nothing(three: Rig, flags: int, byte: int) -> None:
    """APTPL without a place to keep it, and a reserved bit."""
    assert out(three, "a", RESERVE, 1, kind=PrType.WRITE_EXCLUSIVE) == 0
    name = initiator("c").transport_id
    data = (1).to_bytes(8, "big") + (9).to_bytes(8, "big") + bytes([0, flags, 0, 1]) + len(name).to_bytes(4, "big")
    got = three.send(bytes([0x5F, MOVE, 0, 0, 0]) + (24 + len(name)).to_bytes(4, "big") + b"\0", data + name)
    assert got.error == (5, 0x26, 0)
    assert got.field is not None
    assert got.field[0] == byte
    assert keys(three) == [1, 2]


def spelled(transport_id: bytes, *, upper: bool = True, padding: int = 8) -> bytes:
    """Return the same TransportID as another initiator may write it."""
    name = transport_id[4:]
    name = (name.upper().replace(b"0X", b"0x") if upper else name) + bytes(padding)
    return transport_id[:2] + len(name).to_bytes(2, "big") + name


def test_a_port_is_the_same_however_its_transport_id_is_written(three: Rig) -> None:
    names = spelled(initiator("c").transport_id) + spelled(initiator("d").transport_id, upper=False, padding=40)
    three.nexus("d")
    three.nexus("e")
    assert out(three, "e", REGISTER, new=5, flags=0x08, more=len(names).to_bytes(4, "big") + names) == 0
    assert keys(three) == [1, 2, 5, 5, 5]
    assert out(three, "c", REGISTER, 5, 6) == out(three, "d", REGISTER, 5, 0) == 0
    assert keys(three) == [1, 2, 5, 6]
    assert out(three, "a", RESERVE, 1, kind=PrType.WRITE_EXCLUSIVE) == 0
    one = spelled(initiator("c").transport_id)
    data = (1).to_bytes(8, "big") + (9).to_bytes(8, "big") + bytes([0, 2, 0, 1]) + len(one).to_bytes(4, "big") + one
    three.good(bytes([0x5F, MOVE, 0, 0, 0]) + len(data).to_bytes(4, "big") + b"\0", data)
    assert three.send(cdb10(0x2A, 0, 1), DATA, who="c").status == 0
    assert three.send(cdb10(0x2A, 0, 1), DATA, who="a").status == CONFLICT


def test_a_list_of_more_transport_ids_than_can_be_registered_is_not_read_to_its_end(rig: Rig) -> None:
    names = (b"\x45\0\0\x14" + b"c".ljust(20, b"\0")) * 256 + b"\x45\0\0\x14" + b"\xff" * 20
    more = len(names).to_bytes(4, "big") + names
    data = bytes(8) + (5).to_bytes(8, "big") + bytes([0, 0, 0, 0, 0x08, 0, 0, 0]) + more
    assert rig.send(bytes([0x5F, 0, 0, 0, 0]) + len(data).to_bytes(4, "big") + b"\0", data).error == (5, 0x55, 4)
    assert keys(rig) == []


def test_a_transport_id_that_is_no_text_registers_nobody(three: Rig) -> None:
    name = b"\x45\0\0\x14" + b"\xff" * 20
    assert out(three, "c", REGISTER, new=5, flags=0x08, more=len(name).to_bytes(4, "big") + name) == 2
    assert keys(three) == [1, 2]
