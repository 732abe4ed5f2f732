"""Shelf: a disk's persistent reservations in an object beside the image, which all its gateways have in common.

The object's version decides between gateways that change it at once; a notification tells those that watch it, and
ends when they have taken the change. The connection is the shelf's own: it outlives those that lose the lock.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

from tcmu_core import Device, StaleVersion
from tcmu_rbd.binding import Binding
from tcmu_rbd.config import Config
from tcmu_rbd.link import connected

MOST = 1 << 20  # bytes of a state: far more than it can have
PATIENCE = 5.0  # seconds that other gateways have to take a change, before the one that has the lock loses it
WATCH = 10  # seconds after which a gateway that is silent watches no more
_OTHER_VERSION = (errno.ERANGE, errno.EOVERFLOW)  # what an assertion of the version fails with
_GONE = (errno.ESHUTDOWN, errno.ENOTCONN)


class Shelf:
    """A store of reservations (`tcmu_core.StateStore`)."""

    shared = True

    def __init__(self, device: Device, binding: Binding, config: Config, image_id: str) -> None:
        self.fence: Callable[[set[int]], object] = lambda aware: None  # takes the lock from who is not among these
        self.instance = 0  # the number by which the cluster knows our connection
        self.name = f"tcmu.reservations.{image_id}"
        self._device = device
        self._binding = binding
        self._config = config
        self._callbacks: list[Callable[[], Future[None]]] = []
        self._known = (b"", "")
        self._guard = threading.Lock()  # of the connection, for as long as the cluster takes to answer
        self._lost = False
        self._cluster: Any = None
        self._ioctx: Any = None
        self._watch: Any = None
        self._connect()

    # -- what the engine asks for -----------------------------------------------------------------------------------

    def load(self) -> tuple[bytes, str]:
        """Return what was there when it was looked at last."""
        return self._known

    def replace(self, state: bytes, version: str) -> Future[str]:
        """Put a state in the place of a version."""
        return self._device.offload(self._replace, state, version)

    def announce(self) -> Future[None]:
        """Have the other gateways take what was replaced; one that has the lock and does not, loses it."""
        return self._device.offload(self._announce)

    def watch(self, callback: Callable[[], Future[None]]) -> Callable[[], object]:
        """Call back when another gateway has replaced the state."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    # -- the same, on threads that may wait -------------------------------------------------------------------------

    def _replace(self, state: bytes, version: str) -> str:
        with self._guard, self._errors():
            operation = self._ioctx.create_write_op()
            try:
                operation.assert_version(int(version))
                operation.write_full(state)
                self._ioctx.operate_write_op(operation, self.name)
            except self._binding.rados.Error as error:
                if getattr(error, "errno", 0) not in _OTHER_VERSION:
                    raise
                self._read()
                raise StaleVersion(f"{self.name}: another gateway has changed it") from error
            finally:
                self._ioctx.release_write_op(operation)
            self._known = state, str(self._ioctx.get_last_version())
            return self._known[1]

    def _announce(self) -> None:
        done = threading.Event()
        aware = {self.instance}

        def ended(_completion: Any, _code: int, acks: Any, _timeouts: Any) -> None:
            aware.update(int(client) for client, _cookie, _said in acks or ())
            done.set()

        with self._errors():
            # It is not for long that the connection is held: others may want an answer before we have ours.
            completion = self._ioctx.aio_notify(self.name, ended, "", int(PATIENCE * 1000))
            done.wait(4 * PATIENCE)
            del completion
        self.fence(aware)

    def refresh(self, *, force: bool = False) -> None:
        """Look at the object; when another version is there, or by `force`, have it taken.

        Raises:
            OSError: it can't be read, or was not taken in time.
        """
        with self._guard, self._errors():
            before = self._known[1]
            self._read()
        if force or self._known[1] != before:
            pending = [callback() for callback in tuple(self._callbacks)]
            if wait(pending, PATIENCE).not_done:
                raise TimeoutError(errno.ETIMEDOUT, f"{self.name}: the change was not taken in time")
            for one in pending:
                one.result()

    def tend(self) -> bool:
        """Watch again, if the cluster has forgotten that we do; returns whether that was so. Raises `OSError`."""
        if not self._lost:
            return False
        self.close()
        self._connect()
        self.refresh(force=True)
        return True

    # -- the connection ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        with self._guard, self._errors():
            self._cluster = connected(self._binding, self._config)
            self.instance = int(self._cluster.get_instance_id())
            self._ioctx = self._cluster.open_ioctx(self._config.pool)
            if self._config.namespace:
                self._ioctx.set_namespace(self._config.namespace)
            operation = self._ioctx.create_write_op()
            try:
                operation.new(self._binding.rados.LIBRADOS_CREATE_IDEMPOTENT)
                self._ioctx.operate_write_op(operation, self.name)
            finally:
                self._ioctx.release_write_op(operation)
            self._watch = self._ioctx.watch(self.name, self._notified, self._unwatched, WATCH)
            self._lost = False
            self._read()

    def close(self) -> None:
        """Let go of the connection. Never raises."""
        errors = (self._binding.rados.Error,)
        with self._guard:
            for part, end in ((self._watch, "close"), (self._ioctx, "close"), (self._cluster, "shutdown")):
                if part is not None:
                    with contextlib.suppress(*errors):
                        getattr(part, end)()
            self._watch = self._ioctx = self._cluster = None

    def _read(self) -> None:
        state = bytes(self._ioctx.read(self.name, MOST))
        self._known = state, str(self._ioctx.get_last_version())

    def _notified(self, _notification: int, notifier: int, _watch: int, _data: bytes) -> None:
        """Take another gateway's change: it waits until this returns. Called on a thread of librados's."""
        if notifier == self.instance:
            return
        try:
            self.refresh()
        except OSError as error:
            self._device.log.error("reservations that another gateway has changed can't be taken: %s", error)

    def _unwatched(self, _code: int) -> None:
        self._lost = True

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except AttributeError as error:  # there is no connection
            self._lost = True
            raise OSError(errno.ENOTCONN, f"{self.name}: the connection is being made anew") from error
        except self._binding.rados.Error as error:
            code = getattr(error, "errno", None) or errno.EIO
            self._lost = self._lost or code in _GONE
            raise OSError(code, f"{self.name}: {error}") from error
