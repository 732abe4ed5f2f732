"""The session with connections and a clock that are played: what is promised over losses, slow and lying servers."""

from __future__ import annotations

import errno
import logging
import random
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_core import NotReady, StorageTimeout
from tcmu_nbd.codec import BlockSizes, Export
from tcmu_nbd.constants import Cmd, CmdFlag, ExportFlag
from tcmu_nbd.request import Request
from tcmu_nbd.session import Session, State, difference

FLAGS = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA | ExportFlag.SEND_WRITE_ZEROES
EXPORT = Export(1 << 20, FLAGS, BlockSizes(), True, 1)
BLOCK = 512
GONE = ConnectionResetError(errno.ECONNRESET, "gone")
BAD = OSError(errno.EIO, "bad")


class PlayedLink:
    def __init__(self) -> None:
        self.sent: list[Request] = []
        self.closed = False

    def send(self, request: Request) -> None:
        assert not self.closed
        self.sent.append(request)

    def close(self) -> None:
        self.closed = True


class Play:
    """A session, and what happens to it. `connects` counts how often it asked for connections."""

    def __init__(
        self, *, timeout: float = 30.0, reconnect: float = 60.0, replay: int = 1 << 20, up: bool = True
    ) -> None:
        self.now = 1000.0
        self.connects = 0
        self.links: list[PlayedLink] = []
        log = logging.getLogger("test")
        self.session = Session(self._connect, log, timeout=timeout, reconnect=reconnect, replay=replay)
        if up:
            self.connect()

    def _connect(self) -> None:
        self.connects += 1

    def connect(self, export: Export = EXPORT, count: int = 1) -> None:
        self.links = [PlayedLink() for _ in range(count)]
        self.session.connected(list(self.links), export, self.now)

    def lose(self) -> None:
        self.session.lost(GONE, self.now)

    def ask(self, command: Cmd, block: int = 0, *, flags: int = 0, data: bytes = b"") -> Request:
        request = Request(command, block * BLOCK, 0 if command is Cmd.FLUSH else BLOCK, flags, data=data)
        self.session.submit(request, self.now)
        return request

    def write(self, block: int = 0, *, flags: int = 0) -> Request:
        return self.ask(Cmd.WRITE, block, flags=flags, data=b"x" * BLOCK)

    def answer(self, request: Request, error: OSError | None = None) -> None:
        self.session.answered(request, error, self.now)

    def written(self, block: int = 0) -> Request:
        request = self.write(block)
        self.answer(request)
        assert request.future.result(0) is None
        return request

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)

    def sent(self) -> list[Request]:
        """What was sent over the connections there are, once."""
        found = [request for link in self.links for request in link.sent]
        for link in self.links:
            link.sent.clear()
        return found


def failed_with(future: Future[object], kind: type[BaseException], text: str = "") -> bool:
    return future.done() and isinstance(future.exception(), kind) and text in str(future.exception())


# -- losses ---------------------------------------------------------------------------------------------------------


def test_what_was_not_answered_is_asked_again_in_its_order() -> None:
    play = Play()
    asked = [
        play.ask(Cmd.READ),
        play.write(1),
        play.ask(Cmd.WRITE_ZEROES, 2),
        play.ask(Cmd.TRIM, 3),
        play.ask(Cmd.READ, 4),
    ]
    assert play.sent() == asked
    play.lose()
    assert play.connects == 1
    late = play.ask(Cmd.READ, 5)
    play.connect()
    assert play.sent() == [*asked, late]
    for request in [*asked, late]:
        play.answer(request)
        assert request.future.result(0) is None


def test_acknowledged_changes_are_written_again_before_anything_else() -> None:
    play = Play()
    first, second = play.written(0), play.written(1)
    waiting = play.ask(Cmd.READ, 0)
    play.lose()
    flush = play.ask(Cmd.FLUSH)
    play.connect()
    assert play.sent() == [first, second]
    play.answer(first)
    assert play.sent() == []
    play.answer(second)
    assert play.sent() == [waiting, flush]
    play.answer(waiting)
    play.answer(flush)
    assert flush.future.result(0) is None


