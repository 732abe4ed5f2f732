"""Image files: loading memory from a file and saving it to one."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tcmu_ram.memory import Memory

STEP = 64 << 20  # bytes handed to one system call


def load(path: str, memory: Memory) -> None:
    """Fill `memory` with the file's data; its holes stay holes."""
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        for start, end in _data(fd, os.fstat(fd).st_size):
            at = start
            while at < end:
                done = os.preadv(fd, [memory.view[at : min(at + STEP, end)]], at)
                if not done:
                    return  # it became shorter meanwhile
                memory.touched(at, at + done)
                at += done


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where the file has data, from byte to byte."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            hole = min(os.lseek(fd, at, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # this file can't tell: all of it is data
                yield at, size
            return
        yield at, hole
        at = hole


def save(path: str, memory: Memory) -> None:
    """Write `memory` to a new sparse file that takes the place of `path` once it is complete and on the disk."""
    target = Path(path).resolve()
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        try:
            if target.exists():
                os.fchmod(fd, stat.S_IMODE(target.stat().st_mode))
            os.ftruncate(fd, memory.size)
            for start, end, written in memory.runs(0, memory.size):
                at = start
                while written and at < end:
                    at += os.pwritev(fd, [memory.view[at : min(at + STEP, end)]], at)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
