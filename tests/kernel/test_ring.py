"""The ring against a kernel of our own, over anonymous memory."""

from __future__ import annotations

import queue
import random
import struct
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_core import hookimpl
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.kernel.ring import Ring, RingError
from tcmu_core.scsi import sampling
from tcmu_core.scsi import tally as tallying
from tcmu_core.scsi.command import Command, Initiator, Nexus
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.hot import PASS, Fast, Over
from tcmu_core.scsi.tally import Tally
from tcmu_core.testing import fake_kernel as fake
from tcmu_core.testing.harness import make_disk
from tests.iscsi.served import MemoryDisk

READ, WRITE = b"\x28", b"\x2a"
GOOD, CHECK, ABORTED = 0x00, 0x02, 0x40


class Unit:
    """Answers what `rule` says: None keeps the command until `finish`."""

    def __init__(self, rule: Callable[[Command], bool]) -> None:
        self.rule = rule
        self.seen: list[Command] = []
        self.data: list[bytes] = []  # what each command's buffers held when it came
        self.kept: list[Command] = []
        self.aborted: list[Command] = []
        self.resets = 0
        self.fast: dict[int, Fast] = {}

    def execute(self, command: Command) -> bool:
        self.seen.append(command)
        self.data.append(b"".join(command.buffers))
        if self.rule(command):
            return True
        self.kept.append(command)
        return False

    def proceed(self, command: Command, result: Any) -> bool:
        assert result is PASS
        return self.execute(command)

    def abort(self, command: Command, then: Callable[[], object]) -> None:
        self.aborted.append(command)
        command.aborted = True

    def reset(self, nexus: Nexus | None, then: Callable[[], object]) -> None:
        self.resets += 1

    def count(self, over: Over | None) -> None:
        raise NotImplementedError


def good(command: Command) -> bool:
    command.transferred = command.wanted = command.length
    return True


def keep(command: Command) -> bool:
    return False


class Bench:
    def __init__(self, rule: Callable[[Command], bool] = good, **kernel: Any) -> None:
        self.kernel = fake.FakeKernel(**kernel)
        self.unit = Unit(rule)
        self.posted: list[Callable[[], object]] = []
        self.nexus = Nexus(Initiator("kernel", b""))
        self.ring = Ring(
            self.kernel.memory,
            self.unit,
            self.nexus,
            post=self.posted.append,
            doorbell=self.kernel.bell,
        )

    def finish(self, command: Command, status: int = GOOD) -> None:
        self.unit.kept.remove(command)
        command.status = status
        if status == GOOD:
            command.transferred = command.length
        command.done(command)
        while self.posted:
            self.posted.pop()()


def test_a_command_is_taken_and_answered_good() -> None:
    bench = Bench()
    cmd_id = bench.kernel.command(b"\x00" * 6)
    bench.ring.process()
    assert bench.kernel.answer_of(cmd_id).status == GOOD
    assert bench.kernel.head == bench.kernel.tail


def test_all_that_is_in_the_ring_costs_one_doorbell() -> None:
    bench = Bench()
    for _ in range(10):
        bench.kernel.command(b"\x00" * 6)
    bench.ring.process()
    assert (len(bench.kernel.answers), bench.kernel.bells) == (10, 1)


def test_an_empty_ring_costs_no_doorbell() -> None:
    bench = Bench()
    bench.ring.process()
    assert bench.kernel.bells == 0


def test_commands_that_arrive_during_the_batch_are_taken_before_it_ends() -> None:
    bench = Bench()
    bench.kernel.command(b"\x00" * 6)
    real, late = bench.kernel.bell, iter([b"\x01" * 6, b"\x02" * 6])

    def bell() -> None:
        real()
        for cdb in late:
            bench.kernel.command(cdb)
            break

    bench.ring._doorbell = bell
    bench.ring.process()
    assert [answer.status for answer in bench.kernel.answers] == [GOOD] * 3


