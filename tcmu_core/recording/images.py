"""The images of crash states: built one after another in a file, checked by a command, and shrunk when it fails."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tcmu_core import files, posix
from tcmu_core.errors import ConfigError
from tcmu_core.recording.crash import Epoch, Part, State, Write

COPY = 1 << 20  # bytes
MOST_SAID = 64 << 10  # bytes that are kept of what a check prints
POLL = 0.1  # seconds after which a check that says nothing is looked at


@dataclass(frozen=True, slots=True)
class Failure:
    """A state whose check failed, as small as it was made, and what the check said."""

    epoch: Epoch
    state: State
    status: int
    output: str

    def lines(self) -> Iterator[str]:
        """Say which writes are on the medium and which are not."""
        epoch, present = self.epoch, dict(self.state)
        yield (
            f"epoch {epoch.number}: {len(present)} of {len(epoch.pending)} writes since the last flush are there; "
            f"the check's status is {self.status}"
        )
        for position, write in enumerate(epoch.pending):
            part = present.get(position)
            said = "missing" if part is None else "there" if part is Part.WHOLE else f"torn: {part.value}"
            yield f"  record {write.number}: {write.length} bytes at {write.offset}: {said}"


class Image:
    """A file that is brought from one state to the next by what differs."""

    def __init__(self, path: Path, size: int, block: int, base: Path | None = None) -> None:
        self.path = path
        self._durable = path.with_name(path.name + ".durable")
        self._size = size
        self._block = block
        self._dirty: list[tuple[int, int]] = []  # what the state before has written, offset and length
        self._stamp = (0, 0, 0)
        _empty(self._durable, size)
        if base is not None:
            with files.opened(base, devices=True) as file:
                length = file.seek(0, os.SEEK_END)
            _copy(base, self._durable, [(0, min(size, length))])
        self._renew()

    def settle(self, epoch: Epoch) -> None:
        """Have what is durable since the epoch before in every image from now on."""
        untouched = self._stamp == self._now()
        _apply(self._durable, epoch.durable)
        if untouched:
            _apply(self.path, epoch.durable)
            self._stamp = self._now()

    def build(self, epoch: Epoch, state: State) -> None:
        """Make the image of a state."""
        if self._stamp == self._now():
            _copy(self._durable, self.path, self._dirty)
        else:
            self._renew()  # the check has written to it
        parts = [epoch.pending[position].part(part, self._block) for position, part in state]
        _apply(self.path, parts)
        self._dirty = [(part.offset, part.length) for part in parts]
        self._stamp = self._now()

    def keep(self, goal: Path) -> None:
        """Copy the image of the state to a file, which is made or overwritten; a half is not left behind.

        Raises:
            ConfigError: there is something else, such as a device, which stays as it is.
        """
        check_goal(goal)
        try:
            _empty(goal, self._size)
            _copy(self.path, goal, [(0, self._size)])
        except BaseException:
            if goal.is_file():
                goal.unlink()
            raise

    def close(self) -> None:
        """Remove both files."""
        self.path.unlink(missing_ok=True)
        self._durable.unlink(missing_ok=True)

    def _now(self) -> tuple[int, int, int]:
        """Return what tells the image from one that a check has written to, or has put in its place."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return 0, 0, 0
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _renew(self) -> None:
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        self.path.unlink(missing_ok=True)  # whatever a check has put there: a link leads to somebody else's file
        _empty(self.path, self._size)
        _copy(self._durable, self.path, [(0, self._size)])
        self._dirty, self._stamp = [], self._now()


def check_goal(goal: Path) -> None:
    """Raise `ConfigError` unless a file can be made or overwritten there: a device would be lost, a FIFO waits."""
    if goal.exists() and not goal.is_file():
        raise ConfigError(f"{goal}: there is something that is no regular file: name another one")


def _empty(path: Path, size: int) -> None:
    """Make a file of so many zeros, which take no space."""
    with path.open("wb") as file:
        file.truncate(size)


def _apply(path: Path, parts: Iterable[Write]) -> None:
    """Write to a file, the data of one at a time; zeros as holes."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for part in parts:
            data = part.data()
            if data is None:
                posix.discard(fd, part.offset, part.length)
            else:
                posix.write_full(fd, part.offset, [memoryview(data)])
    finally:
        os.close(fd)


def _copy(source: Path, goal: Path, ranges: Iterable[tuple[int, int]]) -> None:
    """Make ranges (offset, length) of a file those of another, holes too."""
    with source.open("rb", buffering=0) as one, goal.open("r+b", buffering=0) as other:
        for offset, length in ranges:
            for at, size, data in posix.extents(one.fileno(), offset, length):
                if not data:
                    posix.discard(other.fileno(), at, size)
                    continue
                while size and (piece := os.pread(one.fileno(), min(COPY, size), at)):
                    posix.write_full(other.fileno(), at, [memoryview(piece)])
                    at, size = at + len(piece), size - len(piece)


Check = Callable[[Path], tuple[int, str]]


def shell_check(command: str, seconds: float) -> Check:
    """Return a check that runs a command by the shell with `$image` set; one that takes longer has failed."""

    def check(image: Path) -> tuple[int, str]:
        until = time.monotonic() + seconds
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "image": str(image)},
            start_new_session=True,
        )
        try:
            output = _said(process, until)
            return process.wait(max(0.0, until - time.monotonic())), output
        except (TimeoutError, subprocess.TimeoutExpired):
            return -1, f"it did not end within {seconds:g} seconds"
        finally:
            if process.poll() is None:  # all of it: what goes on would meet the next image
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    return check


def _said(process: subprocess.Popen[bytes], until: float) -> str:
    """Return the beginning of what a check prints, until it ends; raises `TimeoutError`."""
    said = b""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    while (left := until - time.monotonic()) > 0:
        if select.select([pipe], [], [], min(left, POLL))[0]:
            piece = os.read(pipe, COPY)
            if not piece:
                return said.decode(errors="replace")
            said += piece[: MOST_SAID - len(said)]
        elif process.poll() is not None:  # something that it has left behind holds the pipe open
            return said.decode(errors="replace")
    raise TimeoutError


def shrink(image: Image, failure: Failure, check: Check) -> Failure:
    """Return the failure with the fewest writes: none of those that are left can be taken away, or be whole."""
    best = failure

    def fails(state: State) -> bool:
        nonlocal best
        image.build(failure.epoch, state)
        status, output = check(image.path)
        if status:
            best = Failure(failure.epoch, state, status, output)
        return bool(status)

    changed = True
    step = max(1, len(best.state) // 2)
    while changed or step > 1:
        changed = False
        at = 0
        while at < len(best.state):
            if fails(best.state[:at] + best.state[at + step :]):
                changed = True
            else:
                at += step
        step = max(1, step // 2)
    for at, (position, part) in enumerate(best.state):
        if part is not Part.WHOLE:
            fails((*best.state[:at], (position, Part.WHOLE), *best.state[at + 1 :]))
    return best
