"""BusService: org.kernel.TCMUService1 for the supervisor, on a thread of its own.

The runner never depends on the bus: what is missing is said in one line, a bus that comes or returns later is used.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from tcmu_core.bus.interface import MediumResult
from tcmu_core.handlers.registry import Handler

if TYPE_CHECKING:
    from tcmu_core.bus.connection import Connection
    from tcmu_core.bus.glib import GLibThread

log = logging.getLogger("tcmu.bus")

FIRST_RETRY = 0.5  # seconds; doubled up to LAST_RETRY
LAST_RETRY = 30.0
STOP_SECONDS = 5.0

ChangeMedium = Callable[[str, str, int, str], "MediumResult | Future[MediumResult]"]
Post = Callable[..., object]

_CONSEQUENCE = "D-Bus is off, so targetcli does not list the handlers"
_INSTALL = (
    "`pip install 'tcmu-core[dbus]'` brings it "
    "(on Debian after `apt-get install libgirepository1.0-dev libcairo2-dev pkg-config gcc`)"
)


class BusService:
    """The handlers on the system bus.

    `change_medium(subtype, name, size, cfgstring)` is called by way of `post` (the supervisor's `loop.post`) with the
    device's name as the kernel knows it, the size in bytes and the cfgstring without `<subtype>/`; it returns 0 or a
    negative errno with a message, a Future of these, or raises `ConfigError` or `OSError`. `address` is the bus's,
    where it is not the system's.
    """

    def __init__(
        self, handlers: Iterable[Handler], *, change_medium: ChangeMedium, post: Post, address: str = ""
    ) -> None:
        self._handlers = tuple(handlers)
        self._change_medium = change_medium
        self._post = post
        self._address = address
        self._thread: GLibThread | None = None
        self._connection: Connection | None = None
        self._owned = threading.Event()
        self._tried = threading.Event()
        self._complaint = ""
        self._retry = FIRST_RETRY
        self._stopping = False

    @property
    def connected(self) -> bool:
        """Return whether the name is ours at this moment."""
        return self._owned.is_set()

    @property
    def external(self) -> frozenset[str]:
        """Return the subtypes that other programs serve and have registered: their devices are not ours to answer."""
        connection = self._connection
        return connection.external if connection is not None else frozenset()

    def start(self, seconds: float = 5.0) -> bool:
        """Start the service; returns whether the name is ours.

        Waits up to `seconds` for the first attempt to end; later ones go on in the background.
        """
        try:
            from tcmu_core.bus.connection import Connection
            from tcmu_core.bus.glib import GLibThread
        except (ImportError, ValueError) as error:  # gi raises ValueError for a missing or older typelib
            log.warning("%s: %s; %s", _CONSEQUENCE, error, _INSTALL)
            return False
        self._thread = GLibThread("tcmu-dbus")
        self._thread.start()
        self._thread.post(self._connect, Connection)
        self._tried.wait(seconds)
        return self.connected

    def stop(self) -> None:
        """Give the name back and end the thread; bounded in time."""
        thread = self._thread
        if thread is None:
            return
        self._stopping = True
        thread.post(self._disconnect)
        if not thread.stop(STOP_SECONDS):
            log.warning("the D-Bus thread did not end within %g s", STOP_SECONDS)
        self._thread = None

    def update(self, handlers: Iterable[Handler]) -> None:
        """Show these handlers from now on; what came and went is announced. Safe from any thread."""
        self._handlers = tuple(handlers)
        if self._thread is not None:
            self._thread.post(self._show)

    # -- on the bus's thread ----------------------------------------------------------------------------------------

    def _connect(self, kind: type[Connection]) -> None:
        from tcmu_core.bus.connection import Unavailable

        assert self._thread is not None
        if self._stopping:
            return
        try:
            self._connection = kind(
                self._thread, self._address, self._handlers, self._call_change_medium, lambda why: self._lost(kind, why)
            )
        except Unavailable as error:
            self._complain(str(error))
            self._try_later(kind)
        else:
            self._complaint = ""
            self._retry = FIRST_RETRY
            self._owned.set()
        self._tried.set()

    def _lost(self, kind: type[Connection], why: str) -> None:
        """The bus closed the connection."""
        self._disconnect()
        if not self._stopping:
            self._complain(f"the connection to the bus was lost ({why}); it is used again as soon as it is there")
            self._try_later(kind)

    def _try_later(self, kind: type[Connection]) -> None:
        assert self._thread is not None
        self._thread.call_later(self._retry, self._connect, kind)
        self._retry = min(2 * self._retry, LAST_RETRY)

    def _complain(self, reason: str) -> None:
        """Log why there is no service, once for each reason."""
        if reason != self._complaint:
            self._complaint = reason
            log.warning("%s: %s", _CONSEQUENCE, reason)

    def _disconnect(self) -> None:
        self._owned.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _show(self) -> None:
        if self._connection is not None:
            self._connection.show(self._handlers)

    # -- on the supervisor's loop -----------------------------------------------------------------------------------

    def _call_change_medium(self, subtype: str, name: str, size: int, cfgstring: str) -> Future[MediumResult]:
        """Have the supervisor change a medium; the future is its answer."""
        answer: Future[MediumResult] = Future()
        self._post(self._run_change_medium, answer, (subtype, name, size, cfgstring))
        return answer

    def _run_change_medium(self, answer: Future[MediumResult], arguments: tuple[str, str, int, str]) -> None:
        try:
            result = self._change_medium(*arguments)
        except Exception as error:
            answer.set_exception(error)
            return
        if isinstance(result, Future):
            result.add_done_callback(lambda done: _copy(done, answer))
        else:
            answer.set_result(result)


def _copy(done: Future[Any], answer: Future[Any]) -> None:
    error = done.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
