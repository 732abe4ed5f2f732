"""Target port groups: what is told of them, what runs through a port in each state, and how groups move."""

from __future__ import annotations

import dataclasses

import pytest

from tcmu_core import hookimpl
from tcmu_core.scsi.alua import AccessState as State
from tcmu_core.scsi.alua import Arrangement, PortGroup
from tcmu_core.scsi.command import Command, Status
from tcmu_core.scsi.opcodes import Tpgs
from tcmu_core.scsi.transition import Transition
from tests.scsi.harness import BLOCK, Memory, Rig, answer, cdb10, make_rig
from tests.scsi.test_copy import copy, descriptor, segment

TUR, READ, WRITE = "0 0 0 0 0 0", cdb10(0x28, 0, 1), cdb10(0x2A, 0, 1)
RTPG, EXTENDED = "a3 a 0 0 0 0 0 0 1 0 0 0", "a3 2a 0 0 0 0 0 0 1 0 0 0"
DATA = b"d" * BLOCK
CHANGED, FAILED = (6, 0x2A, 0x06), (6, 0x2A, 0x07)
IN_TRANSITION, STANDBY, UNAVAILABLE, OFFLINE = (2, 4, 0x0A), (2, 4, 0x0B), (2, 4, 0x0C), (2, 4, 0x12)
COPY = "83 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"


def groups(
    first: State = State.OPTIMIZED, second: State = State.NON_OPTIMIZED, tpgs: Tpgs = Tpgs.BOTH, seconds: int = 0
) -> Arrangement:
    return Arrangement((PortGroup(1, (1,), first, True), PortGroup(2, (2,), second)), tpgs, seconds)


def two(first: State = State.OPTIMIZED, second: State = State.NON_OPTIMIZED, tpgs: Tpgs = Tpgs.BOTH) -> Rig:
    """Return a rig with initiator a at both ports."""
    rig = make_rig(arrangement=groups(first, second, tpgs))
    rig.nexus("a:1")
    rig.nexus("a:2")
    return rig


def set_states(rig: Rig, *states: tuple[int, int], who: str = "a:1") -> tuple[int, tuple[int, int, int]]:
    data = bytes(4) + b"".join(bytes([state, 0]) + group.to_bytes(2, "big") for group, state in states)
    got = rig.send(bytes([0xA4, 0x0A, 0, 0, 0, 0]) + len(data).to_bytes(4, "big") + bytes(2), data, who=who)
    return got.status, got.error


def states(rig: Rig, who: str = "a:1") -> dict[int, int]:
    rig.nexus(who).luns[0][1].attentions.clear()
    data = rig.good(RTPG, room=256, who=who)
    return {int.from_bytes(data[at + 2 : at + 4], "big"): data[at] & 0x0F for at in range(4, len(data), 12)}


def attention(rig: Rig, who: str) -> tuple[int, int, int]:
    return rig.send(TUR, who=who).error


# -- what is told ------------------------------------------------------------------------------------------------------


def test_report_target_port_groups() -> None:
    rig = two()
    one, other = bytes.fromhex("80 cf 0001 00 00 00 01 00000001"), bytes.fromhex("01 cf 0002 00 00 00 01 00000002")
    assert rig.good(RTPG, room=256) == (24).to_bytes(4, "big") + one + other
    whole = rig.good(RTPG, room=256)
    for length in range(len(whole) + 4):  # what does not fit is cut off wherever that is, and counted all the same
        assert rig.good(f"a3 a 0 0 0 0 0 0 0 {length:x} 0 0", room=256) == whole[:length]


def test_the_extended_header_tells_how_long_a_transition_may_take() -> None:
    rig = make_rig(arrangement=groups(seconds=60))
    assert rig.good(EXTENDED, room=256)[:8] == bytes.fromhex("0000001c 10 3c 0000")
    assert rig.good(EXTENDED, room=256)[8:] == rig.good(RTPG, room=256)[4:]


