"""Opening the storage: what the cfgstring says, a file or block device behind it, and what can be known about it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tcmu_core import Body, ConfigError, Option, Options, boolean, posix, size

OPTIONS = Options(
    Option("ro", boolean, "refuse writes", default=False),
    Option("direct", boolean, "pass the page cache by", default=False),
    Option("sync", boolean, "make each write stable before it is answered", default=False),
    Option("size", size, "the size of the disk, where nothing else says it"),
    Option("block_size", size, "bytes of a block: 512, 1024, 2048 or 4096"),
    body=Body("PATH", "/path/of/the/disk.img, or /dev/name for a block device"),
    summary="A file or block device as a disk.",
)
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Config:
    """A cfgstring, parsed: 0 where a number was not given."""

    path: str
    block_size: int = 0
    direct: bool = False
    ro: bool = False
    size: int = 0
    sync: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """An open file or block device and its properties (bytes)."""

    fd: int
    path: str
    size: int
    block_device: bool
    in_memory: bool  # the file system is memory: nothing that is done to it waits
    solid_state: bool
    granularity: int  # the unit in which it allocates, frees and is best written
    punches: bool  # space can be given back
    alignment: posix.Alignment  # what direct I/O asks for


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `cfgstring` means, `defaults` being its options from tcmu.conf."""
    parsed = OPTIONS.parse(cfgstring, defaults)
    given = parsed.options
    config = Config(
        parsed.body, given["block_size"] or 0, given["direct"], given["ro"], given["size"] or 0, given["sync"]
    )
    block = config.block_size
    if block and (block < 512 or block > PAGE or block & (block - 1)):
        raise ConfigError(f"block_size={block}: it may be 512, 1024, 2048 or 4096")
    return config


def open_storage(config: Config, *, wanted: int | None, read_only: bool, block_size: int) -> Storage:
    """Open the storage, locked; a file that is missing, or shorter than `wanted` bytes, is made so long, sparsely.

    Raises:
        ConfigError: it can't be opened like this, and what to do about it.
    """
    path = config.path
    fd, created = _open(config, wanted, read_only)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) and not stat.S_ISBLK(info.st_mode):
            raise ConfigError(f"{path} is {_kind(info.st_mode)}: a disk needs a file or a block device")
        os.set_blocking(fd, True)
        _lock(fd, path, write=not read_only)
        if stat.S_ISREG(info.st_mode) and wanted:
            extend(fd, path, wanted, read_only=read_only, block_size=block_size)
        return _describe(fd, config, os.fstat(fd), read_only=read_only, block_size=block_size)
    except BaseException:
        os.close(fd)
        if created:
            os.unlink(path)
        raise


def extend(fd: int, path: str, wanted: int, *, read_only: bool, block_size: int) -> None:
    """Make the file `wanted` bytes long if it is shorter, so that the disk has this size the next time too.

    Raises:
        ConfigError: it can't be, or may not.
    """
    length = os.fstat(fd).st_size
    if wanted <= length:
        return
    if not read_only:
        try:
            os.ftruncate(fd, wanted)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "no file can be so large"
            raise ConfigError(f"can't make {path} with {wanted} bytes: {why}") from error
    elif wanted > -(-length // block_size) * block_size:
        raise ConfigError(f"{path} has {length} bytes: read-only it can't be a device of {wanted} bytes")


def _open(config: Config, wanted: int | None, read_only: bool) -> tuple[int, bool]:
    """Return the descriptor, and whether the file was made just now."""
    path = config.path
    # O_NONBLOCK: opening a FIFO must not wait for its other end. It means nothing to files and block devices.
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NONBLOCK | os.O_NOCTTY
    flags |= os.O_DIRECT if config.direct else 0
    try:
        info = os.stat(path)
        if stat.S_ISBLK(info.st_mode) and not read_only:
            flags |= os.O_EXCL  # refused while a file system, RAID or LVM has the device
        return os.open(path, flags), False
    except FileNotFoundError as error:
        if not Path(path).parent.is_dir():
            raise ConfigError(f"{path}: the directory {Path(path).parent} does not exist") from error
        if read_only:
            raise ConfigError(f"{path} does not exist, and read-only nothing is created") from error
        if not wanted:
            raise ConfigError(f"{path} does not exist: give a size (size=1G) to create it") from error
        if os.path.islink(path):
            raise ConfigError(f"{path} is a symbolic link to a file that does not exist") from error
    except OSError as error:
        raise _open_error(path, error, config.direct) from error
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
    except OSError as error:
        if error.errno == errno.EINVAL and config.direct:  # it was created before O_DIRECT was refused
            os.unlink(path)
        raise _open_error(path, error, config.direct) from error


def _open_error(path: str, error: OSError, direct: bool) -> ConfigError:
    code = error.errno
    if code == errno.EISDIR:
        return ConfigError(f"{path} is a directory: a disk needs a file or a block device")
    if code == errno.ENXIO:
        return ConfigError(f"{path} is a socket or FIFO: a disk needs a file or a block device")
    if code == errno.EINVAL and direct:
        return ConfigError(f"{path}: its file system does no direct I/O; leave out direct=1")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"{path} can't be opened for writing ({error.strerror}): add ro=1 for a read-only disk")
    if code == errno.EBUSY:
        return ConfigError(f"{path} is in use{posix.users(path)}, or mounted: unmount it, or add ro=1")
    return ConfigError(f"{path} can't be opened: {error.strerror}")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a character device"


def _lock(fd: int, path: str, *, write: bool) -> None:
    try:
        posix.lock(fd, write=write)
    except posix.InUse as error:
        raise ConfigError(
            f"{path} is in use{posix.users(path, fd)}: two writers would destroy each other's data. "
            "Readers may share it when all of them have ro=1"
        ) from error


def _describe(fd: int, config: Config, info: os.stat_result, *, read_only: bool, block_size: int) -> Storage:
    block_device = stat.S_ISBLK(info.st_mode)
    queue = _queue(info.st_rdev if block_device else info.st_dev)
    logical = _number(queue / "logical_block_size") or 512
    granularity = info.st_blksize if 512 <= info.st_blksize <= PAGE else PAGE
    punches = True
    if block_device:
        granularity = max(_number(queue / "physical_block_size") or logical, logical)
        punches = bool(_number(queue / "discard_max_bytes"))
        if block_size < logical:
            raise ConfigError(f"{config.path} has blocks of {logical} bytes: add block_size={logical}")
    elif not read_only:
        punches = posix.can_punch(fd)
    in_memory = not block_device and posix.in_memory(fd)
    alignment = posix.BUFFERED
    if config.direct and not in_memory:
        memory, offset = posix.direct_alignment(fd) or (PAGE, logical if block_device else PAGE)
        alignment = posix.Alignment(memory, offset)
        if block_size % offset:
            raise ConfigError(
                f"{config.path}: direct I/O goes in units of {offset} bytes here: add block_size={offset}, "
                "or leave out direct=1"
            )
    return Storage(
        fd=fd,
        path=config.path,
        size=os.lseek(fd, 0, os.SEEK_END),
        block_device=block_device,
        in_memory=in_memory,
        solid_state=_number(queue / "rotational") != 1,
        granularity=granularity,
        punches=punches,
        alignment=alignment,
    )


def _queue(device: int) -> Path:
    """Return the sysfs directory that describes a block device (a partition's is its disk's)."""
    entry = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return entry / "../queue" if (entry / "partition").exists() else entry / "queue"


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
