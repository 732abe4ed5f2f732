"""Image files: loading memory from a file and saving it to one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from tcmu_core import posix
from tcmu_ram.memory import Memory

ELSEWHERE = ("/var/tmp",)  # where an image is kept that can't be saved in its own directory; it outlives a reboot

PIECE = 64 << 20  # bytes from one report of the progress to the next

Tell = Callable[[int, int], object]  # how many bytes are done, and of how many

SHOWN = 50  # characters of an image's name in that of a file beside it: a name has 255 bytes at most


def load(path: str, memory: Memory, tell: Tell) -> None:
    """Fill `memory` with the file's data; its holes stay holes."""
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        for start, length, mapped in posix.extents(fd, 0, size):
            for at in range(start, start + length, PIECE) if mapped else ():
                tell(at, size)
                end = min(at + PIECE, start + length)
                done = posix.read_available(fd, at, [memory.view[at:end]])
                if done:
                    memory.touched(at, at + done)


def extend(path: str, size: int) -> None:
    """Make an image that is there `size` bytes long, sparsely, if it is shorter; raises OSError."""
    if os.path.getsize(path) < size:
        os.truncate(path, size)


def save(path: str, memory: Memory, tell: Tell) -> None:
    """Write `memory` to a new sparse file that takes the place of `path` once it is complete and on the disk.

    Raises:
        OSError: it could not; the message names the file, and says where the content was saved instead or that it is
            gone.
    """
    target = Path(os.path.realpath(path))
    try:
        _replace(target, memory, tell)
    except OSError as error:
        kept = _keep_elsewhere(target, memory, tell)
        fate = f"was saved as {kept} instead" if kept else "is gone"
        raise OSError(
            error.errno, f"{target} could not be saved ({error.strerror}): what the disk held {fate}"
        ) from error


def would_be_lost(target: Path) -> bool:
    """Say whether there is a device or a FIFO, in whose place an image would be put; a directory can't be replaced."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _replace(target: Path, memory: Memory, tell: Tell) -> None:
    if would_be_lost(target):
        raise OSError(errno.EINVAL, "it is no regular file")
    name = _write(target.parent, f".{target.name[:SHOWN]}.", memory, tell)
    try:
        if target.exists():
            os.chmod(name, stat.S_IMODE(target.stat().st_mode))
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    _sync_directory(target.parent)


def _keep_elsewhere(target: Path, memory: Memory, tell: Tell) -> str | None:
    for directory in map(Path, ELSEWHERE):
        if directory != target.parent:
            with contextlib.suppress(OSError):
                name = _write(directory, f"{target.name[:SHOWN]}.", memory, tell)
                _sync_directory(directory)
                return name
    return None


def _write(directory: Path, prefix: str, memory: Memory, tell: Tell) -> str:
    """Write all of `memory` to a new file in `directory` and return its path; on failure there is none.

    Each piece is made stable: else it is the last fsync alone that takes long, and nobody knows how far it is.
    """
    runs = [(start, end) for start, end, written in memory.runs(0, memory.size) if written]
    done, total = 0, sum(end - start for start, end in runs)
    fd, name = tempfile.mkstemp(prefix=prefix, dir=directory)
    try:
        try:
            os.ftruncate(fd, memory.size)
            for start, end in runs:
                for at in range(start, end, PIECE):
                    tell(done, total)
                    stop = min(at + PIECE, end)
                    posix.write_full(fd, at, [memory.view[at:stop]])
                    if done // PIECE < (done + stop - at) // PIECE:
                        os.fdatasync(fd)
                    done += stop - at
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(name)
        raise
    return name


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
