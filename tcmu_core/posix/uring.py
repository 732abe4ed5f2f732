"""io_uring(7) in plain Python: the two rings mapped into memory, two system calls, no package.

Sans policy: `engines.py` decides what is sent and what to do with what comes back. One thread alone uses a ring.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from enum import IntEnum, IntFlag

# The same numbers on every architecture (asm-generic/unistd.h; alpha adds 110).
_SETUP, _ENTER = 425, 426


class Op(IntEnum):
    """IORING_OP_* (linux/io_uring.h)."""

    READV = 1
    WRITEV = 2
    FSYNC = 3
    ASYNC_CANCEL = 14
    FALLOCATE = 17
    READ = 22
    WRITE = 23
    FADVISE = 24


class Setup(IntFlag):
    """IORING_SETUP_*."""

    COOP_TASKRUN = 1 << 8  # 5.19: completions don't interrupt the thread


FSYNC_DATASYNC = 1
_GETEVENTS = 1  # IORING_ENTER_GETEVENTS
_SINGLE_MMAP, _NODROP = 1 << 0, 1 << 1  # IORING_FEAT_*: both rings in one mapping; no completion is ever dropped
_SQ_CQ_OVERFLOW = 1 << 1  # IORING_SQ_CQ_OVERFLOW: the kernel holds completions back, to be asked for
_OFFSET_SQES = 0x10000000  # IORING_OFF_SQES

# struct io_uring_params, 120 bytes: entries, flags, features, and where in the mapping the rings keep their words
_PARAMS_SIZE = 120
_ENTRIES = struct.Struct("=II")
_FLAGS_AT, _FEATURES_AT, _SQ_AT, _CQ_AT = 8, 20, 40, 80
_CQ_ENTRIES_AT = 4
_SQ_OFFSETS = struct.Struct("=7I")  # head, tail, ring_mask, ring_entries, flags, dropped, array
_CQ_OFFSETS = struct.Struct("=6I")  # head, tail, ring_mask, ring_entries, overflow, cqes
# struct io_uring_sqe: opcode, flags, ioprio, fd, off, addr, len, rw_flags, user_data, and what we leave zero
_SQE = struct.Struct("=BBHiQQIIQ24x")
_CQE = struct.Struct("=QiI")  # user_data, res, flags

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

# A kernel that does not know a flag says EINVAL. SINGLE_ISSUER and DEFER_TASKRUN gain nothing in an epoll, as measured.
FLAGS = (Setup.COOP_TASKRUN, Setup(0))


class Ring:
    """One ring of the calling thread, for `entries` operations in flight.

    Raises:
        OSError: the kernel has no io_uring (ENOSYS), or does not let this process use it (EPERM, ENOMEM).
    """

    def __init__(self, entries: int) -> None:
        params = ctypes.create_string_buffer(_PARAMS_SIZE)
        self.fd = _setup(entries, params)
        try:
            self._map(params)
        except BaseException:
            os.close(self.fd)
            raise

    def _map(self, params: ctypes.Array[ctypes.c_char]) -> None:
        sq_entries, cq_entries = _ENTRIES.unpack_from(params)
        (features,) = struct.unpack_from("=I", params, _FEATURES_AT)
        if not features & _SINGLE_MMAP or not features & _NODROP:
            raise OSError(errno.ENOSYS, "io_uring is too old here")
        head, tail, mask, _, flags, _, array = _SQ_OFFSETS.unpack_from(params, _SQ_AT)
        cq_head, cq_tail, cq_mask, _, _, cqes = _CQ_OFFSETS.unpack_from(params, _CQ_AT)
        size = max(array + 4 * sq_entries, cqes + _CQE.size * cq_entries)
        self._rings = mmap.mmap(self.fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
        self._sqes = mmap.mmap(
            self.fd, sq_entries * _SQE.size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFFSET_SQES
        )
        self._words = memoryview(self._rings).cast("I")
        self._sq_head, self._sq_tail, self._sq_flags = head // 4, tail // 4, flags // 4
        self._cq_head, self._cq_tail, self._cqes = cq_head // 4, cq_tail // 4, cqes
        self._sq_mask, self._cq_mask = self._words[mask // 4], self._words[cq_mask // 4]
        self.entries, self.cq_entries = sq_entries, cq_entries
        for index in range(sq_entries):  # the n-th place of the queue is always the n-th entry
            self._words[array // 4 + index] = index
        self._tail = self._words[self._sq_tail]
        self.unsubmitted = 0

    def push(self, op: int, fd: int, offset: int, address: int, length: int, flags: int, user_data: int) -> None:
        """Put an operation into the submission queue; `submit` sends it.

        There must be room: fewer `unsubmitted` than there are `entries`.
        """
        _SQE.pack_into(
            self._sqes, (self._tail & self._sq_mask) * 64, op, 0, 0, fd, offset, address, length, flags, user_data
        )
        self._tail = (self._tail + 1) & 0xFFFF_FFFF
        self.unsubmitted += 1

    def submit(self, wait: int = 0) -> None:
        """Send what was pushed, and wait for so many completions.

        Raises:
            OSError: EAGAIN or EBUSY, when the kernel has no room now: what it did not take is sent the next time.
        """
        self._words[self._sq_tail] = self._tail
        while True:
            done = _syscall(_ENTER, self.fd, self.unsubmitted, wait, _GETEVENTS if wait else 0, None, 0)
            if done >= 0:
                self.unsubmitted -= done
                return
            code = ctypes.get_errno()
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))

    def completions(self) -> list[tuple[int, int]]:
        """Return (user_data, result) of what has ended; a negative result is an errno."""
        words = self._words
        if words[self._sq_flags] & _SQ_CQ_OVERFLOW:
            _syscall(_ENTER, self.fd, 0, 0, _GETEVENTS, None, 0)
        head, tail = words[self._cq_head], words[self._cq_tail]
        found = []
        rings, mask, start, unpack = self._rings, self._cq_mask, self._cqes, _CQE.unpack_from
        while head != tail:
            user_data, result, _ = unpack(rings, start + (head & mask) * 16)
            found.append((user_data, result))
            head = (head + 1) & 0xFFFF_FFFF
        words[self._cq_head] = head
        return found

    def close(self) -> None:
        """Give the ring back; nothing may be in flight any more. Twice is once."""
        if self.fd >= 0:
            self._words.release()
            self._rings.close()
            self._sqes.close()
            os.close(self.fd)
            self.fd = -1


def _setup(entries: int, params: ctypes.Array[ctypes.c_char]) -> int:
    code = 0
    for flags in FLAGS:
        ctypes.memset(params, 0, _PARAMS_SIZE)
        struct.pack_into("=I", params, _FLAGS_AT, flags)
        fd: int = _syscall(_SETUP, entries, params)
        if fd >= 0:
            os.set_inheritable(fd, False)
            return fd
        code = ctypes.get_errno()
        if code != errno.EINVAL:
            break
    raise OSError(code, os.strerror(code))