def test_changes_that_overlap_are_written_again_one_after_the_other() -> None:
    play = Play()
    first, other, second = play.written(0), play.written(1), play.written(0)
    play.lose()
    play.connect()
    assert play.sent() == [first, other]
    play.answer(other)
    assert play.sent() == []
    play.answer(first)
    assert play.sent() == [second]


def test_what_was_flushed_is_not_written_again() -> None:
    play = Play()
    play.written(0)
    flush = play.ask(Cmd.FLUSH)
    late = play.written(1)  # acknowledged after the flush was sent: it may not be covered
    play.answer(flush)
    play.sent()
    play.lose()
    play.connect()
    assert play.sent() == [late]


def test_what_was_written_through_is_not_written_again() -> None:
    play = Play()
    play.answer(play.write(0, flags=int(CmdFlag.FUA)))
    assert play.session.unflushed == 0
    play.lose()
    play.connect()
    assert play.session.state is State.UP


def test_what_was_written_through_on_top_of_an_older_change_is() -> None:
    play = Play()
    older = play.written(0)
    newer = play.write(0, flags=int(CmdFlag.FUA))
    play.answer(newer)
    play.sent()
    play.lose()
    play.connect()
    assert play.sent() == [older]
    play.answer(older)
    assert play.sent() == [newer]


def test_a_change_that_failed_is_not_written_again() -> None:
    play = Play()
    request = play.write()
    play.answer(request, BAD)
    assert request.future.exception(0) is BAD
    play.lose()
    play.connect()
    assert play.session.state is State.UP


def test_a_loss_while_writing_again_begins_it_anew() -> None:
    play = Play()
    first, second = play.written(0), play.written(1)
    play.lose()
    play.connect()
    play.answer(first)
    play.lose()
    play.connect()
    assert play.sent() == [first, second]


def test_when_something_acknowledged_cannot_be_written_again_every_flush_fails() -> None:
    play = Play()
    request = play.written()
    play.lose()
    play.connect()
    play.answer(request, BAD)
    for _ in range(2):
        assert failed_with(play.ask(Cmd.FLUSH).future, OSError, "can't be written again")
    play.answer(read := play.ask(Cmd.READ))
    assert read.future.result(0) is None


def test_without_replay_a_flush_after_a_loss_fails_if_something_was_not_flushed() -> None:
    play = Play(replay=0)
    flush = play.ask(Cmd.FLUSH)
    play.written()
    play.answer(flush)
    play.lose()
    play.connect()
    for _ in range(2):
        assert failed_with(play.ask(Cmd.FLUSH).future, OSError, "replay=0")


def test_without_replay_a_flush_after_a_loss_succeeds_if_all_was_flushed() -> None:
    play = Play(replay=0)
    play.written()
    play.answer(play.ask(Cmd.FLUSH))
    play.lose()
    play.connect()
    play.answer(flush := play.ask(Cmd.FLUSH))
    assert flush.future.result(0) is None


def test_one_lost_connection_ends_all_of_them() -> None:
    play = Play(up=False)
    play.connect(count=3)
    asked = [play.ask(Cmd.READ, block) for block in range(6)]
    assert [len(link.sent) for link in play.links] == [2, 2, 2]
    old = play.links
    play.lose()
    assert all(link.closed for link in old)
    play.connect(count=3)
    assert sorted(map(id, play.sent())) == sorted(map(id, asked))


def test_a_server_that_shuts_down_counts_as_lost() -> None:
    play = Play()
    request = play.ask(Cmd.READ)
    play.answer(request, OSError(errno.ESHUTDOWN, "shutting down"))
    assert play.session.state is State.CONNECTING
    play.connect()
    play.answer(request)
    assert request.future.result(0) is None


# -- connecting -----------------------------------------------------------------------------------------------------


def test_attempts_to_connect_come_later_and_later() -> None:
    play = Play()
    play.lose()
    waits = []
    for _ in range(10):
        before, began = play.connects, play.now
        play.session.failed(GONE, play.now)
        while play.connects == before:
            play.wait(0.01)
        waits.append(play.now - began)
    assert waits[0] < 0.1
    assert waits == sorted(waits)
    assert 4.9 < waits[-1] < 5.1


