"""The file under an image: positioned, vectored, complete I/O. The one place that touches a descriptor."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from tcmu_core import posix
from tcmu_core.posix import Buffer


class HostFile:
    """A regular file or block device, opened once. Every call moves all of its bytes or raises OSError.

    A flush that failed once fails for ever (`posix.Stable`), and what happens to the file meanwhile is mentioned in
    the log.
    """

    def __init__(self, fd: int, path: str, *, read_only: bool) -> None:
        self.fd = fd
        self.path = path
        self.logger: posix.Log = posix.log
        self.read_only = read_only
        self._is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.in_memory = not self._is_block and posix.in_memory(fd)  # nothing that is done to it waits
        self._nowait = 0 if self.in_memory else os.RWF_NOWAIT
        self._never_at_once = False
        self._can_punch = True
        self._stable = posix.Stable(fd, path)
        self._watch: posix.Watch | None = None

    @classmethod
    def open(cls, path: str, *, read_only: bool, create: bool = False) -> HostFile:
        """Open a file or block device; anything else (a FIFO, a directory) is EINVAL. Never waits for the file."""
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        elif not read_only and stat.S_ISBLK(os.stat(path).st_mode):
            flags |= os.O_EXCL  # refused while a file system, RAID or LVM has the device
        fd = os.open(path, flags, 0o600)
        try:
            os.set_blocking(fd, True)  # it was opened so that nothing waits for the other end of a FIFO
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise OSError(errno.EINVAL, "neither a file nor a block device", path)
            file = cls(fd, path, read_only=read_only)
            file._watch = posix.Watch(fd, path)
        except BaseException:
            os.close(fd)
            raise
        return file

    def tell(self, log: posix.Log) -> None:
        """Have what happens to the file told to this log from now on."""
        self.logger = self._stable.log = log
        if self._watch is not None:
            self._watch.log = log

    @property
    def size(self) -> int:
        """Bytes in the file now."""
        return os.lseek(self.fd, 0, os.SEEK_END) if self._is_block else os.fstat(self.fd).st_size

    @property
    def can_grow(self) -> bool:
        """False for a block device."""
        return not self._is_block

    @property
    def identity(self) -> tuple[int, int]:
        """What makes two names the same file."""
        status = os.fstat(self.fd)
        return (0, status.st_rdev) if self._is_block else (status.st_dev, status.st_ino)

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        return posix.read_to(self.fd, offset, length)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill every buffer; what lies past the end of the file reads as zeros."""
        posix.read_full(self.fd, offset, buffers)

    def preadv_nowait(self, buffers: Sequence[memoryview], offset: int, length: int) -> bool:
        """Fill every buffer from the page cache; False when that would take a wait (some may be filled by then)."""
        if self._never_at_once:
            return False
        try:
            return os.preadv(self.fd, buffers, offset, self._nowait) == length
        except BlockingIOError:
            return False
        except OSError as error:  # a true error comes again where waiting is allowed
            self._never_at_once = error.errno == errno.EOPNOTSUPP
            return False

    def takes_at_once(self, offset: int, length: int) -> bool:
        """True if the page cache takes the bytes without reading the rest of their pages first."""
        return posix.takes_at_once(self.fd, offset, length)

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write it all."""
        self.pwritev((data,), offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write every buffer, one after another from `offset`."""
        posix.write_full(self.fd, offset, buffers)

    def flush(self) -> None:
        """Return when all that was written is on stable storage."""
        self._stable.flush()

    def truncate(self, size: int) -> None:
        """Set the size of the file."""
        if self._watch is not None:
            self._watch.truncate(size)
        else:
            os.ftruncate(self.fd, size)

    def punch(self, offset: int, length: int) -> bool:
        """Give the range back to the file system; it reads as zeros from now on. False where that can't be done."""
        self._can_punch = self._can_punch and posix.punch(self.fd, offset, length)
        return self._can_punch

    def reserve(self, offset: int, length: int) -> None:
        """Have the file system set space aside, so that writing there can't fail for want of it."""
        posix.reserve(self.fd, offset, length)

    def close(self) -> None:
        """Close the descriptor; twice is once."""
        if self.fd >= 0:
            if self._watch is not None:
                self._watch.close()
            os.close(self.fd)
            self.fd = -1
