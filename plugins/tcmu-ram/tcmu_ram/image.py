"""Image files: loading memory from a file and saving it to one."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from tcmu_core import posix
from tcmu_ram.memory import Memory

ELSEWHERE = ("/var/tmp",)  # where an image is kept that can't be saved in its own directory; it outlives a reboot

SHOWN = 50  # characters of an image's name in that of a file beside it: a name has 255 bytes at most


def load(path: str, memory: Memory) -> None:
    """Fill `memory` with the file's data; its holes stay holes."""
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        for start, length, mapped in posix.extents(fd, 0, os.fstat(fd).st_size):
            if mapped:
                done = posix.read_available(fd, start, [memory.view[start : start + length]])
                memory.touched(start, start + done)


def extend(path: str, size: int) -> None:
    """Make an image that is there `size` bytes long, sparsely, if it is shorter; raises OSError."""
    if os.path.getsize(path) < size:
        os.truncate(path, size)


def save(path: str, memory: Memory) -> None:
    """Write `memory` to a new sparse file that takes the place of `path` once it is complete and on the disk.

    Raises:
        OSError: it could not; the message names the file, and says where the content was saved instead or that it is
            gone.
    """
    target = Path(os.path.realpath(path))
    try:
        _replace(target, memory)
    except OSError as error:
        kept = _keep_elsewhere(target, memory)
        fate = f"was saved as {kept} instead" if kept else "is gone"
        raise OSError(
            error.errno, f"{target} could not be saved ({error.strerror}): what the disk held {fate}"
        ) from error


def _replace(target: Path, memory: Memory) -> None:
    name = _write(target.parent, f".{target.name[:SHOWN]}.", memory)
    try:
        if target.exists():
            os.chmod(name, stat.S_IMODE(target.stat().st_mode))
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    _sync_directory(target.parent)


def _keep_elsewhere(target: Path, memory: Memory) -> str | None:
    for directory in map(Path, ELSEWHERE):
        if directory != target.parent:
            with contextlib.suppress(OSError):
                name = _write(directory, f"{target.name[:SHOWN]}.", memory)
                _sync_directory(directory)
                return name
    return None


def _write(directory: Path, prefix: str, memory: Memory) -> str:
    """Write all of `memory` to a new file in `directory` and return its path; on failure there is none."""
    fd, name = tempfile.mkstemp(prefix=prefix, dir=directory)
    try:
        try:
            os.ftruncate(fd, memory.size)
            for start, end, written in memory.runs(0, memory.size):
                if written:
                    posix.write_full(fd, start, [memory.view[start:end]])
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