def test_a_server_that_falls_over_at_once_is_not_asked_without_a_pause() -> None:
    play = Play()
    play.ask(Cmd.READ)
    for _ in range(5):
        play.lose()
        play.connect()
    play.lose()
    assert play.connects < 3


def test_a_request_that_makes_the_server_fall_over_ends() -> None:
    play = Play(reconnect=60)
    poison = play.ask(Cmd.READ)
    for _ in range(100):
        play.lose()
        play.wait(1)
        if poison.future.done():
            break
        play.connect()
        play.answer(play.ask(Cmd.READ, 1))  # others are answered
    assert failed_with(poison.future, NotReady, "60 seconds")


def test_requests_wait_for_a_lost_server_and_then_fail_at_once() -> None:
    play = Play(reconnect=60, timeout=5)
    early = play.ask(Cmd.READ)
    play.lose()
    play.session.failed(GONE, play.now)
    play.wait(59)
    assert not early.future.done()
    play.wait(2)
    assert failed_with(early.future, NotReady)
    assert failed_with(play.ask(Cmd.READ).future, NotReady)
    play.connect()
    play.answer(later := play.ask(Cmd.READ))
    assert later.future.result(0) is None


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (Export(1 << 19, FLAGS, BlockSizes(), True, 1), "524288 bytes now"),
        (Export(1 << 20, FLAGS | ExportFlag.READ_ONLY, BlockSizes(), True, 1), "can't do any more"),
        (Export(1 << 20, FLAGS & ~ExportFlag.SEND_FLUSH, BlockSizes(), True, 1), "can't do any more"),
        (Export(1 << 20, FLAGS, BlockSizes(4096), True, 1), "other block sizes"),
        (Export(1 << 20, FLAGS, BlockSizes(maximum=4096), True, 1), "other block sizes"),
        (Export(1 << 20, FLAGS), "no block status"),
    ],
)
def test_an_export_that_has_become_less_is_not_taken(now: Export, reason: str) -> None:
    assert reason in difference(EXPORT, now)
    play = Play()
    play.lose()
    play.connect(now)
    assert play.links[0].closed
    assert play.session.state is State.CONNECTING


def test_an_export_that_has_become_more_is_taken() -> None:
    assert not difference(EXPORT, Export(1 << 21, FLAGS | ExportFlag.CAN_MULTI_CONN, BlockSizes(), True, 9))
    encrypted = Export(1 << 20, FLAGS, BlockSizes(), True, 1, encrypted=True)
    assert not difference(EXPORT, encrypted)
    assert "encrypted" in difference(encrypted, EXPORT)


# -- time -----------------------------------------------------------------------------------------------------------


def test_a_request_that_is_not_answered_in_time_fails_and_the_others_go_on() -> None:
    play = Play(timeout=30)
    slow = play.ask(Cmd.READ)
    play.wait(20)
    quick = play.ask(Cmd.READ, 1)
    play.answer(quick)
    play.wait(11)
    assert failed_with(slow.future, StorageTimeout, "30 seconds")
    assert play.session.state is State.UP
    play.answer(slow)  # late, and of no use


def test_a_connection_that_is_silent_is_given_up() -> None:
    play = Play(timeout=30)
    early = play.ask(Cmd.READ)
    play.wait(20)
    late = play.ask(Cmd.READ, 1)
    play.wait(11)
    assert failed_with(early.future, StorageTimeout)
    assert play.session.state is State.CONNECTING
    play.connect()
    assert play.sent() == [late]


@pytest.mark.parametrize("command", [Cmd.WRITE, Cmd.READ])
def test_what_touches_a_write_that_may_still_come_waits_for_it(command: Cmd) -> None:
    play = Play(timeout=30)
    slow = play.write(0)
    play.wait(29)
    play.answer(play.ask(Cmd.READ, 1))
    play.wait(2)
    assert slow.future.done()
    play.sent()
    held, free = play.ask(command, 0), play.ask(command, 1)
    assert play.sent() == [free]
    play.answer(slow)
    assert play.sent() == [held]


