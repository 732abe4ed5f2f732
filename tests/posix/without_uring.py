"""Run a command with io_uring forbidden, as containers have it: python -m tests.posix.without_uring COMMAND…"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

IO_URING_SETUP = 425
NO_NEW_PRIVS, SECCOMP, MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
# linux/filter.h: load a word of struct seccomp_data, jump if equal, return
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL_WITH_EPERM = 0x7FFF0000, 0x00050001


def forbid() -> None:
    """Have io_uring_setup(2) fail with EPERM in this process and in all that it starts."""
    steps = [(LOAD, 0, 0, 0), (IF_EQUAL, 0, 1, IO_URING_SETUP), (RETURN, 0, 0, FAIL_WITH_EPERM), (RETURN, 0, 0, ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    described = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    for call in ((NO_NEW_PRIVS, 1, None, 0, 0), (SECCOMP, MODE_FILTER, ctypes.addressof(described), 0, 0)):
        if prctl(*call):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])
