"""Engines: what was asked for is done to its end, on io_uring and on threads alike, and the loop hears of it."""

import errno
import mmap
import os
import resource
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tcmu_core.loop import Loop
from tcmu_core.posix import (
    PAGE,
    Alignment,
    AsyncFile,
    Completion,
    Stable,
    direct_alignment,
    engine,
    read_to,
    uring,
    write_full,
)
from tcmu_core.posix.engines import RingEngine, ThreadEngine
from tests.waiting import drop_cache

DATA = bytes(range(1, 251)) * 400  # 100,000 bytes
LONG = 60  # seconds, after which something is taken to hang


class Bench:
    """An engine on a loop of its own, on this thread."""

    def __init__(self, kind):
        self.loop = Loop()
        self.pool = ThreadPoolExecutor(4)
        self.kind = kind
        self.engine = self.make()

    def make(self, **options):
        if self.kind == "threads":
            return ThreadEngine(self.pool.submit)
        return RingEngine(self.loop, self.pool.submit, **options)

    def end(self, *futures):
        """Run the loop until all of them have ended."""
        guard = self.loop.call_later(LONG, self.loop.stop)
        left = len(futures)

        def ended(_done):
            nonlocal left
            left -= 1
            if not left:
                self.loop.stop()

        for future in futures:
            future.add_done_callback(ended)
        self.loop.run()
        guard.cancel()
        assert all(future.done() for future in futures)

    def run(self, start):
        """Call `start()` on the loop, and return its Future once that has ended."""
        future = start()
        self.end(future)
        return future

    def close(self):
        self.engine.close()
        self.pool.shutdown()
        self.loop.close()


@pytest.fixture(params=["ring", "threads"])
def bench(request):
    bench = Bench(request.param)
    yield bench
    bench.close()


@pytest.fixture
def ring():
    bench = Bench("ring")
    yield bench
    bench.close()


@pytest.fixture
def fd():
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        yield file.fileno()


def room(*sizes):
    return [memoryview(bytearray(b"?" * size)) for size in sizes]


def test_what_is_written_is_read_back(bench, fd):
    for sizes in ([100_000], [0], [1, 0, 2, 3], [4096] * 3, [7] * 3000):
        buffers = room(*sizes)
        for number, buffer in enumerate(buffers):
            buffer[:] = bytes([number % 251]) * len(buffer)
        assert bench.run(lambda buffers=buffers: bench.engine.write(fd, 11, buffers)).result() is None
        again = room(*sizes)
        assert bench.run(lambda again=again: bench.engine.read(fd, 11, again)).result() is None
        assert again == buffers
    assert bench.run(lambda: bench.engine.sync(fd)).result() is None


def test_what_lies_behind_the_end_reads_as_zeros(bench, fd):
    write_full(fd, 0, [DATA[:10]])
    buffers = room(6, 6, 10)
    bench.run(lambda: bench.engine.read(fd, 0, buffers))
    assert b"".join(buffers) == DATA[:10] + bytes(12)


def test_a_file_that_is_truncated_while_it_is_read_fails_nothing(bench, fd):
    write_full(fd, 0, [DATA])
    buffers = room(*[4096] * 24)
    future = bench.engine.read(fd, 0, buffers)
    os.ftruncate(fd, 5000)
    bench.end(future)
    assert future.result() is None
    assert b"".join(buffers)[:5000] == DATA[:5000]


def test_many_operations_are_in_flight_together(bench, fd):
    write_full(fd, 0, [DATA])
    reads = [(at, room(50)) for at in range(0, 90_000, 90)]
    bench.end(*[bench.engine.read(fd, at, buffers) for at, buffers in reads])
    for at, buffers in reads:
        assert buffers[0] == DATA[at : at + 50]


def test_read_only_memory_is_written(bench, fd):
    bench.run(lambda: bench.engine.write(fd, 3, [memoryview(DATA[:5000]), memoryview(b"end")]))
    assert read_to(fd, 3, 6000) == DATA[:5000] + b"end"


@pytest.mark.parametrize("shift", [0, 1])
def test_direct_io_suits_the_file_whatever_the_memory(bench, shift):
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        try:
            alignment = Alignment(*(direct_alignment(fd) or (PAGE, PAGE)))
            memory = memoryview(mmap.mmap(-1, 4 * 4096))
            pieces = [memory[shift : shift + 4096], memory[4096 + shift : 8192 + shift]]
            pieces[0][:] = DATA[:4096]
            pieces[1][:] = DATA[4096:8192]
            bench.run(lambda: bench.engine.write(fd, 4096, pieces, alignment))
            again = room(1000, 7192)
            bench.run(lambda: bench.engine.read(fd, 4096, again, alignment))
            assert b"".join(again) == DATA[:8192]
            os.truncate(file.name, 4096 + 5000)
            bench.run(lambda: bench.engine.read(fd, 4096, again, alignment))
            assert b"".join(again) == DATA[:5000] + bytes(3192)
        finally:
            os.close(fd)