def test_what_is_written_again_counts_once() -> None:
    play = Play()
    first = play.written(0)
    play.lose()
    play.connect()
    play.answer(first)
    assert play.session.unflushed == 1
    flush = play.ask(Cmd.FLUSH)
    play.answer(flush)
    assert play.session.unflushed == 0


def test_what_was_held_back_goes_on_when_the_connection_is_lost() -> None:
    play = Play(timeout=30)
    play.write(0)
    play.wait(29)
    play.answer(play.ask(Cmd.READ, 1))
    play.wait(2)
    held = play.write(0)
    play.lose()
    play.connect()
    assert play.sent() == [held]


def test_what_was_held_back_has_a_time_limit_too() -> None:
    play = Play(timeout=30)
    play.write(0)
    play.wait(29)
    play.answer(play.ask(Cmd.READ, 1))
    play.wait(2)
    held = play.ask(Cmd.READ, 0)
    play.wait(31)
    assert failed_with(held.future, StorageTimeout)


def test_writing_again_that_is_not_answered_ends_the_connection() -> None:
    play = Play(timeout=30)
    request = play.written()
    play.lose()
    play.connect()
    play.wait(31)
    assert play.session.state is State.CONNECTING
    play.wait(1)
    play.connect()
    assert play.sent() == [request]


def test_a_closed_session_ends_everything() -> None:
    play = Play()
    pending = play.ask(Cmd.READ)
    play.session.close()
    assert failed_with(pending.future, NotReady)
    assert failed_with(play.ask(Cmd.READ).future, NotReady)
    play.connect()
    assert play.links[0].closed


# -- flushes and memory ---------------------------------------------------------------------------------------------


def test_after_a_flush_that_failed_everything_is_written_again_before_the_next_one() -> None:
    play = Play()
    request = play.written()
    flush = play.ask(Cmd.FLUSH)
    play.sent()
    play.answer(flush, BAD)
    assert flush.future.exception(0) is BAD
    assert play.sent() == [request]
    again, read = play.ask(Cmd.FLUSH), play.ask(Cmd.READ, 1)
    assert play.sent() == []
    play.answer(request)
    assert play.sent() == [again, read]
    play.answer(again)
    assert again.future.result(0) is None
    assert play.session.unflushed == 0


def test_a_flush_waits_for_the_one_before_and_that_one_has_failed() -> None:
    play = Play()
    request = play.written()
    bad, good = play.ask(Cmd.FLUSH), play.ask(Cmd.FLUSH)
    assert play.sent() == [request, bad]
    play.answer(bad, BAD)
    assert play.sent() == [request]
    play.answer(request)
    assert play.sent() == [good]
    play.answer(good)
    assert good.future.result(0) is None


def test_one_flush_serves_all_that_came_while_another_was_under_way() -> None:
    play = Play()
    first, *others = [play.ask(Cmd.FLUSH) for _ in range(5)]
    assert play.sent() == [first]
    play.answer(first)
    assert [flush.future.done() for flush in (first, *others)] == [True, False, False, False, False]
    assert play.sent() == others[:1]
    play.answer(others[0])
    assert all(flush.future.result(0) is None for flush in others)


def test_a_flush_that_fails_after_its_time_limit_counts_too() -> None:
    play = Play(timeout=30)
    request = play.written()
    late = play.ask(Cmd.FLUSH)
    play.wait(29)
    play.answer(play.ask(Cmd.READ, 1))
    play.wait(2)
    assert failed_with(late.future, StorageTimeout)
    flush = play.ask(Cmd.FLUSH)
    play.sent()
    play.answer(late, BAD)
    assert play.sent() == [request]
    play.answer(request)
    assert play.sent() == [flush]


def test_flushes_that_wait_for_a_lost_one_end_too() -> None:
    play = Play()
    flushes = [play.ask(Cmd.FLUSH) for _ in range(4)]
    play.answer(flushes[0])
    for _ in range(3):
        play.lose()
        flushes.append(play.ask(Cmd.FLUSH))
        play.connect()
    while todo := play.sent():
        for request in todo:
            play.answer(request)
    assert all(flush.future.result(0) is None for flush in flushes)