def test_buffers_are_views_into_the_data_area() -> None:
    def fill(command: Command) -> bool:
        command.buffers[0][:] = b"x" * command.length
        return good(command)

    bench = Bench(fill)
    cmd_id = bench.kernel.command(READ, room=4096)
    bench.ring.process()
    assert bench.kernel.answer_of(cmd_id).data == b"x" * 4096


def test_a_write_sees_what_was_sent() -> None:
    bench = Bench()
    data = random.Random(1).randbytes(10000)
    bench.kernel.command(WRITE, data=data)
    bench.ring.process()
    assert bench.unit.data == [data]


def test_iovecs_that_adjoin_become_one_buffer() -> None:
    bench = Bench()
    bench.kernel.command(READ, room=5 * 4096)
    bench.kernel.command(READ, room=3 * 4096, scatter=True)
    bench.ring.process()
    assert [len(command.buffers) for command in bench.unit.seen] == [1, 3]
    assert bench.unit.seen[0].length == 5 * 4096


@pytest.mark.parametrize("length", [6, 10, 12, 16, 32, 260])
def test_the_cdb_comes_whole_and_padded_with_zeros(length: int) -> None:
    bench = Bench()
    cdb = bytes([0xC1]) + bytes(range(1, length) if length < 256 else [7] * (length - 1))
    bench.kernel.command(cdb)
    bench.ring.process()
    seen = bench.unit.seen[0].cdb
    assert seen[:length] == cdb
    assert not any(seen[length:])
    assert len(seen) - length < 8


def test_a_vendor_cdb_is_answered() -> None:
    def refuse(command: Command) -> bool:
        command.status, command.sense = CHECK, b"\x70\x00\x05" + bytes(9) + b"\x20\x00"
        return True

    bench = Bench(refuse)
    cmd_id = bench.kernel.command(b"\xc1" + bytes(9), room=512)
    bench.ring.process()
    answer = bench.kernel.answer_of(cmd_id)
    assert answer.status == CHECK
    assert answer.sense.startswith(b"\x70\x00\x05")
    assert answer.data == b""


def test_sense_of_an_earlier_user_of_the_slot_does_not_stay() -> None:
    def refuse(command: Command) -> bool:
        command.status, command.sense = CHECK, b"\x72\x05\x24\x00"
        return True

    bench = Bench(refuse)
    cmd_id = bench.kernel.command(b"\xff" * 16, data=b"\xff" * 4096, scatter=True)
    bench.ring.process()
    assert bench.kernel.answer_of(cmd_id).sense == b"\x72\x05\x24\x00" + bytes(92)


def test_a_short_answer_gives_its_length() -> None:
    def short(command: Command) -> bool:
        command.put(b"abc")
        return True

    bench = Bench(short)
    cmd_id = bench.kernel.command(b"\x12" + bytes(5), room=255)
    bench.ring.process()
    answer = bench.kernel.answer_of(cmd_id)
    assert (answer.read_len, answer.data) == (3, b"abc")


@pytest.mark.parametrize(("sent", "flags"), [(b"abc", fake.OUT_OF_ORDER), (b"", fake.OUT_OF_ORDER | fake.READ_LEN)])
def test_where_no_length_can_be_given_the_rest_is_zeros(sent: bytes, flags: int) -> None:
    def short(command: Command) -> bool:
        command.put(sent)
        return True

    bench = Bench(short, flags=flags)
    cmd_id = bench.kernel.command(b"\x12" + bytes(5), room=9000, scatter=True)
    bench.ring.process()
    assert bench.kernel.answer_of(cmd_id).data == sent + bytes(9000 - len(sent))


@pytest.mark.parametrize("sense", [b"\x70\x00\x01" + bytes(15), b"\x72\x01\x00\x00"])
def test_data_goes_with_a_recovered_error(sense: bytes) -> None:
    def recovered(command: Command) -> bool:
        command.put(b"d" * 512)
        command.status, command.sense = CHECK, sense
        return True

    bench = Bench(recovered)
    cmd_id = bench.kernel.command(READ, room=512)
    bench.ring.process()
    answer = bench.kernel.answer_of(cmd_id)
    assert (answer.status, answer.data) == (CHECK, b"d" * 512)


