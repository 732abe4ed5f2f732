"""Medium: the disc in the drive, an image file or a block device, read and written in bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from tcmu_core import ConfigError, Device, LbaOutOfRange, MediumNotPresent, ReadError, WriteError, posix
from tcmu_fbo.config import Disc
from tcmu_fbo.profiles import BLOCK, DVD_RAM, Profile, by_size

_GONE = (errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)


class Medium:
    """An open disc.

    Attributes:
        blocks: its capacity in blocks of 2048 bytes.
        length: the bytes that the image really has. Where it ends within a block, the rest of that reads as zeros.
        profile: the kind of disc.
        read_only: whether the disc refuses to be written.
    """

    def __init__(
        self,
        device: Device,
        engine: posix.Engine,
        fd: int,
        path: str,
        length: int,
        blocks: int,
        profile: Profile,
        *,
        read_only: bool,
    ) -> None:
        self.fd = fd
        self.length = length
        self.blocks = blocks
        self.profile = profile
        self.read_only = read_only
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._stable = posix.Stable(fd, path, device.log)
        self._file = posix.AsyncFile(engine, device.offload, self._stable)
        self._watch = posix.Watch(fd, path, device.log)
        self._users = 1
        self._lock = threading.Lock()

    # -- its life -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep the image open while work on another thread goes on, even if the disc is ejected meanwhile."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def hold(self) -> None:
        """Keep the image open until `release`."""
        with self._lock:
            if not self._users:
                raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
            self._users += 1

    def close(self) -> None:
        """Take the disc out: another program may have it. The image is closed when nobody uses it any more."""
        self._watch.close()
        posix.unlock(self.fd)
        self.release()

    def release(self) -> None:
        """End a use; the image is closed with the last one."""
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

    def read_cached(self, offset: int, buffers: list[memoryview]) -> bool:
        """Fill `buffers` from byte `offset` on if the page cache holds all of it. False: some may be filled by then."""
        there, behind = posix.split(buffers, max(0, self.length - offset))
        if there and posix.read_cached(self.fd, offset, there) < posix.total(there):
            return False
        posix.fill_zero(behind)
        return True

    def read(self, offset: int, buffers: list[memoryview]) -> None:
        """Fill `buffers` from byte `offset` on.

        Raises:
            ReadError: with the block that can't be read: a bad sector, or an image that is shorter than it was.
            MediumNotPresent: the block device is gone.
        """
        there, behind = posix.split(buffers, max(0, self.length - offset))
        posix.fill_zero(behind)
        wanted = posix.total(there) if there else 0
        try:
            done = posix.read_available(self.fd, offset, there)
        except OSError as error:
            raise self._read_error(error, offset, wanted) from error
        if done < wanted:
            end = offset + done
            raise ReadError(f"the image ends at byte {end} of {self.length}", information=end // BLOCK)

    def _read_error(self, error: OSError, offset: int, length: int) -> MediumNotPresent | ReadError:
        """Find the block that can't be read: some of what lies before it may have been."""
        if error.errno in _GONE:
            return MediumNotPresent(str(error))
        block = memoryview(bytearray(BLOCK))
        bad = offset
        with contextlib.suppress(OSError):
            while bad < offset + length:
                posix.read_available(self.fd, bad, [block])
                bad += BLOCK
        bad = bad if bad < offset + length else offset  # a second try succeeded
        return ReadError(f"block {bad // BLOCK}: {error}", information=bad // BLOCK)

    def write(self, offset: int, buffers: list[memoryview], *, stable: bool = False) -> None:
        """Write `buffers` from byte `offset` on; `stable`: onto stable storage (FUA)."""
        try:
            posix.write_full(self.fd, offset, buffers)
        except OSError as error:
            raise self.write_error(error, offset) from error
        self.wrote(offset, buffers)
        if stable:
            self._stable.flush()

    def wrote(self, offset: int, buffers: list[memoryview]) -> None:
        """Note that `buffers` are in the image now, from byte `offset` on."""
        if buffers:
            self.length = max(self.length, offset + posix.total(buffers))

    @staticmethod
    def write_error(error: OSError, offset: int) -> OSError | MediumNotPresent | WriteError:
        """Return what a write that failed with `error` means."""
        if error.errno in _GONE:
            return MediumNotPresent(str(error))
        if error.errno not in (errno.EIO, errno.EINVAL):
            return error  # its errno says more than a write error
        return WriteError(f"block {offset // BLOCK}: {error}", information=offset // BLOCK)

    def flush(self) -> None:
        """Return when what was written is on stable storage; once that has failed it does so for this disc for ever."""
        if not self.read_only:
            self._stable.flush()

    # -- data, while the loop goes on: to be held meanwhile -----------------------------------------------------------

    def start_read(self, offset: int, buffers: list[memoryview]) -> Future[None]:
        """Begin to fill `buffers`; what the image does not have reads as zeros, see `has`. On the loop's thread."""
        return self._file.read(offset, buffers)

    def has(self, end: int) -> bool:
        """Say whether the image is as long as it was when it was opened, as far as byte `end`."""
        return not self._regular or os.fstat(self.fd).st_size >= min(end, self.length)

    def start_write(self, offset: int, buffers: list[memoryview]) -> Future[None]:
        """Begin to write `buffers`. On the loop's thread."""
        return self._file.write(offset, buffers)

    def start_flush(self) -> Future[None]:
        """Begin to bring what was written to stable storage. On the loop's thread."""
        return self._file.flush()

    def erase(self, progress: Callable[[int, int], None]) -> None:
        """Make the whole disc zeros, calling `progress(done, all)` in bytes on the way."""
        size = self.blocks * BLOCK
        if self._regular:  # a hole costs neither time nor space
            self._watch.truncate(0)
            os.ftruncate(self.fd, size)
            self.length = size
        else:
            step = len(posix.ZEROS)
            for offset in range(0, size, step):
                self.write(offset, [posix.ZEROS[: size - offset]])
                progress(offset, size)
        self._stable.flush()


def open_disc(
    device: Device, engine: posix.Engine, disc: Disc, size: int = 0, instead_of: Medium | None = None
) -> Medium:
    """Open the image of `disc`, locked against others unless it says no.

    Without `ro` and without a read-only profile the disc is writable (DVD-RAM) if the image is. `size` is what was
    asked for in bytes: a writable file that is missing or shorter is made that long; no image is ever cut short.
    `instead_of` is the disc that is to be taken out for it; that may be the same image.

    Raises:
        OSError: it can't be opened.
        ConfigError: it holds not one block, is no file and no block device, or another program has it.
    """
    block_device = _is_block_device(disc.path)
    writable = not disc.read_only and (disc.profile is None or disc.profile.writable)
    created = size > 0 and writable and not os.path.lexists(disc.path)
    same = instead_of is not None and _is_open_as(disc.path, instead_of.fd)
    fd, writable = _open(disc, writable, block_device=block_device, create=size > 0)
    try:
        if same and instead_of is not None:
            posix.unlock(instead_of.fd)
        if disc.lock:
            _lock(fd, disc.path, write=writable)
        length = os.lseek(fd, 0, os.SEEK_END)
        if writable and not block_device and length < size:
            os.ftruncate(fd, size)
            length = size
        # A last block that is not whole: a file grows when it is written, a device can't.
        blocks = length // BLOCK if writable and block_device else -(-length // BLOCK)
        if not blocks:
            raise ConfigError(f"{disc.path} holds {length} bytes: a disc has at least one block of {BLOCK}")
        profile = disc.profile or (DVD_RAM if writable else by_size(blocks))
        return Medium(device, engine, fd, disc.path, length, blocks, profile, read_only=not writable)
    except BaseException:
        os.close(fd)
        if created:
            os.unlink(disc.path)
        if same and instead_of is not None:
            posix.lock(instead_of.fd, write=not instead_of.read_only)
        raise


def _is_open_as(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def _lock(fd: int, path: str, *, write: bool) -> None:
    try:
        posix.lock(fd, write=write)
    except posix.InUse as error:
        raise ConfigError(
            f"{path} is in use{posix.users(path, fd)}: {error.strerror}. Drives may share it when all of them have "
            "ro=1; lock=no takes no lock, and trusts you that nobody writes to it"
        ) from error


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
