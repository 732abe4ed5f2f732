"""A server that is killed and started again under load: no error, and nothing that was acknowledged is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tcmu_core import NotReady
from tcmu_core.loop import Loop
from tcmu_core.testing import open_device
from tcmu_nbd import NbdHandler

MIB = 1 << 20
SIZE = 4 * MIB
BLOCK = 4096
BLOCKS = SIZE // BLOCK
PATIENCE = 30


class Load:
    """Writes, discards and zeroes of blocks, many in flight, each block once at a time; reads and flushes between."""

    def __init__(self, disk, seed: int) -> None:
        self.disk = disk
        self.chance = random.Random(seed)
        self.model = bytearray(SIZE)
        self.count = 0

    def round(self, flush: bool = True) -> None:
        """Touch some blocks, all in flight together, then check what they hold."""
        blocks = self.chance.sample(range(BLOCKS), 24)
        pending = []
        for block in blocks:
            at = block * BLOCK
            if self.chance.random() < 0.8:
                data = self.chance.randbytes(BLOCK)
                self.model[at : at + BLOCK] = data
                pending.append(self.disk.hook("write")(at, [memoryview(bytearray(data))]))
            else:
                self.model[at : at + BLOCK] = bytes(BLOCK)
                hook = self.disk.hook(self.chance.choice(("discard", "write_zeroes")))
                pending.append(hook(at, BLOCK))
        for future in pending:
            self.disk.finish(future)
        if flush:
            self.disk.flush()
        for block in blocks[:4]:
            at = block * BLOCK
            assert self.disk.read(at, BLOCK) == self.model[at : at + BLOCK]
        self.count += 1

    def until(self, ended: threading.Event) -> None:
        """Go on until it is enough."""
        while not ended.is_set():
            self.round(flush=self.count % 3 == 0)


def torture(server, options: str, content, *, times: int, reactor: Loop | None = None) -> None:
    """Load a disk while its server is killed and started; what was flushed in the end is what `content()` finds."""
    chance = random.Random(1)
    ended = threading.Event()

    def kill_and_start() -> None:
        try:
            for _ in range(times):
                time.sleep(chance.uniform(0.02, 0.15))
                server.kill(chance.choice([signal.SIGKILL, signal.SIGTERM]))
                time.sleep(chance.uniform(0, 0.1))
                server.start()
        finally:
            ended.set()

    where = open_device(NbdHandler, f"{server.cfgstring}{options}", reactor=reactor)
    with where as disk, ThreadPoolExecutor(1) as pool:
        load = Load(disk, seed=1)
        killing = pool.submit(kill_and_start)
        load.until(ended)
        killing.result(PATIENCE)
        load.round(flush=False)
        assert disk.read(0, SIZE) == load.model
        disk.flush()
        server.kill()  # what was flushed is on the disk, and not in the server
        assert content() == load.model
        server.start()
        assert disk.read(0, SIZE) == load.model


def raw(path: Path):
    return lambda: path.read_bytes()[:SIZE]


@pytest.fixture
def small_image(fast_dir: Path) -> Path:
    path = fast_dir / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture(params=["on a thread", "on a loop"])
def reactor(request):
    """Who carries the connections."""
    if request.param == "on a thread":
        yield None
    else:
        with closing(Loop()) as loop:
            yield loop


@pytest.mark.parametrize("options", ["", ";connections=3", ";sync=1", ";replay=128K"])
def test_nbdkit_on_a_file(nbdkit, small_image, options, reactor):
    torture(nbdkit("file", small_image), options, raw(small_image), times=6, reactor=reactor)


def test_nbdkit_over_tcp(nbdkit, small_image, free_port):
    torture(nbdkit("file", small_image, port=free_port), "", raw(small_image), times=6)


def qcow2(directory: Path) -> tuple[Path, object]:
    path = directory / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)

    def content() -> bytes:
        copy = directory / "copy.img"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, copy], check=True)
        return copy.read_bytes()

    return path, content


def test_a_server_that_keeps_much_in_memory(qemu_nbd, fast_dir):
    """qemu-nbd keeps the tables of a qcow2 image in its memory until a flush: what it acknowledged is gone with it."""
    path, content = qcow2(fast_dir)
    torture(qemu_nbd("-f", "qcow2", "--discard=unmap", path), "", content, times=6)


@pytest.fixture
def forgetful(nbdkit, small_image, fast_dir):
    """A server whose cache is lost when it is killed, although it has acknowledged what is in it."""
    return nbdkit("--filter=cache", "file", small_image, "cache=writeback")


def test_what_was_acknowledged_and_not_flushed_survives_the_server(forgetful, small_image):
    with open_device(NbdHandler, forgetful.cfgstring) as disk:
        disk.write(0, b"a" * BLOCK)
        disk.flush()
        disk.write(0, b"b" * BLOCK)
        disk.write(BLOCK, b"c" * BLOCK)
        assert small_image.read_bytes()[: 2 * BLOCK] == b"a" * BLOCK + bytes(BLOCK)
        forgetful.kill()
        forgetful.start()
        assert disk.read(0, 2 * BLOCK) == b"b" * BLOCK + b"c" * BLOCK
        disk.flush()
        assert small_image.read_bytes()[: 2 * BLOCK] == b"b" * BLOCK + b"c" * BLOCK


def test_without_replay_the_flush_after_it_fails_and_all_that_follow(forgetful, small_image):
    with ExitStack() as stack:
        disk = stack.enter_context(open_device(NbdHandler, f"{forgetful.cfgstring};replay=0"))
        disk.write(0, b"b" * BLOCK)
        forgetful.kill()
        forgetful.start()
        for _ in range(2):
            with pytest.raises(OSError, match="replay=0"):
                disk.flush()
        assert disk.read(0, BLOCK) == bytes(BLOCK)
        with pytest.raises(OSError, match="replay=0"):  # closing the disk flushes too, and says so
            stack.close()


def test_a_forgetful_server_under_load(forgetful, small_image):
    torture(forgetful, "", raw(small_image), times=6)


def test_a_server_that_stays_away_is_not_ready_until_it_is_back(nbdkit, small_image):
    server = nbdkit("file", small_image)
    with open_device(NbdHandler, f"{server.cfgstring};reconnect=0.3") as disk:
        disk.write(0, b"x" * BLOCK)
        server.kill()
        with pytest.raises(NotReady):
            disk.read(0, BLOCK)
        with pytest.raises(NotReady):
            disk.flush()
        server.start()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert disk.read(0, BLOCK) == b"x" * BLOCK
            except NotReady:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                break
        disk.flush()


def test_a_server_that_comes_back_smaller_is_not_taken(nbdkit, small_image):
    server = nbdkit("file", small_image)
    with open_device(NbdHandler, f"{server.cfgstring};reconnect=0.5") as disk:
        disk.flush()
        server.kill()
        small_image.write_bytes(bytes(SIZE // 2))
        server.start()
        with pytest.raises(NotReady):
            disk.read(0, BLOCK)


@pytest.mark.soak
@pytest.mark.parametrize("options", ["", ";connections=4;replay=256K"])
def test_a_long_time_of_it(forgetful, small_image, options, reactor):
    torture(forgetful, options, raw(small_image), times=60, reactor=reactor)