def test_direct_operations_in_flight_together_share_no_memory(bench):
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        try:
            alignment = Alignment(*(direct_alignment(fd) or (PAGE, PAGE)))
            memory = memoryview(mmap.mmap(-1, 65 * 4096))[1:]  # suits no direct I/O
            blocks = [memory[at : at + 4096] for at in range(0, 64 * 4096, 4096)]
            for turn in range(2):
                for number, block in enumerate(blocks):
                    block[:] = bytes([turn + number]) * 4096
                bench.end(*[bench.engine.write(fd, at * 4096, [block], alignment) for at, block in enumerate(blocks)])
                memory[:] = bytes(len(memory))
                bench.end(*[bench.engine.read(fd, at * 4096, [block], alignment) for at, block in enumerate(blocks)])
                for number, block in enumerate(blocks):
                    assert block == bytes([turn + number]) * 4096
        finally:
            os.close(fd)


def test_errors_have_their_errno(bench, fd):
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        reader = os.open(file.name, os.O_RDONLY)
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            assert bench.run(lambda: bench.engine.write(reader, 0, room(10))).exception().errno == errno.EBADF
            assert bench.run(lambda: bench.engine.write(full, 0, room(10))).exception().errno == errno.ENOSPC
            assert bench.run(lambda: bench.engine.sync(full)).exception().errno == errno.EINVAL
            assert bench.run(lambda: bench.engine.allocate(fd, 0, 0, 0)).exception().errno == errno.EINVAL
        finally:
            os.close(reader)
            os.close(full)


def test_a_file_that_was_opened_to_be_non_blocking_is_waited_for_all_the_same(bench, fd):
    write_full(fd, 0, [DATA])
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NONBLOCK)
    try:
        for _ in range(5):
            drop_cache(fd)
            buffers = room(50_000, 50_000)
            assert bench.run(lambda buffers=buffers: bench.engine.read(again, 0, buffers)).result() is None
            assert b"".join(buffers) == DATA
    finally:
        os.close(again)


def test_space_is_allocated_and_what_is_advised_is_read_ahead(bench, fd):
    bench.run(lambda: bench.engine.allocate(fd, 0, 0, 1 << 20))
    assert os.fstat(fd).st_size == 1 << 20
    write_full(fd, 0, [DATA])
    drop_cache(fd)
    bench.engine.advise(fd, 0, 65536)
    until = time.monotonic() + LONG
    while True:
        bench.run(lambda: bench.engine.sync(fd))
        try:
            assert os.preadv(fd, [bytearray(4096)], 32768, os.RWF_NOWAIT) == 4096
            break
        except BlockingIOError:
            assert time.monotonic() < until


# -- the ring ---------------------------------------------------------------------------------------------------------


def test_short_transfers_are_resumed(ring, fd, monkeypatch):
    """A kernel that moves 1,000 bytes at most at a time."""
    push = uring.Ring.push

    def push_less(self, op, fd, offset, at, length, flags, number):
        push(self, op, fd, offset, at, min(length, 1000), flags, number)

    monkeypatch.setattr(uring.Ring, "push", push_less)
    buffers = [memoryview(bytearray(DATA[:10_001]))]
    ring.run(lambda: ring.engine.write(fd, 0, buffers))
    again = room(10_001)
    ring.run(lambda: ring.engine.read(fd, 0, again))
    assert again[0] == DATA[:10_001]