def test_no_data_goes_with_a_medium_error() -> None:
    def failed(command: Command) -> bool:
        command.transferred = command.length
        command.status, command.sense = CHECK, b"\x70\x00\x03" + bytes(15)
        return True

    bench = Bench(failed)
    cmd_id = bench.kernel.command(READ, room=512)
    bench.ring.process()
    assert bench.kernel.answer_of(cmd_id).data == b""


def test_a_bidirectional_command_has_its_data_out_and_clean_room_for_its_data_in() -> None:
    bench = Bench()
    cmd_id = bench.kernel.command(b"\x53" + bytes(9), data=b"o" * 512, bidi=512)
    bench.ring.process()
    command = bench.unit.seen[0]
    assert bench.unit.data == [b"o" * 512]
    assert command.length == 512
    assert bench.kernel.answer_of(cmd_id).data == bytes(512)


def test_commands_finish_out_of_order() -> None:
    bench = Bench(keep)
    ids = [bench.kernel.command(READ, room=512) for _ in range(4)]
    bench.ring.process()
    for index in (2, 0, 3, 1):
        bench.finish(next(command for command in bench.unit.kept if command.tag == ids[index]))
    assert [answer.cmd_id for answer in bench.kernel.answers] == [ids[index] for index in (2, 0, 3, 1)]
    assert bench.kernel.head == bench.kernel.tail


def test_in_order_kernels_get_their_answers_in_order() -> None:
    bench = Bench(keep, flags=fake.READ_LEN)
    ids = [bench.kernel.command(READ, room=512) for _ in range(4)]
    bench.ring.process()
    kept = list(bench.unit.kept)
    bench.finish(kept[2])
    bench.finish(kept[1])
    assert bench.kernel.answers == []
    bench.finish(kept[0])
    assert [answer.cmd_id for answer in bench.kernel.answers] == ids[:3]
    bench.finish(kept[3])
    assert bench.kernel.head == bench.kernel.tail


def test_a_command_that_ends_later_rings_the_bell_once_for_all_that_ended_with_it() -> None:
    bench = Bench(keep)
    for _ in range(5):
        bench.kernel.command(READ, room=512)
    bench.ring.process()
    for command in bench.unit.kept:
        command.transferred = command.length
        command.done(command)
    assert len(bench.posted) == 1
    assert bench.kernel.bells == 0
    bench.posted.pop()()
    assert (bench.kernel.bells, len(bench.kernel.answers)) == (1, 5)


def test_answers_are_published_before_the_doorbell() -> None:
    bench = Bench()
    bench.ring._doorbell = lambda: None
    bench.kernel.command(b"\x00" * 6)
    bench.ring.process()
    assert bench.kernel.tail == bench.kernel.head


def test_large_answers_ring_before_the_batch_is_over() -> None:
    bench = Bench(ring=8192, pages=256)
    bench.unit.fast[READ[0]] = lambda memory, at, length, buffers: None
    for _ in range(4):
        bench.kernel.command(READ, room=64 << 10)
    bench.ring.process()
    assert bench.kernel.bells == 2


def test_a_fast_path_answers_without_a_command() -> None:
    bench = Bench()
    seen = []

    def fast(memory: Any, at: int, length: int, buffers: list[memoryview]) -> None:
        seen.append((memory[at : at + 10], length, [len(buffer) for buffer in buffers]))
        buffers[0][:3] = b"abc"

    bench.unit.fast[READ[0]] = fast
    cdb = READ + bytes(range(9))
    ids = [bench.kernel.command(cdb, room=512), bench.kernel.command(WRITE, data=b"x")]
    ids.append(bench.kernel.command(cdb, room=6))
    bench.ring.process()
    assert [command.tag for command in bench.unit.seen] == ids[1:2]
    assert seen == [(cdb, 512, [512]), (cdb, 6, [6])]
    assert [answer.cmd_id for answer in bench.kernel.answers] == ids
    assert bench.kernel.answers[2].data == b"abc" + bytes([fake.FRESH]) * 3


