"""The uio device of a backstore: its name, its memory, its events and its doorbell."""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tcmu_core.errors import TcmuError

CLASS = Path("/sys/class/uio")
_NAME = re.compile(r"tcm-user/(\d+)/([^/]+)(?:/(.*))?", re.DOTALL)
_ONE = (1).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class UioName:
    """What the kernel calls a device: `tcm-user/<hba>/<name>/<config>`, the config being `subtype/cfgstring`."""

    hba: int
    device: str
    config: str

    @classmethod
    def parse(cls, text: str) -> UioName | None:
        """Return the parts of a TCM-user name, None for the name of some other driver's device."""
        match = _NAME.fullmatch(text.rstrip("\n"))
        return cls(int(match[1]), match[2], match[3] or "") if match else None

    @property
    def subtype(self) -> str:
        """Return the handler's name: all before the first slash."""
        return self.config.partition("/")[0]

    @property
    def cfgstring(self) -> str:
        """Return what comes after the first slash."""
        return self.config.partition("/")[2]


def devices(sysfs: Path = CLASS) -> Iterator[tuple[int, UioName]]:
    """Yield the minor number and name of every TCM-user device that there is."""
    found = []
    for directory in sysfs.glob("uio[0-9]*"):
        try:
            name = UioName.parse((directory / "name").read_text(errors="replace"))
        except OSError:
            continue  # it went away while we looked
        if name is not None:
            found.append((int(directory.name.removeprefix("uio")), name))
    yield from sorted(found, key=lambda pair: pair[0])


def holders(path: Path, proc: Path = Path("/proc")) -> Iterator[int]:
    """Yield the processes that have the file open, of those that we may look into (proc(5), /proc/PID/fd)."""
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is somebody else's
            if any(os.readlink(entry) == str(path) for entry in (process / "fd").iterdir()):
                yield int(process.name)


class UioDevice:
    """An open /dev/uioN with its memory mapped. Only one process can have it open."""

    def __init__(self, minor: int, *, sysfs: Path = CLASS, dev: Path = Path("/dev")) -> None:
        self.path = dev / f"uio{minor}"
        size = int((sysfs / f"uio{minor}" / "maps" / "map0" / "size").read_text(), 0)
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise TcmuError(f"{self.path} is open in another process: another TCM-user daemon?") from None
            raise
        try:
            self.memory = mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self.memory.madvise(mmap.MADV_DONTFORK)  # a child that a hook has forked must not answer in our place
        except BaseException:
            os.close(self.fd)
            raise
        # Four bytes of any value make the kernel look at the tail.
        self.ring_doorbell: Callable[[], object] = functools.partial(os.write, self.fd, _ONE)

    def acknowledge(self) -> None:
        """Take note of the kernel's events so far.

        Waiting edge-triggered needs no acknowledging, except once in 2^32 events, where the count would come round.

        Raises:
            OSError: the device is gone.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4)

    def close(self) -> None:
        """Close the device; views into its memory must be gone, or the mapping lives until they are."""
        with contextlib.suppress(BufferError):
            self.memory.close()
        os.close(self.fd)
