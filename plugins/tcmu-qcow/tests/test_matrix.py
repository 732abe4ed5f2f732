"""Every kind of image that qemu-img makes: written by us, read by QEMU, and the other way round, taking turns."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BLOCK = 512
STEPS = ("write", "write", "write", "read", "discard", "zeroes", "flush", "reopen", "qemu")


@dataclass(frozen=True)
class Kind:
    """How an image is made."""

    name: str
    options: tuple[str, ...]
    cluster: int
    backing: str = ""  # "", "raw", "qcow2", "short", "long"
    start: str = ""  # "", "zlib", "zstd": made by qemu-img convert from data
    snapshots: bool = False

    @property
    def size(self) -> int:
        return max(24 * self.cluster, 48 << 10) + 7 * BLOCK if self.cluster < 1 << 20 else (5 << 20) + 7 * BLOCK


def kind(name: str, cluster: int, *options: str, **more: object) -> Kind:
    return Kind(name, (f"cluster_size={cluster}", *options), cluster, **more)  # type: ignore[arg-type]  # see Kind


V2, V3, EXT, LAZY = "compat=0.10", "compat=1.1", "extended_l2=on", "lazy_refcounts=on"
DATA, RAW = "data_file=%d/data.raw", "data_file_raw=on"
KINDS = [
    *(kind(f"v2-{1 << bits}", 1 << bits, V2) for bits in (9, 12, 16, 21)),
    *(kind(f"v3-{1 << bits}", 1 << bits, V3) for bits in (9, 10, 11, 12, 13, 14, 16, 18, 21)),
    *(kind(f"refcount-{1 << n}", 1 << 9, V3, f"refcount_bits={1 << n}") for n in range(7)),
    kind("refcount-1-64k", 1 << 16, V3, "refcount_bits=1"),
    kind("refcount-64-2M", 1 << 21, V3, "refcount_bits=64"),
    *(kind(f"extended-{1 << bits}", 1 << bits, V3, EXT) for bits in (14, 16, 21)),
    kind("lazy-512", 1 << 9, V3, LAZY),
    kind("lazy-64k", 1 << 16, V3, LAZY),
    kind("v2-backing", 1 << 12, V2, backing="raw"),
    kind("v3-backing", 1 << 12, V3, backing="qcow2"),
    kind("backing-2M", 1 << 21, V3, backing="raw"),
    kind("backing-shorter", 1 << 12, V3, backing="short"),
    kind("backing-longer", 1 << 12, V3, backing="long"),
    kind("v2-backing-shorter", 1 << 14, V2, backing="short"),
    kind("extended-backing", 1 << 14, V3, EXT, backing="qcow2"),
    kind("extended-backing-shorter", 1 << 16, V3, EXT, backing="short"),
    kind("lazy-backing", 1 << 12, V3, LAZY, backing="qcow2"),
    kind("data-file", 1 << 12, V3, DATA),
    kind("data-file-64k", 1 << 16, V3, DATA),
    kind("data-file-raw", 1 << 12, V3, DATA, RAW),
    kind("data-file-backing", 1 << 12, V3, DATA, backing="raw"),
    kind("data-file-extended", 1 << 14, V3, DATA, EXT),
    kind("zlib-512", 1 << 9, V3, start="zlib"),
    kind("zlib-v2", 1 << 12, V2, start="zlib"),
    kind("zlib-64k", 1 << 16, V3, start="zlib"),
    kind("zlib-2M", 1 << 21, V3, start="zlib"),
    kind("zstd-4k", 1 << 12, V3, "compression_type=zstd", start="zstd"),
    kind("zstd-64k", 1 << 16, V3, "compression_type=zstd", start="zstd"),
    kind("zlib-extended", 1 << 14, V3, EXT, start="zlib"),
    kind("snapshots-v2", 1 << 12, V2, snapshots=True),
    kind("snapshots-v3", 1 << 12, V3, snapshots=True),
    kind("snapshots-512", 1 << 9, V3, snapshots=True),
    kind("snapshots-64k-refcount-2", 1 << 16, V3, "refcount_bits=8", snapshots=True),
    kind("snapshots-extended", 1 << 14, V3, EXT, snapshots=True),
    kind("snapshots-zlib", 1 << 12, V3, start="zlib", snapshots=True),
    kind("snapshots-backing", 1 << 12, V3, backing="qcow2", snapshots=True),
    kind("snapshots-lazy", 1 << 12, V3, LAZY, snapshots=True),
]


class Play:
    """One image, its model, and the moves that both make."""

    def __init__(self, kind: Kind, directory: Path, qemu: object, seed: int) -> None:
        self.kind, self.directory, self.qemu = kind, directory, qemu
        self.path = directory / "disk.qcow2"
        self.chance = random.Random(seed)
        self.model = bytearray(kind.size)
        self.snapshots: dict[str, bytes] = {}
        options = [option.replace("%d", str(directory)) for option in kind.options]
        if kind.start:
            self._compressible()
            source = directory / "source.raw"
            source.write_bytes(self.model)
            qemu.img("convert", "-q", "-c", "-O", "qcow2", "-o", ",".join(options), "-f", "raw", source, self.path)
            return
        qemu.create(self.path, kind.size, *options, **self._backing())

    def _compressible(self) -> None:
        at = 0
        while at < len(self.model):
            n = self.chance.randrange(1, 9) * self.kind.cluster // 4
            what = self.chance.choice(("zeros", "text", "text", "noise"))
            data = {"zeros": bytes(n), "text": (b"%d " % at) * n, "noise": self.chance.randbytes(n)}[what][:n]
            self.model[at : at + n] = data[: len(self.model) - at]
            at += n

    def _backing(self) -> dict[str, object]:
        kind = self.kind
        if not kind.backing:
            return {}
        size = {"short": kind.size // 2 // BLOCK * BLOCK + BLOCK, "long": kind.size + 5 * kind.cluster}.get(
            kind.backing, kind.size
        )
        data = self.chance.randbytes(size // 3) + bytes(size // 3)
        data += self.chance.randbytes(size - len(data))
        raw = self.directory / "base.raw"
        raw.write_bytes(data)
        self.model[:size] = data[: kind.size]
        if kind.backing != "qcow2":
            return {"backing": raw}
        base = self.directory / "base.qcow2"
        self.qemu.img("convert", "-q", "-f", "raw", "-O", "qcow2", raw, base)
        return {"backing": base, "fmt": "qcow2"}

    def move(self, image: object, what: str, first: int, blocks: int) -> None:
        offset = first * BLOCK
        n = min(blocks * BLOCK, self.kind.size - offset)
        if what == "write":
            data = self.chance.randbytes(n)
            cut = self.chance.randrange(n + 1)
            buffers = [memoryview(data)[:cut], memoryview(data)[cut:]]
            if self.chance.random() < 0.5 or not image.write_nowait(offset, buffers, n):
                image.write(offset, buffers)
            self.model[offset : offset + n] = data
        elif what == "read":
            data = bytearray(n)
            if self.chance.random() < 0.5 or not image.read_nowait(offset, [memoryview(data)], n):
                image.read(offset, [memoryview(data)])
            assert data == self.model[offset : offset + n], f"{n} bytes at {offset}"
        elif what == "discard":
            image.discard(offset, n)
            self.model[offset : offset + n] = bytes(n)
        elif what == "zeroes":
            image.write_zeroes(offset, n)
            self.model[offset : offset + n] = bytes(n)
        else:
            image.flush()

    def qemu_moves(self, first: int, blocks: int) -> None:
        """QEMU's turn: what it writes has to be read by us, and written over."""
        offset = first * BLOCK
        n = min(blocks * BLOCK, self.kind.size - offset)
        pattern = self.chance.randrange(1, 256)
        commands = [f"write -P {pattern} {offset} {n}"]
        self.model[offset : offset + n] = bytes([pattern]) * n
        far = self.chance.randrange(self.kind.size // BLOCK) * BLOCK
        m = min(3 * BLOCK, self.kind.size - far)
        commands.append(f"write -z {far} {m}")
        self.model[far : far + m] = bytes(m)
        self.qemu.io(self.path, *commands)
        if self.kind.snapshots and len(self.snapshots) < 3:
            name = f"state {len(self.snapshots)}"
            self.qemu.img("snapshot", "-c", name, self.path)
            self.snapshots[name] = bytes(self.model)


def play(
    kind: Kind, qemu: object, opened_image: Callable, moves: list[tuple[str, int, int]], seed: int, memory: str | None
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="tcmu-qcow-", dir=memory))
    try:
        game = Play(kind, directory, qemu, seed)
        blocks = kind.size // BLOCK
        turns: list[list[tuple[str, int, int]]] = [[]]
        for what, first, count in moves:
            turns[-1].append((what, first % blocks, count))
            if what in ("reopen", "qemu"):
                turns.append([])
        for turn in turns:
            with opened_image(game.path, cache_bytes=4 * kind.cluster) as image:
                for what, first, count in turn:
                    if what not in ("reopen", "qemu"):
                        game.move(image, what, first, count)
            qemu.check(game.path)
            qemu.same(game.path, game.model)
            if turn and turn[-1][0] == "qemu":
                game.qemu_moves(*turn[-1][1:])
        with opened_image(game.path, read_only=True) as image:
            game.move(image, "read", 0, blocks)
        for name, content in game.snapshots.items():
            with opened_image(game.path, snapshot=name) as image:
                data = bytearray(kind.size)
                image.read(0, [memoryview(data)])
                assert data == content, name
        if "data_file_raw=on" in kind.options:
            assert (directory / "data.raw").read_bytes()[: kind.size].ljust(kind.size, b"\0") == game.model
        qemu.check(game.path)
    finally:
        shutil.rmtree(directory)


MOVES = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 16), st.one_of(st.integers(1, 9), st.integers(1, 300))),
    min_size=3,
    max_size=24,
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=7, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET)
@given(moves=MOVES, seed=st.integers(0, 1 << 32))
def test_we_and_qemu_take_turns(
    kind: Kind, qemu: object, opened_image: Callable, memory: str | None, moves: list[tuple[str, int, int]], seed: int
) -> None:
    play(kind, qemu, opened_image, moves, seed, memory)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=12, deadline=None, database=None, suppress_health_check=QUIET)
@given(moves=MOVES, seed=st.integers(0, 1 << 32))
def test_we_and_qemu_take_many_turns(
    kind: Kind, qemu: object, opened_image: Callable, memory: str | None, moves: list[tuple[str, int, int]], seed: int
) -> None:
    play(kind, qemu, opened_image, moves, seed, memory)