@pytest.mark.parametrize("result", [PASS, OSError(5, "no"), "a future"])
def test_what_a_fast_path_does_not_end_becomes_a_command(result: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proceeded = []

    def fast(memory: Any, at: int, length: int, buffers: list[memoryview]) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    def proceed(_unit: Unit, command: Command, what: Any) -> bool:
        proceeded.append((command.cdb[:10], command.length, what))
        command.status, command.sense = CHECK, b"sense"
        return True

    monkeypatch.setattr(Unit, "proceed", proceed)
    bench = Bench()
    bench.unit.fast[READ[0]] = fast
    cmd_id = bench.kernel.command(READ + bytes(9), room=512)
    bench.ring.process()
    assert proceeded == [(READ + bytes(9), 512, result)]
    assert bench.kernel.answer_of(cmd_id).sense.rstrip(b"\0") == b"sense"


def test_no_fast_path_while_an_attention_waits() -> None:
    bench = Bench()
    bench.unit.fast[READ[0]] = lambda memory, at, length, buffers: None
    bench.nexus.attentions.append((0x2A, 0x09))
    bench.kernel.command(READ, room=512)
    bench.ring.process()
    assert len(bench.unit.seen) == 1


def test_a_ring_that_is_never_empty_lets_others_have_their_turn() -> None:
    bench = Bench(ring=16384, pages=256)
    left = 1000

    def one_more(memory: Any, at: int, length: int, buffers: list[memoryview]) -> None:
        nonlocal left
        left -= bool(left)
        if left:
            bench.kernel.command(READ, room=512)

    bench.unit.fast[READ[0]] = one_more
    bench.kernel.command(READ, room=512)
    bench.ring.process()
    assert 0 < bench.ring.commands < 500
    assert len(bench.kernel.answers) == bench.ring.commands
    for _ in range(100):
        bench.ring.process()
    assert bench.ring.commands == 1000
    assert not bench.kernel.sent


def test_an_abort_ends_the_command_and_gives_its_slot_back() -> None:
    bench = Bench(keep)
    first, second = (bench.kernel.command(READ, room=512) for _ in range(2))
    bench.ring.process()
    bench.kernel.abort(1, [first])
    bench.ring.process()
    assert [command.tag for command in bench.unit.aborted] == [first]
    for command in list(bench.unit.kept):
        bench.finish(command)
    assert bench.kernel.answer_of(first).status == ABORTED
    assert bench.kernel.answer_of(second).status == GOOD
    assert bench.kernel.head == bench.kernel.tail


def test_an_abort_of_a_command_that_has_ended_is_no_matter() -> None:
    bench = Bench()
    cmd_id = bench.kernel.command(READ, room=512)
    bench.kernel.abort(1, [cmd_id, 999])
    bench.ring.process()
    assert bench.unit.aborted == []
    assert bench.kernel.head == bench.kernel.tail


@pytest.mark.parametrize("kind", [5, 6, 7])
def test_a_reset_resets_the_unit(kind: int) -> None:
    bench = Bench()
    bench.kernel.abort(kind, [])
    bench.ring.process()
    assert bench.unit.resets == 1


def test_an_entry_of_an_unknown_kind_is_marked_and_given_back() -> None:
    bench = Bench()
    strange = bench.kernel.strange(5)
    cmd_id = bench.kernel.command(b"\x00" * 6)
    bench.ring.process()
    assert bench.kernel.unknown == [strange]
    assert bench.kernel.answer_of(cmd_id).status == GOOD


def test_an_entry_without_length_is_an_error_and_no_endless_loop() -> None:
    bench = Bench()
    struct.pack_into("=I", bench.kernel.memory, fake.MAILBOX_BYTES, 0)
    bench.kernel.head = 64
    with pytest.raises(RingError, match="ends at"):
        bench.ring.process()


def test_nothing_beyond_the_ring_is_read_for_a_pad_at_its_very_end() -> None:
    bench = Bench(ring=8 * 120 + 8)  # eight entries fit; the eight bytes that are left become a PAD
    for _ in range(20):
        assert bench.kernel.command(b"\x00" * 6) is not None
        bench.ring.process()
    assert len(bench.kernel.answers) == 20
    assert bench.kernel.head == bench.kernel.tail


def test_a_ring_that_was_in_use_is_taken_up_where_it_stood() -> None:
    bench = Bench()
    bench.kernel.command(b"\x00" * 6)
    bench.ring.process()
    unit = Unit(good)
    nexus = Nexus(Initiator("kernel", b""))
    other = Ring(bench.kernel.memory, unit, nexus, post=lambda fn: fn(), doorbell=bench.kernel.bell)
    cmd_id = bench.kernel.command(b"\x01" * 6)
    other.process()
    assert [command.tag for command in unit.seen] == [cmd_id]


@pytest.mark.parametrize(
    ("patch", "says"),
    [((0, "=H", 3), "version 3"), ((8, "=I", 1 << 30), "does not fit"), ((4, "=I", 130), "does not fit")],
)
def test_a_mailbox_of_another_shape_is_refused(patch: tuple[int, str, int], says: str) -> None:
    kernel = fake.FakeKernel()
    struct.pack_into(patch[1], kernel.memory, patch[0], patch[2])
    with pytest.raises(RingError, match=says):
        Ring(kernel.memory, Unit(good), Nexus(Initiator("kernel", b"")), post=lambda fn: fn(), doorbell=kernel.bell)


STEP = st.tuples(
    st.sampled_from(["read", "write", "none", "abort", "finish", "finish", "process", "process"]),
    st.integers(0, 3 * 4096),
    st.booleans(),
    st.integers(6, 40),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(STEP, max_size=120),
    st.sampled_from([7, 3, 1, 2]),
    st.sampled_from([1024, 2048, 4096]),
    st.randoms(use_true_random=False),
)
def test_every_command_is_answered_once_with_its_own_data(steps: list[Any], flags: int, ring: int, chance: Any) -> None:
    defer = chance.random

    def rule(command: Command) -> bool:
        command.context = command.cdb
        if defer() < 0.5:
            return False
        answer(command)
        return True

    def answer(command: Command) -> None:
        if command.cdb[0] == 0x28:
            command.put(bytes([command.cdb[1]]) * command.length)
        else:
            command.transferred = command.length

    bench = Bench(rule, ring=ring, flags=flags)
    expected: dict[int, tuple[str, int, int]] = {}

    def settle(command: Command) -> None:
        if not command.aborted:
            answer(command)
        bench.unit.kept.remove(command)
        command.done(command)
        while bench.posted:
            bench.posted.pop()()

    def check() -> None:
        for got in bench.kernel.answers:
            kind, mark, length = expected.pop(got.cmd_id)
            assert got.status in (GOOD, ABORTED)
            if kind == "read" and got.status == GOOD:
                assert got.data == bytes([mark]) * length
        bench.kernel.answers.clear()

    for kind, length, scatter, cdb_length in steps:
        mark = chance.randrange(256)
        if kind == "process":
            bench.ring.process()
        elif kind == "finish":
            if bench.unit.kept:
                settle(chance.choice(bench.unit.kept))
        elif kind == "abort":
            if bench.unit.kept and bench.kernel._reserve(40) is not None:
                bench.kernel.abort(1, [chance.choice(bench.unit.kept).tag])
        elif len(bench.kernel.free) >= 3:
            cdb = bytes([{"read": 0x28, "write": 0x2A, "none": 0}[kind], mark]) + bytes(cdb_length - 2)
            if kind == "write":
                cmd_id = bench.kernel.command(cdb, data=bytes([mark]) * length, scatter=scatter)
            else:
                cmd_id = bench.kernel.command(cdb, room=length if kind == "read" else 0, scatter=scatter)
            if cmd_id is not None:
                expected[cmd_id] = (kind, mark, length)
        check()
    bench.ring.process()
    while bench.unit.kept:
        settle(bench.unit.kept[0])
    bench.ring.process()
    check()
    assert not expected
    assert bench.kernel.head == bench.kernel.tail
    assert not bench.ring.in_flight


def test_the_ring_works_with_fences_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcmu_core.kernel.ring._TOTAL_STORE_ORDER", False)
    bench = Bench(lambda command: command.cdb[1] == 0 and good(command))
    ids = [bench.kernel.command(bytes([0x28, deferred]) + bytes(8), room=512) for deferred in (0, 1, 0, 1, 0)]
    bench.ring.process()
    while bench.unit.kept:
        bench.finish(bench.unit.kept[-1])
    assert {answer.cmd_id for answer in bench.kernel.answers} == set(ids)
    assert bench.kernel.head == bench.kernel.tail


@pytest.mark.parametrize("threads", [0, 2])
def test_what_passes_the_ring_is_counted_to_the_command(threads: int) -> None:
    """Those that end on the fast path, those that end later, and those that fail."""
    rig = RingRig(threads)
    rig.watch()
    for lba in range(5):
        rig.send(b"\x28\0" + lba.to_bytes(4, "big") + b"\0\0\2\0", room=1024)
    for _ in range(3):
        rig.send(b"\x2a" + bytes(7) + b"\1\0", data=bytes(512))
    rig.send(b"\x28\xff" + bytes(6) + b"\1\0", room=512)
    rig.finish()
    tally = rig.nexus.tally
    assert (tally.commands[0x28], tally.commands[0x2A], sum(tally.commands)) == (6, 3, 9)
    assert (tally.moved[0x28], tally.moved[0x2A]) == (5 * 1024, 3 * 512)
    assert tally.errors == {(0x28, CHECK, 5): 1}
    # The first batch is timed, and nothing of it is forgotten on its way.
    taken = tally.times_of(0x28)
    assert sum(taken.queue.counts) == sum(taken.storage.counts) == sum(taken.send.counts) > 0


def test_a_batch_that_is_not_timed_is_counted_just_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one operation code, and of one command each, with one that takes the long way between them."""
    monkeypatch.setattr(sampling, "INTERVAL", 1 << 62)
    rig = RingRig(0)
    rig.watch()
    rig.read()
    for blocks in (1, 2, 3):
        size = bytes([blocks, 0])
        rig.send(b"\x28" + bytes(7) + size, room=512 * blocks)
        rig.send(b"\x28" + bytes(7) + size, room=512 * blocks)
        rig.send(b"\x00" + bytes(5))
        rig.send(b"\x2a" + bytes(7) + size, data=bytes(512 * blocks))
    rig.finish()
    tally = rig.nexus.tally
    assert (tally.commands[0x00], tally.commands[0x28], tally.commands[0x2A]) == (3, 7, 3)
    assert (tally.moved[0x28], tally.moved[0x2A]) == (13 * 512, 6 * 512)
    assert sum(tally.commands) == rig.ring.commands == 13
    assert sum(tally.times_of(0x28).storage.counts) == 1


def test_while_nobody_looks_nothing_is_counted_and_the_engines_own_paths_are_called() -> None:
    rig = RingRig(0)
    own = dict(rig.engine.fast)
    tally = rig.watch()
    rig.read()
    rig.ring.watch(None)
    rig.read()
    assert (tally.commands[0x28], sum(rig.nexus.tally.commands)) == (1, 0)
    assert rig.engine.fast.keys() == own.keys()
    assert [path.__code__ for path in rig.engine.fast.values()] == [path.__code__ for path in own.values()]  # type: ignore[attr-defined]
    again = rig.watch()
    rig.read()
    assert (tally.commands[0x28], again.commands[0x28]) == (1, 1)


def test_what_is_under_way_when_somebody_begins_to_look_or_ends_to_is_answered_all_the_same() -> None:
    patient = Patient()
    rig = RingRig(0, patient)
    for _ in range(3):
        rig.read()
    tally = rig.watch()
    rig.read()
    patient.answer()
    rig.end()
    assert (tally.commands[0x28], tally.moved[0x28]) == (4, 4 * 512)  # those that have ended since
    taken = tally.times_of(0x28)  # of the one that began meanwhile
    assert sum(taken.queue.counts) == sum(taken.storage.counts) == sum(taken.send.counts) == 1
    rig.read()
    rig.ring.watch(None)
    patient.answer()
    rig.end()
    assert sum(tally.commands) == 4
    assert {answer.status for answer in rig.kernel.answers} == {GOOD}


def test_of_quick_commands_the_first_one_of_a_batch_is_timed() -> None:
    rig = RingRig(0)
    tally = rig.watch()
    for _ in range(3):
        rig.send(b"\x28" + bytes(7) + b"\1\0", room=512)
    rig.finish()
    assert (tally.commands[0x28], sum(tally.times_of(0x28).storage.counts)) == (3, 1)


def test_what_is_aborted_while_it_waits_for_its_turn_is_counted_too() -> None:
    patient = Patient()
    rig = RingRig(0, patient)
    tally = rig.watch()
    rig.read()
    rig.send(b"\x89" + bytes(12) + b"\1\0\0", data=bytes(1024))  # COMPARE AND WRITE of the block that is being read
    rig.ring.process()
    (waiting,) = [command for command in rig.ring.in_flight.values() if command.cdb[0] == 0x89]
    rig.engine.abort(waiting, lambda: None)
    patient.answer()
    rig.end()
    assert (tally.commands[0x28], tally.commands[0x89]) == (1, 1)
    assert tally.errors == {(0x89, tallying.ABORTED, 0): 1}


def test_a_disk_that_changes_while_somebody_looks_is_counted_on() -> None:
    rig = RingRig(0)
    tally = rig.watch()
    rig.read()
    rig.engine.refresh()
    rig.read()
    assert tally.commands[0x28] == 2


class Patient(MemoryDisk):
    """Answers reads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Future[None]] = []

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> Future[None]:  # type: ignore[override]
        self.waits.append(Future())
        return self.waits[-1]

    def answer(self) -> None:
        for wait in self.waits:
            wait.set_result(None)
        self.waits.clear()


