"""QEMU's tools as the judge, and images under a file layer that can lose power."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tcmu_qcow import opening
from tcmu_qcow.files import HostFile
from tcmu_qcow.opening import Image, OpenOptions, open_image


class Qemu:
    """qemu-img and qemu-io, which must succeed unless asked otherwise."""

    def run(self, *command: str | Path, fails: bool = False) -> str:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{' '.join(map(str, command))}: exit {done.returncode}\n{output}"
        return output

    def img(self, *arguments: str | Path, fails: bool = False) -> str:
        return self.run("qemu-img", *arguments, fails=fails)

    def create(self, path: Path, size: int | str, *options: str, backing: Path | None = None, fmt: str = "raw") -> Path:
        extra = ["-o", ",".join(options)] if options else []
        if backing is not None:
            extra += ["-b", str(backing), "-F", fmt]
        self.img("create", "-q", "-f", "qcow2", *extra, path, str(size))
        return path

    def io(self, path: Path, *commands: str, fmt: str = "qcow2", fails: bool = False) -> str:
        flags = [flag for command in commands for flag in ("-c", command)]
        output = self.run("qemu-io", "-f", fmt, *flags, path, fails=fails)
        if not fails:
            assert "failed" not in output.lower(), output
        return output

    def check(self, path: Path) -> None:
        """No error and no leak."""
        self.img("check", "-q", "-f", "qcow2", path)

    def corruptions(self, path: Path) -> str:
        """What is wrong beyond leaks; empty when nothing is."""
        done = subprocess.run(
            ["qemu-img", "check", "-f", "qcow2", str(path)], capture_output=True, text=True, timeout=120, check=False
        )
        return "" if done.returncode in (0, 3) else done.stdout + done.stderr  # 3: leaks only

    def same(self, path: Path, content: bytes | bytearray, fmt: str = "qcow2") -> None:
        """The image holds just this."""
        with tempfile.NamedTemporaryFile(dir=path.parent) as raw:
            raw.write(content)
            raw.flush()
            self.img("compare", "-f", fmt, "-F", "raw", path, raw.name)


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    return Qemu()


@contextmanager
def opened(path: Path | str, **options: object) -> Iterator[Image]:
    image = open_image(str(path), OpenOptions(**options))  # type: ignore[arg-type]  # a test knows what it gives
    try:
        yield image
    finally:
        for layer in list(image.layers()):
            layer.close()


@pytest.fixture(scope="session")
def opened_image() -> Callable[..., object]:
    """open_image as a context manager that closes the whole chain."""
    return opened


class Disk:
    """Bytes in and out of an image, cut into buffers as an initiator might."""

    def __init__(self, image: Image) -> None:
        self.image = image

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        length = self.image.size - offset if length is None else length
        data = bytearray(length)
        self.image.read(offset, [memoryview(data)])
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        cut = len(data) // 3
        self.image.write(offset, [memoryview(data)[:cut], memoryview(data)[cut:]])


@pytest.fixture(scope="session")
def disk() -> type[Disk]:
    return Disk


class LosingPower(HostFile):
    """A file that remembers every change: any moment of its life can be rebuilt as a power cut would leave it."""

    log: list[tuple[str, int, bytes | int]]

    def pwritev(self, buffers: Sequence[memoryview | bytearray | bytes], offset: int) -> None:
        self.log.append(("write", offset, b"".join(buffers)))
        super().pwritev(buffers, offset)

    def flush(self) -> None:
        super().flush()
        self.log.append(("flush", 0, 0))

    def truncate(self, size: int) -> None:
        self.log.append(("truncate", size, 0))
        super().truncate(size)

    def punch(self, offset: int, length: int) -> bool:
        done = super().punch(offset, length)
        if done:
            self.log.append(("punch", offset, length))
        return done


def after_power_cut(before: bytes, log: list[tuple[str, int, bytes | int]], moment: int, how: str, seed: int) -> bytes:
    """The file's content if power went after `moment` operations.

    What was flushed is there. Of the rest everything is there ("all"), nothing ("none"), or some sectors of some
    operations, in another order ("some").
    """
    content = bytearray(before)
    flushed = max((at + 1 for at in range(moment) if log[at][0] == "flush"), default=0)
    for operation in log[:flushed]:
        _apply(content, operation)
    rest = [operation for operation in log[flushed:moment] if operation[0] != "flush"]
    if how == "all":
        for operation in rest:
            _apply(content, operation)
    elif how == "some":
        chance = random.Random(seed)
        pieces = [piece for operation in rest for piece in _torn(operation) if chance.random() < 0.5]
        # Two writes of one sector end with the later one or the earlier one, as the cache happened to have it.
        chance.shuffle(pieces)
        for piece in pieces:
            _apply(content, piece)
    return bytes(content)


def _torn(operation: tuple[str, int, bytes | int]) -> list[tuple[str, int, bytes | int]]:
    kind, offset, data = operation
    if kind != "write" or not isinstance(data, bytes):
        return [operation]
    cuts = [0, *range(512 - offset % 512, len(data), 512), len(data)]
    return [("write", offset + a, data[a:b]) for a, b in itertools.pairwise(cuts) if b > a]


def _apply(content: bytearray, operation: tuple[str, int, bytes | int]) -> None:
    kind, offset, data = operation
    if kind == "write" and isinstance(data, bytes):
        if len(content) < offset + len(data):
            content.extend(bytes(offset + len(data) - len(content)))
        content[offset : offset + len(data)] = data
    elif kind == "truncate":
        del content[offset:]
        content.extend(bytes(offset - len(content)))
    elif kind == "punch" and isinstance(data, int):
        end = min(offset + data, len(content))
        if end > offset:
            content[offset:end] = bytes(end - offset)


class PowerCuts:
    """Opens images so that their changes are remembered, and rebuilds them as they were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.logs: dict[str, list[tuple[str, int, bytes | int]]] = {}

    def watch(self, *, holes: bool = True) -> None:
        """From now on; without `holes`, on a file system that has none."""
        cuts = self

        class Watched(LosingPower):
            def __init__(self, fd: int, path: str, *, read_only: bool) -> None:
                super().__init__(fd, path, read_only=read_only)
                self.log = cuts.logs.setdefault(path, [])
                self._can_punch = holes

        self._monkeypatch.setattr(opening, "HostFile", Watched)

    def unwatch(self) -> None:
        self._monkeypatch.undo()

    def state(self, before: bytes, path: Path, moment: int, how: str, seed: int) -> bytes:
        return after_power_cut(before, self.logs[str(path)], moment, how, seed)


@pytest.fixture
def power_cuts(monkeypatch: pytest.MonkeyPatch) -> PowerCuts:
    return PowerCuts(monkeypatch)


@pytest.fixture(scope="session")
def memory() -> str | None:
    """Where files are in memory, for tests that wait for the disk often; None where that is nowhere."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def fast_dir(memory: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tcmu-test-", dir=memory) as name:
        yield Path(name)


@pytest.fixture
def sparse_dir() -> Iterator[Path]:
    """A directory whose file system knows holes and tells how much of a file it stores."""
    with tempfile.TemporaryDirectory(
        prefix="tcmu-test-", dir="/var/tmp" if os.path.isdir("/var/tmp") else None
    ) as name:
        yield Path(name)
