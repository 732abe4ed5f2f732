"""Power goes at every single write of a workload: the image opens, nothing is corrupt, what was flushed is there."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

BLOCK = 512
THOROUGH = ("evictions", "growing-refcounts")  # where order is hardest to keep
HOW = ("none", "all", "some", "some")  # what became of writes that were not flushed


class Workload:
    """Guest commands on an image, and for each block what a power cut may leave there.

    A command writes one value to each of its blocks. After a flush a block holds the latest value; between flushes it
    may hold any value since the last flush, and that one.
    """

    def __init__(self, image: object, content: bytes, log: list) -> None:
        self.image, self.log = image, log
        self.size = len(content)
        self.now = [content[at : at + BLOCK] for at in range(0, self.size, BLOCK)]
        self.possible: list[set[bytes]] = [{block} for block in self.now]
        self.history: list[tuple[int, list[set[bytes]]]] = []  # (operations in the log, possible then)

    def write(self, offset: int, data: bytes) -> None:
        self._will(offset, [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)])
        self.image.write(offset, [memoryview(data)])

    def zero(self, offset: int, length: int, *, discard: bool) -> None:
        self._will(offset, [bytes(BLOCK)] * (length // BLOCK))
        (self.image.discard if discard else self.image.write_zeroes)(offset, length)

    def flush(self) -> None:
        self.image.flush()
        self.possible = [{block} for block in self.now]
        self._remember()

    def _will(self, offset: int, blocks: list[bytes]) -> None:
        self.possible = [set(values) for values in self.possible]
        for at, block in enumerate(blocks, offset // BLOCK):
            self.now[at] = block
            self.possible[at].add(block)
        self._remember()

    def _remember(self) -> None:
        self.history.append((len(self.log), self.possible))

    def possible_at(self, moment: int) -> list[set[bytes]]:
        """What each block may hold after that many operations of the log."""
        known = self.history[0][1]
        for operations, possible in self.history:
            if operations > moment:
                break
            known = possible
        return known


def work(load: Workload, chance: random.Random, commands: int, unit: int) -> None:
    for _ in range(commands):
        blocks = load.size // BLOCK
        first = chance.randrange(blocks)
        count = min(chance.choice((1, 2, unit // BLOCK, chance.randrange(1, 3 * unit // BLOCK + 2))), blocks - first)
        what = chance.choice(("write", "write", "write", "zeroes", "discard", "flush"))
        if what == "write":
            load.write(first * BLOCK, chance.randbytes(count * BLOCK))
        elif what == "flush":
            load.flush()
        else:
            load.zero(first * BLOCK, count * BLOCK, discard=what == "discard")
    load.flush()


KINDS = {
    "v3": ("cluster_size=4096",),
    "evictions": ("cluster_size=512",),
    "v2": ("cluster_size=4096", "compat=0.10"),
    "growing-refcounts": ("cluster_size=512", "refcount_bits=64"),
    "extended": ("cluster_size=16384", "extended_l2=on"),
    "lazy": ("cluster_size=4096", "lazy_refcounts=on"),
    "backing": ("cluster_size=4096",),
    "snapshot": ("cluster_size=4096",),
    "compressed": ("cluster_size=4096",),
}


def prepare(kind: str, directory: Path, qemu: object, chance: random.Random) -> tuple[Path, bytes]:
    """An image of that kind, and its content."""
    path = directory / "disk.qcow2"
    size = 2200 << 10 if kind == "growing-refcounts" else 96 << 10
    full = 1880 << 10 if kind == "growing-refcounts" else size // 2
    content = chance.randbytes(full) + bytes(size - full)
    raw = directory / "base.raw"
    raw.write_bytes(content)
    if kind == "backing":
        qemu.create(path, size, *KINDS[kind], backing=raw)
    elif kind == "compressed":
        content = b"".join(b"%06d " % at * 128 for at in range(0, size, 896))[:size]
        raw.write_bytes(content)
        qemu.img("convert", "-c", "-O", "qcow2", "-o", ",".join(KINDS[kind]), "-f", "raw", raw, path)
    elif kind in ("snapshot", "growing-refcounts"):
        qemu.img("convert", "-O", "qcow2", "-o", ",".join(KINDS[kind]), "-f", "raw", raw, path)
        if kind == "snapshot":
            qemu.img("snapshot", "-c", "before", path)
    else:
        qemu.create(path, size, *KINDS[kind])
        content = bytes(size)
    return path, content


def cut_power_everywhere(
    kind: str, directory: Path, qemu: object, opened_image: Callable, power_cuts: object, seed: int, ways: int
) -> None:
    chance = random.Random(seed)
    path, content = prepare(kind, directory, qemu, chance)
    before = path.read_bytes()
    power_cuts.watch(holes=kind != "evictions")
    with opened_image(path, cache_bytes=1024 if kind == "evictions" else 8192) as image:
        log = power_cuts.logs[str(path)]
        load = Workload(image, content, log)
        if kind == "growing-refcounts":
            table = image.header.refcount_table_offset
            load.write(1880 << 10, chance.randbytes(120 << 10))
            assert image.header.refcount_table_offset != table
        # Larger clusters take fewer writes: more moves make up for it.
        work(load, chance, *((90, 16384) if kind == "extended" else (60, 4096)))
    power_cuts.unwatch()
    survivor = directory / "survivor.qcow2"
    for moment in range(len(log) + 1):
        for way in range(ways):
            how = HOW[(moment + way) % len(HOW)]
            survivor.write_bytes(power_cuts.state(before, path, moment, how, seed + moment))
            judge(kind, survivor, qemu, opened_image, load.possible_at(moment), moment, how)
    assert len(log) > 70


def judge(
    kind: str, path: Path, qemu: object, opened_image: Callable, possible: list[set[bytes]], moment: int, how: str
) -> None:
    when = f"operation {moment}, {how}"
    if kind != "lazy":  # there the dirty bit says that refcounts are wrong, and opening makes them right
        assert not qemu.corruptions(path), when
    with opened_image(path, repair=moment % 8 == 7) as image:
        data = bytearray(image.size)
        image.read(0, [memoryview(data)])
        wrong = [at for at, values in enumerate(possible) if bytes(data[at * BLOCK : at * BLOCK + BLOCK]) not in values]
        assert not wrong, f"{when}: blocks {wrong}"
        image.write(0, [memoryview(bytes(BLOCK))])
    assert not qemu.corruptions(path), when
    if moment % 8 == 7:
        qemu.check(path)  # leaks are repaired too


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_at_any_write_corrupts_nothing(
    kind: str, fast_dir: Path, qemu: object, opened_image: Callable, power_cuts: object
) -> None:
    cut_power_everywhere(kind, fast_dir, qemu, opened_image, power_cuts, 4, 2 if kind in THOROUGH else 1)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_at_any_write_of_many_workloads_corrupts_nothing(
    kind: str, fast_dir: Path, qemu: object, opened_image: Callable, power_cuts: object
) -> None:
    cut_power_everywhere(kind, fast_dir, qemu, opened_image, power_cuts, 1, 4)