class RingRig:
    """A ring with the engine and a disk in memory behind it."""

    def __init__(self, threads: int, handler: object | None = None) -> None:
        self.posted: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        disk = make_disk(handler or MemoryDisk(), DiskSpec("memory", name="disk"), threads=threads)
        disk.open()
        self.engine = Engine(disk, post=self._post)
        self.nexus = self.engine.attach(Initiator("kernel", b""))
        self.nexus.attentions.clear()
        self.kernel = fake.FakeKernel()
        self.ring = Ring(self.kernel.memory, self.engine, self.nexus, post=self._post, doorbell=self.kernel.bell)

    def _post(self, fn: Callable[..., object], *args: Any) -> None:
        self.posted.put(lambda: fn(*args))

    def send(self, cdb: bytes, *, data: bytes | None = None, room: int = 0) -> None:
        assert self.kernel.command(cdb, data=data, room=room) is not None

    def read(self) -> None:
        """Read a block."""
        self.send(b"\x28" + bytes(7) + b"\1\0", room=512)
        self.ring.process()

    def watch(self) -> Tally:
        """Look at the counters from now on."""
        tally = Tally()
        self.ring.watch(tally)
        return tally

    def end(self) -> None:
        """Wait until all that was sent is answered."""
        while self.kernel.sent:
            self.posted.get(timeout=60)()

    def finish(self) -> None:
        self.ring.process()
        self.end()
        self.engine.close()
