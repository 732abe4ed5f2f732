"""The file under an image: positioned, vectored, complete I/O. The one place that touches a descriptor."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Sequence

Buffer = memoryview | bytearray | bytes  # what os.pwritev takes
IOV_MAX = 1024  # Linux UIO_MAXIOV
PAGE = 4096
ZEROS = bytes(1 << 20)

_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h
_FALLOC_FL_PUNCH_HOLE = 2
_IN_MEMORY = (0x01021994, 0x858458F6)  # linux/magic.h: TMPFS_MAGIC, RAMFS_MAGIC; statfs(2): f_type comes first
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _file_system(fd: int) -> int:
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        return 0
    return ctypes.c_ulong.from_buffer(buffer).value


def fill_zero(buffers: Sequence[memoryview | bytearray]) -> None:
    """Zero every byte of every buffer."""
    for buffer in buffers:
        length = len(buffer)
        view = memoryview(buffer)
        for at in range(0, length, len(ZEROS)):
            n = min(len(ZEROS), length - at)
            view[at : at + n] = ZEROS[:n]


class Cursor:
    """Walks along a list of buffers, handing out pieces of it without copying."""

    __slots__ = ("_at", "_buffers", "_index")

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = buffers
        self._index = 0
        self._at = 0

    def take(self, length: int) -> list[memoryview]:
        """The next `length` bytes, as views into the buffers."""
        pieces = []
        while length:
            buffer = self._buffers[self._index]
            left = len(buffer) - self._at
            if left > length:
                pieces.append(buffer[self._at : self._at + length])
                self._at += length
                break
            if left:
                pieces.append(buffer[self._at :] if self._at else buffer)
            length -= left
            self._index += 1
            self._at = 0
        return pieces


def _rest(buffers: Sequence[Buffer], done: int) -> list[memoryview]:
    """What is left of the buffers after `done` bytes."""
    left = []
    for buffer in buffers:
        size = len(buffer)
        if done >= size:
            done -= size
        else:
            left.append(memoryview(buffer)[done:])
            done = 0
    return left


class HostFile:
    """A regular file or block device, opened once. Every call moves all of its bytes or raises OSError.

    A flush that failed once fails for ever: the kernel reports a lost write only once, and what was lost isn't known.
    """

    def __init__(self, fd: int, path: str, *, read_only: bool) -> None:
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self._is_block = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.in_memory = not self._is_block and _file_system(fd) in _IN_MEMORY  # nothing that is done to it waits
        self._nowait = 0 if self.in_memory else os.RWF_NOWAIT
        self._never_at_once = False
        self._can_punch = True
        self._flush_error: OSError | None = None

    @classmethod
    def open(cls, path: str, *, read_only: bool, create: bool = False) -> HostFile:
        """Open a file or block device; anything else (a FIFO, a directory) is EINVAL. Never waits for the file."""
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        elif not read_only and stat.S_ISBLK(os.stat(path).st_mode):
            flags |= os.O_EXCL  # refused while a file system, RAID or LVM has the device
        fd = os.open(path, flags, 0o600)
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(fd)
            raise OSError(errno.EINVAL, "neither a file nor a block device", path)
        return cls(fd, path, read_only=read_only)

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
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def preadv(self, buffers: Sequence[memoryview | bytearray], offset: int) -> None:
        """Fill every buffer; what lies past the end of the file reads as zeros."""
        left = sum(map(len, buffers))
        todo: Sequence[memoryview | bytearray] = buffers
        while True:
            done = os.preadv(self.fd, todo[:IOV_MAX], offset)
            left -= done
            if not left:
                return
            todo = _rest(todo, done)
            if not done:
                fill_zero(todo)
                return
            offset += done

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
        return not (offset | length) % PAGE or (self.cached(offset) and self.cached(offset + length - 1))

    def cached(self, offset: int) -> bool:
        """True if the byte can be read at once: writing to its page then needs no reading first."""
        return self.preadv_nowait([memoryview(bytearray(1))], offset, 1)

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write it all."""
        self.pwritev((data,), offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write every buffer, one after another from `offset`."""
        left = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        todo: Sequence[Buffer] = buffers
        while left:
            done = os.pwritev(self.fd, todo if len(todo) <= IOV_MAX else todo[:IOV_MAX], offset)
            if done == left:
                return
            left -= done
            if not done:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            todo = _rest(todo, done)
            offset += done

    def flush(self) -> None:
        """Return when all that was written is on stable storage."""
        if self._flush_error is not None:
            raise OSError(errno.EIO, f"{self.path}: an earlier flush failed: {self._flush_error}")
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._flush_error = error
            raise

    def truncate(self, size: int) -> None:
        """Set the size of the file."""
        os.ftruncate(self.fd, size)

    def punch(self, offset: int, length: int) -> bool:
        """Give the range back to the file system; it reads as zeros from now on. False where that can't be done."""
        if not self._can_punch:
            return False
        while _libc.fallocate(self.fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length):
            code = ctypes.get_errno()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._can_punch = False
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code), self.path)
        return True

    def reserve(self, offset: int, length: int) -> None:
        """Have the file system set space aside, so that writing there can't fail for want of it."""
        os.posix_fallocate(self.fd, offset, length)

    def close(self) -> None:
        """Close the descriptor; twice is once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
