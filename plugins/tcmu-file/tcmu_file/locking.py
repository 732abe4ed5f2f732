"""One writer or several readers, agreed with other programs by OFD locks on single bytes, as QEMU does it.

Each program read-locks a byte for every permission that it uses, and another for every one that it allows nobody else;
then it looks whether somebody holds the opposite. The bytes are QEMU's (block/file-posix.c), so qemu-img and the
handlers keep out of each other's way. A lock belongs to the open file description and ends with it, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

USED = 100  # QEMU's RAW_LOCK_PERM_BASE: byte 100 + n is locked by those who use permission n
REFUSED = 200  # RAW_LOCK_SHARED_BASE: byte 200 + n by those who let nobody else use it
CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3  # bit numbers of BLK_PERM_*

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid


def lock(fd: int, *, write: bool) -> None:
    """Lock the file for reading, or for writing too.

    Raises:
        BlockingIOError: another program uses it in a way that does not go with this one.
        OSError: the file system has no locks.
    """
    used = (CONSISTENT_READ, WRITE, RESIZE) if write else (CONSISTENT_READ,)
    refused = (WRITE, RESIZE)
    for byte in [*(USED + bit for bit in used), *(REFUSED + bit for bit in refused)]:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    for byte in [*(REFUSED + bit for bit in used), *(USED + bit for bit in refused)]:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            raise BlockingIOError(errno.EAGAIN, "another program has it")