def test_a_server_without_flushes_is_believed() -> None:
    play = Play(up=False, replay=0)
    play.connect(Export(1 << 20, ExportFlag.HAS_FLAGS))
    play.written()
    assert play.session.unflushed == 0


def test_without_replay_no_flush_is_good_after_one_that_failed() -> None:
    play = Play(replay=0)
    play.written()
    play.answer(play.ask(Cmd.FLUSH), BAD)
    assert failed_with(play.ask(Cmd.FLUSH).future, OSError)


def test_memory_is_bounded_by_flushes_of_its_own() -> None:
    play = Play(replay=64 << 10)
    changes = [play.write(block) for block in range(200)]
    most = 0
    todo = play.sent()
    while todo:
        most = max(most, play.session._journal.memory)
        for request in todo:
            play.answer(request)
        todo = play.sent()
    assert all(request.future.done() for request in changes)
    assert most <= 64 << 10


def test_a_change_that_has_no_room_beside_a_small_one_waits_for_a_flush() -> None:
    play = Play(replay=1000)
    small = play.written()
    large = Request(Cmd.WRITE, 0, BLOCK, data=b"x" * 2000)
    play.session.submit(large, play.now)
    _, flush = play.sent()
    assert (small.command, flush.command) == (Cmd.WRITE, Cmd.FLUSH)
    play.answer(flush)
    assert play.sent() == [large]


def test_an_own_flush_that_fails_is_tried_again_later() -> None:
    play = Play(replay=8 << 10)
    changes = [play.write(block) for block in range(20)]
    todo = play.sent()
    failures = 0
    for _ in range(200):
        for request in todo:
            if request.command is Cmd.FLUSH and failures < 2:
                failures += 1
                play.answer(request, BAD)
            else:
                play.answer(request)
        play.wait(0.1)
        todo = play.sent()
    assert failures == 2
    assert all(request.future.done() and not request.future.exception() for request in changes)


# -- a simulation: the seed is the schedule ---------------------------------------------------------------------------


class PlayedServer:
    """A server with a volatile cache: it may crash, drop what it can't flush, answer in any order, or never."""

    BLOCKS = 4

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.stable = [b"\0"] * self.BLOCKS
        self.cache: dict[int, bytes] = {}
        self.forgotten: dict[int, bytes] = {}  # could not be written: shown until they are evicted, never written again

    def read(self, block: int) -> bytes:
        return self.cache.get(block, self.forgotten.get(block, self.stable[block]))

    def write(self, block: int, value: bytes, *, fua: bool) -> None:
        self.cache[block] = value
        self.forgotten.pop(block, None)
        if fua or self.chance.random() < 0.2:  # written back on its own account
            self.stable[block] = self.cache.pop(block)

    def flush(self) -> bool:
        if self.cache and self.chance.random() < 0.15:
            block = self.chance.choice(list(self.cache))
            self.forgotten[block] = self.cache.pop(block)
            return False
        for block, value in self.cache.items():
            self.stable[block] = value
        self.cache.clear()
        return True

    def crash(self) -> None:
        self.cache.clear()
        self.forgotten.clear()


