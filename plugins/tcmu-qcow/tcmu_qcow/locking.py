"""QEMU's image locking: which program may do what with a file, agreed through OFD byte-range locks.

A program read-locks byte 100+n for each permission n that it uses, and byte 200+n for each that it allows nobody else.
It then asks whether anyone holds the opposite byte. All locks are shared ones, so nobody waits and a lock dies with its
descriptor. (QEMU block/file-posix.c and include/block/block-common.h; checked against qemu-io through /proc/locks.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from enum import IntEnum

from tcmu_qcow.errors import ImageInUse
from tcmu_qcow.files import HostFile

HOLDS = 100  # file-posix.c, RAW_LOCK_PERM_BASE
DENIES = 200  # file-posix.c, RAW_LOCK_SHARED_BASE

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37  # linux/fcntl.h
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, 64-bit off_t


class Permission(IntEnum):
    """Bit numbers of BLK_PERM_*."""

    CONSISTENT_READ = 0
    WRITE = 1
    WRITE_UNCHANGED = 2
    RESIZE = 3


READER = (Permission.CONSISTENT_READ,)
WRITER = (Permission.CONSISTENT_READ, Permission.WRITE, Permission.RESIZE)
NO_LOCKS = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
DENIED = (Permission.WRITE, Permission.RESIZE)  # by an image format, to everyone else, reading or writing


def _set(file: HostFile, byte: int) -> None:
    fcntl.fcntl(file.fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))


def _held_elsewhere(file: HostFile, byte: int) -> bool:
    answer = fcntl.fcntl(file.fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def lock_image(file: HostFile, *, write: bool) -> None:
    """Take the locks that QEMU's format drivers take. ImageInUse when another program's stand against them.

    A file system without such locks is used without, as QEMU does.
    """
    holds = WRITER if write else READER
    try:
        for permission in holds:
            _set(file, HOLDS + permission)
        for permission in DENIED:
            _set(file, DENIES + permission)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        raise ImageInUse(f"{file.path}: cannot lock the image: {error.strerror}") from error
    for permission in holds:
        if _held_elsewhere(file, DENIES + permission):
            raise ImageInUse(f"{file.path}: another program uses the image and forbids our “{_name(permission)}”")
    for permission in DENIED:
        if _held_elsewhere(file, HOLDS + permission):
            raise ImageInUse(f"{file.path}: another program has the image open for “{_name(permission)}”")


def _name(permission: Permission) -> str:
    return permission.name.lower().replace("_", " ")