def test_a_disk_that_fills_up_fails_what_does_not_fit(ring):
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        try:
            future = ring.run(lambda: ring.engine.write(file.fileno(), 0, room(4096, 4096, 4096)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert future.exception().errno == errno.EFBIG
        assert os.fstat(file.fileno()).st_size == 8192


def test_more_operations_than_the_rings_hold_wait_for_their_turn(ring, fd):
    small = ring.make(entries=4)
    try:
        write_full(fd, 0, [DATA])
        reads = [(at, room(50)) for at in range(0, 90_000, 90)]
        futures = [small.read(fd, at, buffers) for at, buffers in reads]
        assert small.in_flight() <= 8
        ring.end(*futures)
        assert all(buffers[0] == DATA[at : at + 50] for at, buffers in reads)
        assert small.in_flight() == 0
    finally:
        small.close()


def test_all_that_one_turn_of_the_loop_brings_is_sent_by_one_call(ring, fd, monkeypatch):
    calls = []
    submit = uring.Ring.submit
    monkeypatch.setattr(uring.Ring, "submit", lambda self, wait=0: (calls.append(self.unsubmitted), submit(self, wait)))
    futures = []
    ring.loop.post(lambda: futures.extend(ring.engine.read(fd, 0, room(10)) for _ in range(20)))
    ring.loop.call_later(0.05, ring.loop.stop)
    ring.loop.run()
    ring.end(*futures)
    assert calls[0] == 20


def test_an_operation_that_is_cancelled_ends_when_it_has_ended(ring):
    reader, writer = os.pipe()
    try:
        future = ring.engine.read(reader, 0xFFFF_FFFF_FFFF_FFFF, room(10))  # nothing comes through this pipe
        ring.loop.call_later(0.05, lambda: ring.engine.cancel(future))
        ring.end(future)
        assert future.exception().errno == errno.ECANCELED
        assert not future.cancelled()
    finally:
        os.close(reader)
        os.close(writer)


def test_one_that_waits_for_room_is_cancelled_at_once(ring, fd):
    small = ring.make(entries=1)
    try:
        futures = [small.read(fd, 0, room(10)) for _ in range(5)]
        small.cancel(futures[-1])
        assert futures[-1].exception(0).errno == errno.ECANCELED
        ring.end(*futures[:-1])
    finally:
        small.close()


def test_who_waits_on_the_loops_own_thread_sees_the_end(bench, fd, monkeypatch):
    """The loop has stopped, and the disk is flushed a last time."""
    write_full(fd, 0, [DATA])
    buffers = room(100)
    assert bench.engine.read(fd, 0, buffers).result(LONG) is None
    assert buffers[0] == DATA[:100]
    file = AsyncFile(bench.engine, bench.pool.submit, Stable(fd, "/disk"))
    writes = [file.write(at, room(10)) for at in range(0, 1000, 10)]
    assert file.flush().result(LONG) is None
    assert all(future.done() for future in writes)
    assert bench.engine.read(-1, 0, room(10)).exception(LONG).errno == errno.EBADF

    def unsupported(*arguments):
        future = Future()
        future.set_exception(OSError(errno.EOPNOTSUPP, "Operation not supported"))
        return future

    monkeypatch.setattr(bench.engine, "allocate", unsupported)
    assert file.discard(0, 50_000).result(LONG) is None
    assert read_to(fd, 0, 50_000) == bytes(50_000)


def test_close_waits_for_what_is_in_flight(ring, fd):
    write_full(fd, 0, [DATA])
    other = ring.make()
    reads = [(at, room(50)) for at in range(0, 90_000, 90)]
    futures = [other.read(fd, at, buffers) for at, buffers in reads]
    other.close()
    other.close()
    assert all(future.done() for future in futures)
    assert all(buffers[0] == DATA[at : at + 50] for at, buffers in reads)


def test_a_child_of_a_fork_uses_threads(ring, fd):
    write_full(fd, 0, [DATA])
    child = os.fork()
    if not child:
        try:
            with ThreadPoolExecutor(1) as pool:
                ring.engine._threads = ThreadEngine(pool.submit)
                buffers = room(100)
                ring.engine.read(fd, 0, buffers).result(LONG)
                ring.engine.sync(fd).result(LONG)
                os._exit(0 if buffers[0] == DATA[:100] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    buffers = room(100)
    ring.run(lambda: ring.engine.read(fd, 0, buffers))
    assert buffers[0] == DATA[:100]


def test_no_descriptor_is_left(fd):
    before = len(os.listdir("/proc/self/fd"))
    bench = Bench("ring")
    bench.run(lambda: bench.engine.read(fd, 0, room(10)))
    bench.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- which one it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.ENOMEM])
def test_where_the_kernel_refuses_it_there_are_threads_and_one_line(bench, monkeypatch, caplog, code):
    def refuse(entries):
        raise OSError(code, os.strerror(code))

    caplog.set_level("INFO")
    monkeypatch.setattr("tcmu_core.posix.engines.Ring", refuse)
    assert isinstance(engine(bench.loop, bench.pool.submit), ThreadEngine)
    assert len(caplog.messages) == 1
    assert "no io_uring" in caplog.text


def test_without_a_loop_there_are_threads_without_a_word(bench, caplog):
    caplog.set_level("INFO")
    assert isinstance(engine(None, bench.pool.submit), ThreadEngine)
    assert not caplog.messages


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_what_is_to_be_called_soon_comes_behind_all_that_was_posted():
    loop, seen = Loop(), []
    loop.post(lambda: loop.call_soon(lambda: seen.append("soon")))
    loop.post(lambda: seen.append("posted"))
    loop.post(loop.stop)
    loop.run()
    assert seen in (["posted", "soon"], ["posted"])
    loop.close()


# -- flushes of one file ----------------------------------------------------------------------------------------------


class ByHand:
    """An engine whose operations end when a test says so."""

    def __init__(self):
        self.begun = []

    def _begin(self, what):
        future = Future()
        self.begun.append((what, future))
        return future

    def write(self, fd, offset, buffers, alignment=None):
        return self._begin(f"write {offset}")

    def read(self, fd, offset, buffers, alignment=None):
        return self._begin(f"read {offset}")

    def advise(self, fd, offset, length):
        self._begin(f"advise {offset} {length}")

    def sync(self, fd):
        return self._begin("sync")

    def completion(self):
        return Completion()

    def home(self, fn):
        fn()

    def names(self):
        return [name for name, _ in self.begun]

    def end(self, index, error=None):
        future = self.begun[index][1]
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


@pytest.fixture
def by_hand(fd):
    engine = ByHand()
    return engine, AsyncFile(engine, None, Stable(fd, "/disk"))


def test_a_flush_waits_for_the_writes_before_it_and_for_no_later_ones(by_hand):
    engine, file = by_hand
    file.write(0, room(1))
    file.write(1, room(1))
    flush = file.flush()
    file.write(2, room(1))
    assert engine.names() == ["write 0", "write 1", "write 2"]
    engine.end(1)
    assert "sync" not in engine.names()
    engine.end(0)
    assert engine.names()[-1] == "sync"
    assert not flush.done()
    engine.end(3)
    assert flush.result(0) is None


def test_flushes_that_wait_share_the_next_one(by_hand):
    engine, file = by_hand
    first = file.flush()
    others = [file.flush() for _ in range(5)]
    assert engine.names() == ["sync"]
    engine.end(0)
    assert first.done()
    assert not any(future.done() for future in others), "they may have come behind what that one covered"
    assert engine.names() == ["sync", "sync"]
    engine.end(1)
    assert all(future.result(0) is None for future in others)
    assert engine.names() == ["sync", "sync"]


def test_a_flush_is_not_put_off_by_writes_that_go_on(by_hand):
    engine, file = by_hand
    file.write(0, room(1))
    first = file.flush()
    file.write(1, room(1))
    second = file.flush()
    engine.end(0)
    engine.end(2)
    assert first.done()
    assert not second.done()
    engine.end(1)
    engine.end(3)
    assert second.done()


def test_a_failed_flush_fails_all_that_shared_it_and_all_that_come(by_hand, caplog):
    engine, file = by_hand
    file.flush()
    shared = [file.flush() for _ in range(3)]
    engine.end(0)
    engine.end(1, OSError(errno.EIO, "Input/output error"))
    assert all(future.exception(0).errno == errno.EIO for future in shared)
    later = file.flush()
    assert "an earlier flush failed" in str(later.exception(0))
    assert len(engine.begun) == 2
    assert caplog.text.count("a flush failed") == 1


def test_a_sequential_reader_is_read_ahead_for_further_each_time(by_hand):
    engine, file = by_hand
    for at in (0, 100, 200 + (256 << 10)):
        file.read(at, room(100))
    file.read(5, room(100))
    file.read(50, room(100))
    assert engine.names() == [
        "read 0",
        f"advise 200 {256 << 10}",
        "read 100",
        f"advise {300 + (256 << 10)} {512 << 10}",
        f"read {200 + (256 << 10)}",
        "read 5",
        "read 50",
    ]


@pytest.mark.parametrize("what", ["discard", "zero"])
@pytest.mark.parametrize("able", [True, False])
def test_ranges_become_zeros_in_flight_before_a_flush(bench, fd, monkeypatch, what, able):
    write_full(fd, 0, [DATA])
    if not able:
        with_errno = OSError(errno.EOPNOTSUPP, "Operation not supported")

        def unsupported(*arguments):
            future = Future()
            future.set_exception(with_errno)
            return future

        monkeypatch.setattr(bench.engine, "allocate", unsupported)
    file = AsyncFile(bench.engine, bench.pool.submit, Stable(fd, "/disk"))
    futures = [getattr(file, what)(100, 70_000), file.flush()]
    bench.end(*futures)
    assert [future.result(0) for future in futures] == [None, None]
    assert read_to(fd, 0, len(DATA)) == DATA[:100] + bytes(70_000) + DATA[70_100:]