class Simulation:
    """An initiator with one write to a block at a time, a session, a server, and everything that can happen."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.server = PlayedServer(chance)
        self.play = Play(timeout=30, reconnect=1000, replay=chance.choice([4096, 1 << 20]))
        self.may = [{b"\0"} for _ in range(PlayedServer.BLOCKS)]  # what each block may hold
        self.busy: set[int] = set()  # blocks with a write under way
        self.count = 0
        self.answers: dict[int, bytes] = {}  # what a read was answered with
        self.broken: list[str] = []  # promises

    def step(self) -> None:
        action = self.chance.choices(
            ("write", "read", "flush", "serve", "crash", "cut", "connect", "refuse", "wait"),
            (30, 15, 8, 60, 2, 2, 15, 3, 6),
        )[0]
        getattr(self, action)()
        assert not self.broken

    def write(self) -> None:
        block = self.chance.randrange(PlayedServer.BLOCKS)
        if block in self.busy:
            return
        self.busy.add(block)
        self.count += 1
        value = self.count.to_bytes(4, "big")
        self.may[block].add(value)
        flags = int(CmdFlag.FUA) if self.chance.random() < 0.2 else 0
        request = Request(Cmd.WRITE, block * BLOCK, BLOCK, flags, data=value)

        def ended(future: Future[object]) -> None:
            self.busy.discard(block)
            if future.exception() is None:
                self.may[block] = {value}

        request.future.add_done_callback(ended)
        self.play.session.submit(request, self.play.now)

    def read(self) -> None:
        block = self.chance.randrange(PlayedServer.BLOCKS)
        request = Request(Cmd.READ, block * BLOCK, BLOCK)
        before = set(self.may[block])
        count = self.count

        def ended(future: Future[object]) -> None:
            if future.exception() is None:
                value = self.answers[id(request)]
                if value not in before | self.may[block] and int.from_bytes(value, "big") <= count:
                    self.broken.append(f"a read of block {block} gave {value!r}, not {before}")

        request.future.add_done_callback(ended)
        self.play.session.submit(request, self.play.now)

    def flush(self) -> None:
        promised = [set(values) for values in self.may]
        count = self.count

        def ended(future: Future[object]) -> None:
            if future.exception() is None:
                for block, values in enumerate(promised):
                    stable = self.server.stable[block]
                    if stable not in values and int.from_bytes(stable, "big") <= count:
                        self.broken.append(f"flushed, but block {block} is {stable!r}, not {values}")

        request = Request(Cmd.FLUSH)
        request.future.add_done_callback(ended)
        self.play.session.submit(request, self.play.now)

    def serve(self) -> None:
        links = [link for link in self.play.links if link.sent and not link.closed]
        if not links:
            return
        sent = self.chance.choice(links).sent
        self._carry_out(sent.pop(self.chance.randrange(len(sent))), answer=True)

    def _carry_out(self, request: Request, *, answer: bool) -> None:
        error = None
        block = request.offset // BLOCK
        if request.command is Cmd.WRITE:
            self.server.write(block, request.data, fua=bool(request.flags))
        elif request.command is Cmd.READ:
            self.answers[id(request)] = self.server.read(block)
        elif not self.server.flush():
            error = BAD
        if answer:
            self.play.answer(request, error)

    def crash(self) -> None:
        self._drop()
        self.server.crash()

    def cut(self) -> None:
        self._drop()

    def _drop(self) -> None:
        if self.play.session.state is State.CONNECTING:
            return
        for link in self.play.links:
            for request in link.sent:
                if self.chance.random() < 0.3:  # done, but the answer is lost
                    self._carry_out(request, answer=False)
        self.play.lose()

    def connect(self) -> None:
        if self.play.session.state is State.CONNECTING:
            self.play.connect(count=self.chance.choice([1, 2]))

    def refuse(self) -> None:
        if self.play.session.state is State.CONNECTING:
            self.play.session.failed(GONE, self.play.now)

    def wait(self) -> None:
        self.play.wait(self.chance.choice([0.1, 1, 20]))

    def settle(self) -> None:
        """Let everything end well; what was promised is on stable storage then."""
        for _ in range(1000):
            self.connect()
            self.serve()
            self.play.wait(0.05)
        assert not self.busy
        for _ in range(20):
            final = Request(Cmd.FLUSH)
            self.play.session.submit(final, self.play.now)
            for _ in range(100):
                self.serve()
            if final.future.exception(0) is None:
                break
        assert not self.broken
        self.crash()
        for block, values in enumerate(self.may):
            assert self.server.stable[block] in values


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 40))
def test_no_schedule_loses_what_was_flushed_or_shows_what_is_old(seed: int) -> None:
    simulation = Simulation(seed)
    for _ in range(200):
        simulation.step()
    simulation.settle()


@pytest.mark.soak
def test_no_schedule_of_many_does() -> None:
    for seed in range(2000):
        simulation = Simulation(seed)
        for _ in range(300):
            simulation.step()
        simulation.settle()
