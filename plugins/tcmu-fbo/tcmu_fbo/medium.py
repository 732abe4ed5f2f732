"""Medium: the disc in the drive, an image file or a block device, read and written in bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator

from tcmu_core import ConfigError, LbaOutOfRange, MediumNotPresent, ReadError, WriteError
from tcmu_fbo.config import Disc
from tcmu_fbo.profiles import BLOCK, DVD_RAM, Profile, by_size

MAX_IOV = 1024  # what preadv(2) takes at once (IOV_MAX)
ERASE_STEP = 1 << 20
_GONE = (errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)


class Medium:
    """An open disc.

    Attributes:
        blocks: its capacity in blocks of 2048 bytes.
        length: the bytes that the image really has. Where it ends within a block, the rest of that reads as zeros.
        profile: the kind of disc.
        read_only: whether the disc refuses to be written.
    """

    def __init__(self, fd: int, length: int, blocks: int, profile: Profile, read_only: bool, *, regular: bool) -> None:
        self.fd = fd
        self.length = length
        self.blocks = blocks
        self.profile = profile
        self.read_only = read_only
        self._regular = regular
        self._users = 1
        self._lock = threading.Lock()

    # -- its life -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep the image open while work on another thread goes on, even if the disc is ejected meanwhile."""
        with self._lock:
            if not self._users:
                raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
            self._users += 1
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the disc; the image is closed when the last one has."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            os.close(self.fd)

    # -- data ---------------------------------------------------------------------------------------------------------

    def check(self, lba: int, count: int) -> None:
        """Raise `LbaOutOfRange` unless `count` blocks from `lba` on are on the disc."""
        if lba >= self.blocks or lba + count > self.blocks:
            raise LbaOutOfRange(
                f"blocks {lba} to {lba + count - 1} of {self.blocks}", information=max(lba, self.blocks)
            )

    def read(self, offset: int, buffers: list[memoryview], flags: int = 0) -> bool:
        """Fill `buffers` from byte `offset` on. False: with RWF_NOWAIT in `flags`, that would have had to wait.

        Raises:
            ReadError: with the block that can't be read: a bad sector, or an image that is shorter than it was.
            MediumNotPresent: the block device is gone.
        """
        there, behind = split(buffers, max(0, self.length - offset))
        for buffer in behind:
            buffer[:] = bytes(len(buffer))
        while there:
            try:
                count = os.preadv(self.fd, there[:MAX_IOV], offset, flags)
            except OSError as error:
                if flags:
                    return False  # it would have to wait, or can't tell: a read that may wait can
                if error.errno in _GONE:
                    raise MediumNotPresent(str(error)) from error
                raise ReadError(f"block {offset // BLOCK}: {error}", information=offset // BLOCK) from error
            if not count:
                if flags:
                    return False
                raise ReadError(f"the image ends at byte {offset} of {self.length}", information=offset // BLOCK)
            offset += count
            _, there = split(there, count)
        return True

    def write(self, offset: int, buffers: list[memoryview], *, stable: bool = False) -> None:
        """Write `buffers` from byte `offset` on; `stable`: onto stable storage (FUA)."""
        while buffers:
            try:
                count = os.pwritev(self.fd, buffers[:MAX_IOV], offset, os.RWF_DSYNC if stable else 0)
            except OSError as error:
                if error.errno in _GONE:
                    raise MediumNotPresent(str(error)) from error
                if error.errno not in (errno.EIO, errno.EINVAL):
                    raise  # its errno says more than a write error
                raise WriteError(f"block {offset // BLOCK}: {error}", information=offset // BLOCK) from error
            offset += count
            self.length = max(self.length, offset)
            _, buffers = split(buffers, count)

    def flush(self) -> None:
        """Return when what was written is on stable storage."""
        if not self.read_only:
            os.fdatasync(self.fd)

    def erase(self, progress: Callable[[int, int], None]) -> None:
        """Make the whole disc zeros, calling `progress(done, all)` in bytes on the way."""
        size = self.blocks * BLOCK
        if self._regular:  # a hole costs neither time nor space
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, size)
            self.length = size
        else:
            zeros = memoryview(bytes(ERASE_STEP))
            for offset in range(0, size, ERASE_STEP):
                self.write(offset, [zeros[: min(ERASE_STEP, size - offset)]])
                progress(offset, size)
        os.fdatasync(self.fd)


def split(buffers: list[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """Return views of the first `count` bytes of `buffers`, and views of the rest."""
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            if not count:
                return buffers[:number], buffers[number:]
            return [*buffers[:number], buffer[:count]], [buffer[count:], *buffers[number + 1 :]]
        count -= len(buffer)
    return buffers, []


def open_disc(disc: Disc, size: int = 0) -> Medium:
    """Open the image of `disc`.

    Without `ro` and without a read-only profile the disc is writable (DVD-RAM) if the image is. `size` is what was
    asked for in bytes: a writable file that is missing or shorter is made that long; no image is ever cut short.

    Raises:
        OSError: it can't be opened; ConfigError: it holds not one block, or is no file and no block device.
    """
    block_device = _is_block_device(disc.path)
    writable = not disc.read_only and (disc.profile is None or disc.profile.writable)
    fd, writable = _open(disc, writable, block_device=block_device, create=size > 0)
    try:
        length = os.lseek(fd, 0, os.SEEK_END)
        if writable and not block_device and length < size:
            os.ftruncate(fd, size)
            length = size
        # A last block that is not whole: a file grows when it is written, a device can't.
        blocks = length // BLOCK if writable and block_device else -(-length // BLOCK)
        if not blocks:
            raise ConfigError(f"{disc.path} holds {length} bytes: a disc has at least one block of {BLOCK}")
        profile = disc.profile or (DVD_RAM if writable else by_size(blocks))
    except BaseException:
        os.close(fd)
        raise
    return Medium(fd, length, blocks, profile, not writable, regular=not block_device)


def _open(disc: Disc, writable: bool, *, block_device: bool, create: bool) -> tuple[int, bool]:
    """Open the image as it was asked for; a writable disc that can't be written becomes a read-only one."""
    if writable:
        # O_EXCL without O_CREAT: a block device that is mounted, or has another owner, is not taken for writing.
        flags = os.O_EXCL if block_device else os.O_CREAT if create else 0
        try:
            return os.open(disc.path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600), True
        except OSError as error:
            if disc.profile is not None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    return os.open(disc.path, os.O_RDONLY | os.O_CLOEXEC), False


def _is_block_device(path: str) -> bool:
    """Say whether `path` is a block device; raise `ConfigError` when it is neither that nor a file (to be)."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ConfigError(f"{path} is neither a file nor a block device")
    return stat.S_ISBLK(mode)
