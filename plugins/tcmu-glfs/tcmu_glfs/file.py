"""File: an open file on a volume, with its asynchronous calls."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Any

from tcmu_core import ConfigError, Extent
from tcmu_glfs import connection
from tcmu_glfs.config import Config
from tcmu_glfs.connection import Connection
from tcmu_glfs.gfapi import Ended

MODE = 0o600


class File:
    """An open file. Made by `open_file`; data goes through `start`."""

    def __init__(self, config: Config, link: Connection, fd: int, *, read_only: bool) -> None:
        self.config = config
        self.read_only = read_only
        self._link = link
        self._fd = fd
        self._closed = False
        self._starting = threading.Lock()  # held for moments: the file may not be closed under a call
        self._asking = threading.Lock()  # held for as long as the volume takes

    def start(self, name: str, ended: Ended, kept: Any, *arguments: Any) -> None:
        """Start an asynchronous call on the file; raises OSError."""
        with self._starting:
            if self._closed:
                raise OSError(errno.ENOTCONN, "the file is closed")
            self._link.gfapi.start(name, ended, kept, self._fd, *arguments)

    def _ask(self, name: str, *arguments: Any) -> Any:
        with self._asking:
            if self._closed:
                raise OSError(errno.ENOTCONN, "the file is closed")
            return self._link.gfapi.call(name, self._fd, *arguments)

    def size(self) -> int:
        """Return the length of the file in bytes; raises OSError."""
        return int(self._ask("glfs_lseek", 0, os.SEEK_END))

    def grow(self, size: int) -> None:
        """Make the file longer, by a hole; raises OSError."""
        self._ask("glfs_ftruncate", size, None, None)

    def extents(self, offset: int, end: int) -> list[Extent]:
        """Return the hole at `offset`, if there is one, and the data behind it, up to `end`; raises OSError."""
        try:
            data = min(int(self._ask("glfs_lseek", offset, os.SEEK_DATA)), end)
            hole = min(int(self._ask("glfs_lseek", data, os.SEEK_HOLE)), end) if data < end else end
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                data = hole = end
            elif error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # a brick that doesn't know
                data, hole = offset, end
            else:
                raise
        found = [Extent(offset, data - offset, False), Extent(data, hole - data, True)]
        return [extent for extent in found if extent.length > 0]

    def close(self) -> None:
        """Close the file and give the connection back; never raises."""
        with self._starting:
            closed, self._closed = self._closed, True
        if closed:
            return
        with self._asking, contextlib.suppress(OSError):  # the brick is gone, and the descriptor with it
            self._link.gfapi.call("glfs_close", self._fd)
        self._link.release()


def open_file(config: Config, *, read_only: bool, create: int = 0) -> File:
    """Open the file; with `create`, one that is missing is made with so many bytes, as a hole.

    Raises:
        ConfigError: it can't be opened, in words.
    """
    link = connection.acquire(config)
    path = config.path.encode()
    flags = os.O_RDONLY if read_only else os.O_RDWR
    try:
        fd = _open(config, link, path, flags, create)
    except BaseException:
        link.release()
        raise
    return File(config, link, fd, read_only=read_only)


def _open(config: Config, link: Connection, path: bytes, flags: int, create: int) -> int:
    api, handle = link.gfapi, link.handle
    try:
        return int(api.call("glfs_open", handle, path, flags))
    except OSError as error:
        if error.errno != errno.ENOENT or flags == os.O_RDONLY or not create:
            raise _explain(config, error, create) from error
    try:
        fd = int(api.call("glfs_creat", handle, path, flags | os.O_EXCL, MODE))
    except OSError as error:
        raise _explain(config, error, create) from error
    try:
        api.call("glfs_ftruncate", fd, create, None, None)
    except OSError as error:
        api.call("glfs_close", fd)
        api.call("glfs_unlink", handle, path)
        raise ConfigError(f"can't make {config.name} with {create} bytes: {error.strerror}") from error
    return fd


def _explain(config: Config, error: OSError, create: int) -> ConfigError:
    name = config.name
    if error.errno == errno.ENOENT and create:
        return ConfigError(f"{name}: the directory does not exist on the volume")
    if error.errno == errno.ENOENT:
        return ConfigError(f"{name} does not exist: give a size to create it")
    if error.errno == errno.EISDIR:
        return ConfigError(f"{name} is a directory: a disk needs a file")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"{name} can't be opened for writing ({error.strerror}): add ro=1 for a read-only disk")
    return ConfigError(f"{name} can't be opened: {error.strerror}")
