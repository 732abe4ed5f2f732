"""Connections to volumes, shared by all disks of a process that lie on the same volume and came by the same host."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass

from tcmu_core import ConfigError
from tcmu_glfs import gfapi
from tcmu_glfs.config import Config
from tcmu_glfs.gfapi import Gfapi

PORT = 24007  # glusterd's, which no volume file names
NOWHERE = "/dev/null"
LOG_LEVEL = 5  # warnings (GF_LOG_WARNING)

# Translators of the client that answer writes before a brick has them, and reads from what a brick once had. The first
# would lose acknowledged data with the connection, the second would show another gateway's data late.
BYPASSED = ("write-behind", "io-cache", "quick-read", "read-ahead", "open-behind", "md-cache", "readdir-ahead")


@dataclass(eq=False, slots=True)
class Connection:
    """A volume: `handle` is libgfapi's, `users` the files that are open by it."""

    gfapi: Gfapi
    key: tuple[str, str]
    handle: int
    users: int = 0

    def release(self) -> None:
        """Say that a file less is open; the last one ends the connection."""
        with _guard:
            self.users -= 1
            if self.users:
                return
            del _open[self.key]
        _end(self.gfapi, self.handle)


_guard = threading.Lock()
_open: dict[tuple[str, str], Connection] = {}


def _forked() -> None:
    """Forget the connections of the process that this one is a child of: their threads are not here."""
    global _guard  # noqa: PLW0603  # somebody may have held it
    _guard = threading.Lock()
    _open.clear()


os.register_at_fork(after_in_child=_forked)


def acquire(config: Config) -> Connection:
    """Return the connection to the volume, made if there is none yet; `release` gives it back.

    Raises:
        ConfigError: the volume can't be reached, in words.
    """
    key = (config.volume, config.host)
    with _guard:
        connection = _open.get(key)
        if connection is None:
            connection = _open[key] = Connection(gfapi.load(), key, _connect(config))
        connection.users += 1
        return connection


def _connect(config: Config) -> int:
    api = gfapi.load()
    handle = api.call("glfs_new", config.volume.encode())
    try:
        api.call("glfs_set_volfile_server", handle, b"tcp", config.host.encode(), PORT)
        api.call("glfs_set_logging", handle, (config.log or NOWHERE).encode(), LOG_LEVEL)
        for name in BYPASSED:
            api.call("glfs_set_xlator_option", handle, f"*-{name}".encode(), b"pass-through", b"true")
        api.call("glfs_init", handle)
    except OSError as error:
        _end(api, handle)
        raise _explain(config, error) from error
    return int(handle)


def _end(api: Gfapi, handle: int) -> None:
    """End a connection on a thread of its own: gluster takes some ten seconds, and nobody has to wait for them."""
    threading.Thread(target=_fini, args=(api, handle), name="tcmu-glfs-end", daemon=True).start()


def _fini(api: Gfapi, handle: int) -> None:
    with contextlib.suppress(OSError):  # something in there did not end: its memory is lost, and nothing else
        api.call("glfs_fini", handle)


def _explain(config: Config, error: OSError) -> ConfigError:
    if error.errno == errno.ENOENT:
        return ConfigError(f"{config.host} has no volume {config.volume!r}: `gluster volume list` tells which it has")
    if error.errno in (errno.ENOTCONN, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return ConfigError(f"no glusterd answers at {config.host} port {PORT}, or no brick of {config.volume} is up")
    return ConfigError(f"the volume {config.volume} at {config.host} can't be reached: {error.strerror}")
