"""Shelf: a disk's persistent reservations in an object beside the image, which all its gateways have in common.

The object's version decides between gateways that change it at once; a notification tells those that watch it, and
ends when they have taken the change. The connection is the shelf's own: it outlives those that lose the lock.
"""

from __future__ import annotations

import contextlib
import ctypes
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
BEAT = "2"  # seconds between two signs of life to the OSD
WATCH = 6  # seconds after which a gateway that is silent watches no more
# Seconds that other gateways have to take a change, before the one that has the lock loses it. More than for a silent
# one to be forgotten: as long as somebody does not answer, librados's Python binding does not tell who has.
PATIENCE = 8.0
TAKING = 5.0  # seconds that a gateway gives itself to take one, so that the other hears in time that it has not
TAKEN = b"taken"  # what a gateway that has taken a change says to a notification; any other answer is none
_NOT_TAKEN = b""  # of librados's Python binding: without an answer it sends one of any length
_OTHER_VERSION = (errno.ERANGE, errno.EOVERFLOW)  # what an assertion of the version fails with
_GONE = (errno.ESHUTDOWN, errno.ENOTCONN, errno.ETIMEDOUT)


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
        self._lost = False  # whether it has to be made anew
        self._untold = False  # whether something may be stored that others were not told of
        self._telling: Future[None] | None = None
        self._cluster: Any = None
        self._ioctx: Any = None
        self._watch: Any = None
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

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
        """Call back when another gateway has replaced the state, and once now: it may have done so since `load`."""
        self._callbacks.append(callback)
        callback()
        return lambda: self._callbacks.remove(callback)

    # -- the same, on threads that may wait -------------------------------------------------------------------------

    def _replace(self, state: bytes, version: str) -> str:
        with self._asking() as ioctx:
            operation = ioctx.create_write_op()
            try:
                operation.assert_version(int(version))
                operation.write_full(state)
                ioctx.operate_write_op(operation, self.name)
            except self._binding.rados.Error as error:
                if getattr(error, "errno", 0) not in _OTHER_VERSION:
                    self._untold = True  # it may yet be stored: what nobody has answered is not undone
                    raise
                self._read(ioctx)
                raise StaleVersion(f"{self.name}: another gateway has changed it") from error
            finally:
                ioctx.release_write_op(operation)
            self._known = state, str(ioctx.get_last_version())
            return self._known[1]

    def _announce(self) -> None:
        done = threading.Event()
        aware = {self.instance}
        self._untold = True

        def ended(_completion: Any, _code: int, answers: Any, _silent: Any) -> None:
            aware.update(int(client) for client, _cookie, said in answers or () if said == TAKEN)
            done.set()

        with self._asking() as ioctx:  # for a moment: others may want an answer before we have ours
            completion = ioctx.aio_notify(self.name, ended, "", int(PATIENCE * 1000))
        done.wait(4 * PATIENCE)
        del completion
        self.fence(aware)
        self._untold = False

    def refresh(self) -> None:
        """Read the object; what it holds is in force here when this returns.

        Raises:
            OSError: it can't be read, or was not taken in time.
        """
        with self._asking() as ioctx:
            self._read(ioctx)
        pending = [callback() for callback in tuple(self._callbacks)]
        if wait(pending, TAKING).not_done:
            raise TimeoutError(errno.ETIMEDOUT, f"{self.name}: the change was not taken in time")
        for one in pending:
            one.result()

    def tend(self) -> bool:
        """Watch again, if the cluster has forgotten that we do, and tell others what they may not have heard.

        Returns whether the connection is another one. Raises `OSError`.
        """
        again = self._lost
        if again:
            self.close()
            try:
                self._connect()
                self.refresh()
            except OSError:
                self._lost = True
                raise
        if self._untold and (self._telling is None or self._telling.done()):
            self._telling = self.announce()
        return again

    # -- the connection ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        with self._guard, self._errors():
            self._cluster = connected(self._binding, self._config, objecter_tick_interval=BEAT)
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
            self._lost = False
            self._watch = self._ioctx.watch(self.name, self._notified, self._unwatched, WATCH)
            self._read(self._ioctx)

    def close(self) -> None:
        """Let go of the connection. Never raises."""
        with self._guard:
            parts = (self._watch, "close"), (self._ioctx, "close"), (self._cluster, "shutdown")
            self._watch = self._ioctx = self._cluster = None
        for part, end in parts:  # the first one waits for notifications that are being taken, and those for the guard
            if part is None:
                continue
            try:
                getattr(part, end)()
            except self._binding.rados.Error:
                # A watch that the cluster did not end tries again when it is freed, and complains aloud: it never is.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(part))

    def _read(self, ioctx: Any) -> None:
        state = bytes(ioctx.read(self.name, MOST))
        self._known = state, str(ioctx.get_last_version())

    def _notified(self, _notification: int, notifier: int, _watch: int, _data: bytes) -> bytes:
        """Take another gateway's change, and say so to the one that waits for it. On a thread of librados's."""
        if notifier == self.instance:
            return TAKEN
        try:
            self.refresh()
        except OSError as error:
            self._device.log.error("reservations that another gateway has changed can't be taken: %s", error)
            return _NOT_TAKEN
        return TAKEN

    def _unwatched(self, *_why: int) -> None:
        self._lost = True

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Any]:
        """Have the connection to oneself; raises OSError."""
        with self._guard, self._errors():
            if self._ioctx is None:
                raise OSError(errno.ENOTCONN, f"{self.name}: the connection is being made anew")
            yield self._ioctx

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._binding.rados.Error as error:
            code = getattr(error, "errno", None) or errno.EIO
            self._lost = self._lost or code in _GONE
            raise OSError(code, f"{self.name}: {error}") from error