@pytest.mark.parametrize("layout", range(2, 8))
def test_other_parameter_data_formats_are_refused(layout: int) -> None:
    got = two().send(bytes([0xA3, layout << 5 | 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), room=256)
    assert (got.error, got.field) == ((5, 0x24, 0), (1, 7))


@pytest.mark.parametrize("tpgs", [Tpgs.IMPLICIT, Tpgs.EXPLICIT, Tpgs.BOTH])
def test_inquiry_tells_who_moves_groups_and_that_there_are_several_ports(tpgs: Tpgs) -> None:
    data = two(tpgs=tpgs).good("12 0 0 0 60 0", room=96)
    assert (data[5] >> 4, data[6]) == (tpgs, 0x10)


def test_a_target_without_groups_has_one_that_is_active_and_does_not_move(rig: Rig) -> None:
    assert rig.good(RTPG, room=256) == bytes.fromhex("0000000c 00 cf 0001 00 00 00 01 00000001")
    data = rig.good("12 0 0 0 60 0", room=96)
    assert (data[5] >> 4, data[6]) == (1, 0)
    assert set_states(rig, (1, 2), who="a") == (2, (5, 0x20, 0))


@pytest.mark.parametrize("port", [1, 2])
def test_device_identification_names_the_port_that_it_is_asked_at_and_its_group(port: int) -> None:
    rig = make_rig(arrangement=Arrangement((PortGroup(7, (1,)), PortGroup(9, (2,))), Tpgs.IMPLICIT))
    page = rig.good("12 1 83 0 ff 0", room=255, who=f"a:{port}")
    found, at = {}, 4
    while at < len(page):
        found[page[at + 1] & 0x3F] = page[at + 4 : at + 4 + page[at + 3]]
        at += 4 + page[at + 3]
    assert found[0x14] == bytes([0, 0, 0, port])
    assert found[0x15] == bytes([0, 0, 0, {1: 7, 2: 9}[port]])
    assert found[0x18].rstrip(b"\0") == f"iqn.2020-01.test:target,t,0x000{port}".encode()


# -- what runs in which state ------------------------------------------------------------------------------------------

# What each class of commands gets in standby, unavailable, offline, transitioning; None: it runs.
REFUSED = (STANDBY, UNAVAILABLE, OFFLINE, IN_TRANSITION)
CLASSES = {
    "medium": (REFUSED, [TUR, READ, WRITE, "35 0 0 0 0 0 0 0 0 0", "41 0 0 0 0 0 0 0 1 0", "1b 0 0 0 1 0", COPY,
                         "16 0 0 0 0 0", "17 0 0 0 0 0", "1e 0 0 0 0 0", "9e 12 0 0 0 0 0 0 0 0 0 0 0 20 0 0"]),
    "state": ((None, UNAVAILABLE, OFFLINE, IN_TRANSITION),
              ["1a 0 3f 0 ff 0", "5a 0 3f 0 0 0 0 0 ff 0", "15 10 0 0 0 0", "55 10 0 0 0 0 0 0 0 0",
               "4d 0 40 0 0 0 0 0 ff 0", "1c 0 0 0 ff 0", "1d 0 0 0 0 0", "5e 0 0 0 0 0 0 0 ff 0",
               "25 0 0 0 0 0 0 0 0 0", "9e 10 0 0 0 0 0 0 0 0 0 0 0 20 0 0", "a3 c 0 0 0 0 0 0 0 ff 0 0"]),
    "move": ((None, None, None, IN_TRANSITION), ["a4 a 0 0 0 0 0 0 0 0 0 0"]),
    "always": ((None, None, None, None), ["12 0 0 0 60 0", "12 1 83 0 ff 0", "3 0 0 0 12 0",
                                          "a0 0 0 0 0 0 0 0 0 40 0 0", RTPG, EXTENDED]),
}  # fmt: skip
CASES = [
    (state, cdb, expected)
    for refusals, cdbs in CLASSES.values()
    for cdb in cdbs
    for state, expected in zip(
        (State.STANDBY, State.UNAVAILABLE, State.OFFLINE, State.TRANSITIONING), refusals, strict=True
    )
]


@pytest.mark.parametrize(("state", "cdb", "expected"), CASES)
def test_what_a_command_gets_in_each_state(state: State, cdb: str, expected: tuple[int, int, int] | None) -> None:
    rig = two(State.OPTIMIZED, state)
    got = rig.send(cdb, DATA if cdb == WRITE else b"", room=BLOCK, who="a:2")
    assert got.error == (expected or (0, 0, 0))
    assert got.status == (Status.CHECK_CONDITION if expected else Status.GOOD)
    assert rig.send(cdb, DATA if cdb == WRITE else b"", room=BLOCK, who="a:1").status == Status.GOOD


@pytest.mark.parametrize("state", [State.OPTIMIZED, State.NON_OPTIMIZED])
def test_in_both_active_states_everything_runs_by_the_fast_path(state: State) -> None:
    rig = two(state, state)
    assert rig.engine.fast
    assert rig.send(WRITE, DATA, who="a:2").status == Status.GOOD
    assert rig.good(READ, room=BLOCK, who="a:1") == DATA


def test_the_fast_path_is_closed_while_an_initiator_is_at_a_port_that_is_not_active() -> None:
    rig = make_rig(arrangement=groups(second=State.STANDBY))
    rig.nexus("a:1")
    assert rig.engine.fast
    away = rig.nexus("a:2")
    assert not rig.engine.fast
    rig.target.disconnect(away)
    assert rig.engine.fast


def test_an_unavailable_port_has_no_device_connected() -> None:
    rig = two(second=State.UNAVAILABLE)
    for cdb in ("12 0 0 0 60 0", "12 1 83 0 ff 0"):
        assert rig.good(cdb, room=255, who="a:2")[0] == 0x20
        assert rig.good(cdb, room=255, who="a:1")[0] == 0x00


def test_a_handler_does_not_see_what_the_state_of_the_port_forbids() -> None:
    seen = []

    class Curious(Memory):
        @hookimpl
        def handle_cmd(self, command: Command) -> None:
            seen.append(command.cdb[0])

    rig = make_rig(Curious(), arrangement=groups(second=State.STANDBY))
    for cdb in (READ, "c1 0 0 0 0 0 0 0 0 0", "5e 0 0 0 0 0 0 0 ff 0"):
        rig.send(cdb, room=BLOCK, who="a:2")
    assert seen == [0x5E]


def test_extended_copy_needs_both_units_to_be_active() -> None:
    rig = make_rig(Memory(), Memory(), arrangement=groups())
    rig.nexus("a:1")
    rig.target.arrange({0: groups(), 1: groups(State.STANDBY)})
    rig.nexus("a:1").luns[0][1].attentions.clear()
    rig.nexus("a:1").luns[1][1].attentions.clear()
    targets = b"".join(
        bytes.fromhex("e4 00 0000 01 03 00 10") + engine.unit.identity.naa + bytes(4) + bytes.fromhex("00 00 02 00")
        for engine in rig.engines
    )
    segment = bytes.fromhex("02 00 0018 0000 0001 0000 0001") + bytes(16)
    data = bytes([1, 0, 0, len(targets), 0, 0, 0, 0, 0, 0, 0, len(segment), 0, 0, 0, 0]) + targets + segment
    cdb = bytes([0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + len(data).to_bytes(4, "big") + bytes(2)
    assert rig.send(cdb, data, who="a:1").error == STANDBY
    rig.target.arrange({0: groups(), 1: groups()})
    rig.nexus("a:1").luns[0][1].attentions.clear()
    assert rig.send(cdb, data, who="a:1").status == Status.GOOD


# -- SET TARGET PORT GROUPS --------------------------------------------------------------------------------------------


def test_an_initiator_moves_groups_and_all_others_hear_of_it() -> None:
    rig = two(second=State.STANDBY)
    rig.nexus("b:2")
    assert set_states(rig, (1, 2), (2, 0)) == (0, (0, 0, 0))
    assert attention(rig, "a:2") == attention(rig, "b:2") == CHANGED
    assert states(rig) == {1: 2, 2: 0}
    assert [rig.good(RTPG, room=256)[at] for at in (9, 21)] == [1, 1]  # STATUS CODE: by command
    assert attention(rig, "a:1") == STANDBY
    assert rig.send(WRITE, DATA, who="a:2").status == Status.GOOD


def test_what_changes_nothing_is_told_to_nobody() -> None:
    rig = two()
    assert set_states(rig, (1, 0)) == set_states(rig) == (0, (0, 0, 0))
    assert rig.send("a4 a 0 0 0 0 0 0 0 0 0 0").status == Status.GOOD
    assert attention(rig, "a:2") == (0, 0, 0)


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (((1, 0x0F),), (5, 0x26, 0)),  # transitioning is no place to go to
        (((1, 0x0E),), (5, 0x26, 0)),
        (((1, 0x04),), (5, 0x26, 0)),
        (((1, 0x80),), (5, 0x26, 0)),
        (((3, 0x00),), (5, 0x26, 0)),
        (((1, 0x02), (3, 0x00)), (5, 0x26, 0)),
        (((1, 0x02), (1, 0x00)), (5, 0x26, 0)),
    ],
)
def test_a_list_that_is_wrong_moves_nothing(wanted: tuple[tuple[int, int], ...], error: tuple[int, int, int]) -> None:
    rig = two()
    assert set_states(rig, *wanted) == (2, error)
    assert states(rig) == {1: 0, 2: 1}


@pytest.mark.parametrize("length", [3, 6, 9])
def test_a_list_of_another_length_is_refused(length: int) -> None:
    assert two().send(bytes([0xA4, 0x0A, 0, 0, 0, 0, 0, 0, 0, length, 0, 0]), bytes(length)).error == (5, 0x1A, 0)


def test_where_groups_move_by_themselves_there_is_no_command_for_it() -> None:
    assert set_states(two(tpgs=Tpgs.IMPLICIT), (1, 2)) == (2, (5, 0x20, 0))


# -- transitions -------------------------------------------------------------------------------------------------------


def test_a_group_that_goes_lets_what_came_through_it_end_first() -> None:
    rig = two()
    rig.memory.hold = True
    write, written = rig.start(WRITE, DATA, who="a:1")
    data = bytes.fromhex("00000000 02000001 00000002")
    move, moved = rig.start("a4 a 0 0 0 0 0 0 0 c 0 0", data, who="a:2")
    rig.turn()
    assert (written, moved) == ([], [])
    assert states(rig) == {1: 0x0F, 2: 0x0F}
    assert rig.send(READ, room=BLOCK, who="a:1").error == IN_TRANSITION
    assert set_states(rig, (1, 0)) == (2, IN_TRANSITION)
    rig.memory.release()
    rig.turn()
    assert (written, moved, write.status, move.status) == ([write], [move], 0, 0)
    assert states(rig) == {1: 2, 2: 0}


@pytest.mark.parametrize(("behind", "told"), [("write", CHANGED), ("copy", STANDBY)])
def test_what_waits_behind_an_ordered_command_that_moves_groups_keeps_it_from_nothing(
    behind: str, told: tuple[int, int, int]
) -> None:
    rig = two()
    rig.memory.hold = True
    rig.start(WRITE, DATA, who="a:1")
    move, moved = rig.start("a4 a 0 0 0 0 0 0 0 8 0 0", bytes.fromhex("00000000 02000001"), who="a:2", attribute=2)
    sent = (WRITE, DATA) if behind == "write" else copy(descriptor(rig, 0), segment(0, 0, 0, 8, 1))
    late, ended = rig.start(*sent, who="a:1")
    rig.turn()
    assert (moved, ended) == ([], [])
    rig.memory.release()
    rig.turn()
    assert (moved, move.status, ended) == ([move], 0, [late])
    assert answer(late).error == told


def test_a_reset_ends_the_command_and_not_the_transition() -> None:
    rig = two()
    rig.memory.hold = True
    rig.start(WRITE, DATA, who="a:1")
    move, _ = rig.start("a4 a 0 0 0 0 0 0 0 8 0 0", bytes.fromhex("00000000 02000001"), who="a:2")
    ended: list[int] = []
    rig.engine.reset(move.nexus, lambda: ended.append(1))
    rig.turn()
    assert states(rig, "a:2") == {1: 0x0F, 2: 1}
    rig.memory.release()
    rig.turn()
    assert (ended, states(rig, "a:2")) == ([1], {1: 2, 2: 1})


def test_groups_that_move_by_themselves_are_told_to_everybody() -> None:
    rig = two(tpgs=Tpgs.IMPLICIT)
    rig.engine.arrange(groups(State.STANDBY, State.OPTIMIZED, Tpgs.IMPLICIT))
    assert attention(rig, "a:1") == attention(rig, "a:2") == CHANGED
    assert states(rig) == {1: 2, 2: 0}
    assert [rig.good(RTPG, room=256)[at] for at in (9, 21)] == [2, 2]  # STATUS CODE: implicit
    assert not rig.engine.fast


def test_a_transition_that_takes_too_long_is_taken_back_and_everybody_hears_that_it_failed() -> None:
    rig = two(tpgs=Tpgs.IMPLICIT)
    rig.memory.hold = True
    _, written = rig.start(WRITE, DATA, who="a:1")
    moving: list[Transition] = []
    rig.engine.arrange(groups(State.STANDBY, tpgs=Tpgs.IMPLICIT), moving.append)
    (transition,) = moving
    assert attention(rig, "a:1") == IN_TRANSITION
    assert transition.give_up()
    assert attention(rig, "a:1") == attention(rig, "a:2") == FAILED
    assert states(rig) == {1: 0, 2: 1}
    assert rig.engine.fast
    rig.memory.release()
    rig.turn()
    assert len(written) == 1
    assert not transition.give_up()
    assert states(rig) == {1: 0, 2: 1}


def test_what_is_arranged_during_a_transition_is_taken_after_it() -> None:
    rig = two(tpgs=Tpgs.IMPLICIT)
    rig.memory.hold = True
    rig.start(WRITE, DATA, who="a:1")
    rig.engine.arrange(groups(State.STANDBY, tpgs=Tpgs.IMPLICIT))
    rig.engine.arrange(groups(State.UNAVAILABLE, State.OPTIMIZED, Tpgs.IMPLICIT))
    assert states(rig) == {1: 0x0F, 2: 1}
    rig.memory.release()
    rig.turn()
    assert states(rig) == {1: 3, 2: 0}


def test_what_an_initiator_has_moved_stays_until_it_is_set_up_otherwise() -> None:
    rig = two(second=State.STANDBY)
    set_states(rig, (1, 2), (2, 0))
    rig.engine.arrange(dataclasses.replace(groups(second=State.STANDBY), transition_time=5))
    assert states(rig) == {1: 2, 2: 0}
    rig.engine.arrange(groups(State.NON_OPTIMIZED, State.STANDBY))
    assert states(rig) == {1: 1, 2: 0}


def test_initiators_hear_when_others_may_move_groups() -> None:
    rig = two(tpgs=Tpgs.IMPLICIT)
    rig.engine.arrange(groups())
    assert attention(rig, "a:1") == attention(rig, "a:2") == (6, 0x3F, 0x03)
    assert set_states(rig, (1, 2)) == (0, (0, 0, 0))


def test_each_unit_has_groups_of_its_own() -> None:
    rig = make_rig(Memory(), Memory(), arrangement=groups(second=State.STANDBY))
    rig.nexus("a:1")
    assert set_states(rig, (1, 2), (2, 0)) == (0, (0, 0, 0))
    assert rig.send(TUR, who="a:1").error == STANDBY
    assert rig.send(TUR, who="a:1", lun=1).status == Status.GOOD


# -- reservations at several ports -------------------------------------------------------------------------------------


def register(rig: Rig, who: str, key: int, new: int, flags: int = 0x04) -> int:
    data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes(4) + bytes([flags, 0, 0, 0])
    return rig.send(bytes([0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0]), data, who=who).status


def registered(rig: Rig) -> dict[tuple[str, int], int]:
    names = {rig.nexus(f"{who}:1").initiator.transport_id: who for who in "ab"}
    return {(names[who.transport_id], who.port): key for who, key in rig.unit.reservations.now.keys.items()}


def test_all_target_ports_registers_the_initiator_port_at_each_of_them() -> None:
    rig = two()
    assert register(rig, "b:2", 0, 9, flags=0) == 0
    assert register(rig, "a:1", 0, 5) == 0
    assert registered(rig) == {("b", 2): 9, ("a", 1): 5, ("a", 2): 5}
    assert register(rig, "a:2", 5, 6) == 0
    assert registered(rig) == {("b", 2): 9, ("a", 1): 6, ("a", 2): 6}
    assert register(rig, "a:1", 6, 0) == 0
    assert registered(rig) == {("b", 2): 9}


def test_a_registration_is_of_one_port_unless_all_are_asked_for() -> None:
    rig = two()
    assert register(rig, "a:1", 0, 5, flags=0) == 0
    assert register(rig, "a:2", 0, 7, flags=0) == 0
    assert register(rig, "a:1", 5, 6) == 0
    assert registered(rig) == {("a", 1): 6, ("a", 2): 7}


@pytest.mark.parametrize(("port", "status"), [(2, 0), (3, 2)])
def test_a_reservation_moves_to_another_port(port: int, status: int) -> None:
    rig = two()
    assert register(rig, "a:1", 0, 5, flags=0) == 0
    parameters = (5).to_bytes(8, "big") + bytes(16)
    assert rig.send("5f 1 1 0 0 0 0 0 18 0", parameters, who="a:1").status == 0
    name = rig.nexus("b:1").initiator.transport_id
    data = (5).to_bytes(8, "big") + (9).to_bytes(8, "big") + bytes([0, 0]) + port.to_bytes(2, "big")
    data += len(name).to_bytes(4, "big") + name
    cdb = bytes([0x5F, 7, 1, 0, 0]) + len(data).to_bytes(4, "big") + b"\0"
    assert rig.send(cdb, data, who="a:1").status == status
    assert registered(rig).get(("b", 2)) == (9 if not status else None)
