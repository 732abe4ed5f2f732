"""One writer or several readers, agreed with other programs by OFD locks on single bytes, as QEMU does it.

Each program read-locks a byte for every permission that it uses, and another for every one that it allows nobody else;
then it looks whether somebody holds the opposite. All locks are shared ones, so nobody waits. The bytes are QEMU's
(block/file-posix.c, include/block/block-common.h), so qemu-img and the handlers keep out of each other's way. A lock
belongs to the open file description and ends with it, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from enum import IntEnum
from pathlib import Path

USED = 100  # QEMU's RAW_LOCK_PERM_BASE: byte 100 + n is locked by those who use permission n
REFUSED = 200  # RAW_LOCK_SHARED_BASE: byte 200 + n by those who let nobody else use it

# linux/fcntl.h; struct flock: l_type, l_whence, l_start, l_len, l_pid
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("@hhqqi4x")
_DENIED = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Permission(IntEnum):
    """Bit numbers of BLK_PERM_*."""

    CONSISTENT_READ = 0
    WRITE = 1
    WRITE_UNCHANGED = 2
    RESIZE = 3


READER = (Permission.CONSISTENT_READ,)
WRITER = (Permission.CONSISTENT_READ, Permission.WRITE, Permission.RESIZE)
EXCLUDED = (Permission.WRITE, Permission.RESIZE)  # for everybody else, whether we read or write


class InUse(BlockingIOError):
    """Another program uses the file in a way that does not go with ours; the message says how."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EAGAIN, reason)


def lock(fd: int, *, write: bool) -> bool:
    """Lock the file for reading, or for writing too. False where the file system has no locks: it is used without.

    Raises:
        InUse: another program stands against it.
    """
    used = WRITER if write else READER
    try:
        for byte in (*(USED + bit for bit in used), *(REFUSED + bit for bit in EXCLUDED)):
            fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        for bit in used:
            if _held(fd, REFUSED + bit):
                raise InUse(f"another program uses it and forbids our “{_name(bit)}”")
        for bit in EXCLUDED:
            if _held(fd, USED + bit):
                raise InUse(f"another program has it open for “{_name(bit)}”")
    except InUse:
        raise
    except OSError as error:
        if error.errno in _DENIED:
            raise InUse(f"another program holds it: {error.strerror}") from error
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def unlock(fd: int) -> None:
    """Let go of what `lock` took, before the descriptor is closed."""
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, USED, REFUSED - USED + 64, 0))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _held(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _name(permission: Permission) -> str:
    return permission.name.lower().replace("_", " ")


def _is(file: Path, target: os.stat_result) -> bool:
    try:
        return os.path.samestat(file.stat(), target)
    except OSError:
        return False  # it was closed meanwhile, as the one of this very listing


def users(path: str, but: int = -1) -> str:
    """Return ` by process 12 (name)` for those that have `path` open, not counting our descriptor `but`."""
    try:
        target = os.stat(path)
    except OSError:
        return ""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = any(
                _is(file, target)
                for file in (process / "fd").iterdir()
                if (process.name, file.name) != (str(os.getpid()), str(but))
            )
            name = (process / "comm").read_text().strip()
        except OSError:
            continue  # it ended, or belongs to another user
        if held:
            found.append(f"process {process.name} ({name})")
    return f" by {' and '.join(found)}" if found else ""
