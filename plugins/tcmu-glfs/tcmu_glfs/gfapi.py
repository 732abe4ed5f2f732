"""libgfapi (api/src/glfs.h of GlusterFS 6 and later) by ctypes: its signatures, and its asynchronous calls as futures.

A call that has been started is kept in a table under a number until gluster calls back with it, on a thread of its
own: so its future and its buffers live as long as gluster may write to them. The one callback lives as long as the
process.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from ctypes import CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_void_p
from typing import Any

from tcmu_core import ConfigError

LIBRARIES = ("libgfapi.so.0",)
INSTALL = "libgfapi is missing: apt-get install glusterfs-common (dnf install glusterfs-api)"


class IoVec(Structure):
    """struct iovec (sys/uio.h)."""

    _fields_ = (("base", c_void_p), ("length", c_size_t))


# void (*glfs_io_cbk)(glfs_fd_t *, ssize_t ret, struct glfs_stat *pre, struct glfs_stat *post, void *data)
_Callback = CFUNCTYPE(None, c_void_p, c_ssize_t, c_void_p, c_void_p, c_size_t, use_errno=True)

_SIGNATURES: dict[str, tuple[Any, ...]] = {  # what it returns, then its arguments
    "glfs_new": (c_void_p, c_char_p),
    "glfs_set_volfile_server": (c_int, c_void_p, c_char_p, c_char_p, c_int),
    "glfs_set_xlator_option": (c_int, c_void_p, c_char_p, c_char_p, c_char_p),
    "glfs_set_logging": (c_int, c_void_p, c_char_p, c_int),
    "glfs_init": (c_int, c_void_p),
    "glfs_fini": (c_int, c_void_p),
    "glfs_open": (c_void_p, c_void_p, c_char_p, c_int),
    "glfs_creat": (c_void_p, c_void_p, c_char_p, c_int, c_int),
    "glfs_close": (c_int, c_void_p),
    "glfs_unlink": (c_int, c_void_p, c_char_p),
    "glfs_lseek": (c_int64, c_void_p, c_int64, c_int),
    "glfs_ftruncate": (c_int, c_void_p, c_int64, c_void_p, c_void_p),
    "glfs_preadv_async": (c_int, c_void_p, POINTER(IoVec), c_int, c_int64, c_int, _Callback, c_size_t),
    "glfs_pwritev_async": (c_int, c_void_p, POINTER(IoVec), c_int, c_int64, c_int, _Callback, c_size_t),
    "glfs_fdatasync_async": (c_int, c_void_p, _Callback, c_size_t),
    "glfs_discard_async": (c_int, c_void_p, c_int64, c_size_t, _Callback, c_size_t),
    "glfs_zerofill_async": (c_int, c_void_p, c_int64, c_int64, _Callback, c_size_t),
}

Ended = Callable[[int, int], None]  # with what the call returned, and errno


class Gfapi:
    """The library. Calls raise OSError with the errno that they set."""

    def __init__(self) -> None:
        self._library = _open_library()
        for name, (result, *arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._numbers = itertools.count(1)
        self._started: dict[int, tuple[Ended, Any]] = {}
        self._callback = _Callback(self._called_back)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function that waits for its answer."""
        ctypes.set_errno(0)
        result = getattr(self._library, name)(*arguments)
        if result is None or result == -1:
            code = ctypes.get_errno() or errno.EIO
            raise OSError(code, os.strerror(code))
        return result

    def start(self, name: str, ended: Ended, kept: Any, *arguments: Any) -> None:
        """Start an asynchronous call. `kept` lives until it has ended; `ended` is called then, on gluster's thread."""
        number = next(self._numbers)
        self._started[number] = (ended, kept)
        try:
            self.call(name, *arguments, self._callback, number)
        except BaseException:
            del self._started[number]
            raise

    def _called_back(self, _fd: int, result: int, _before: int, _after: int, number: int) -> None:
        code = ctypes.get_errno()
        ended, _kept = self._started.pop(number)
        ended(result, code)


def vectors(buffers: list[memoryview]) -> tuple[Any, Any]:
    """Return `buffers` as an array of struct iovec, and what has to be kept for as long as that is used."""
    chars = [(c_char * len(buffer)).from_buffer(buffer) for buffer in buffers]
    array = (IoVec * len(buffers))(*[IoVec(ctypes.addressof(char), len(char)) for char in chars])
    return array, (array, chars)


_once = threading.Lock()
_loaded: list[Gfapi] = []


def load() -> Gfapi:
    """Return the library, loaded at the first call.

    Raises:
        ConfigError: it is not there; what to install.
    """
    with _once:
        if not _loaded:
            _loaded.append(Gfapi())
        return _loaded[0]


def _open_library() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise ConfigError(INSTALL)


def failed(future: Future[None], error: BaseException) -> None:
    """End a future that nobody else would ever end."""
    if not future.done():
        future.set_exception(error)
