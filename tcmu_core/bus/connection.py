"""One connection to the bus: the name, the object manager, the handlers' objects and the handler manager."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import pydbus
from gi.repository import Gio, GLib, GObject

from tcmu_core.bus.check import Checker, Later, Verdict, split_config
from tcmu_core.bus.export import ACCESS_DENIED, Call, Exported, ask_bus
from tcmu_core.bus.external import External, Externals
from tcmu_core.bus.glib import GLibThread
from tcmu_core.bus.interface import (
    BUS_NAME,
    HANDLER_XML,
    MANAGER_PATH,
    MANAGER_XML,
    ROOT_PATH,
    ROOT_XML,
    MediumResult,
    handler_path,
    path_error,
)
from tcmu_core.errors import ConfigError
from tcmu_core.handlers.registry import Handler

log = logging.getLogger("tcmu.bus")

CHANGE_SECONDS = 20.0  # targetcli's call gives up after 25 s
CLOSE_SECONDS = 3.0  # for GDBus's worker to let go of a connection; less than service.STOP_SECONDS

_never_closed: list[Any] = []  # anchors of connections that did not close in time: to free one would be a risk

ChangeMedium = Callable[[str, str, int, str], Future[MediumResult]]


class Unavailable(Exception):
    """There is no bus, or the name can't be ours; the message says what to do about it."""


class Connection:
    """Owns the name from the end of `__init__` until `close`. Lives on the bus's thread; `lost` is called there.

    Raises:
        Unavailable: nothing is left behind.
    """

    def __init__(
        self,
        thread: GLibThread,
        address: str,
        handlers: Iterable[Handler],
        change_medium: ChangeMedium,
        lost: Callable[[str], None],
    ) -> None:
        self.external: frozenset[str] = frozenset()
        self._thread = thread
        self._change_medium = change_medium
        self._objects: dict[str, Exported] = {}  # by subtype
        self._shown: dict[str, Handler] = {}  # those of the objects that are our own
        self._unfit: set[str] = set()
        self._name: Any = None
        self._bus = _connect(address)
        self._anchor = anchor(self._bus.con)
        self.dbus_bus_acquired()
        self._closed_id = self._bus.con.connect(
            "closed", lambda _con, _by_peer, error: lost(error.message if error else "closed")
        )
        self._root = self._export(ROOT_PATH, ROOT_XML, {"GetManagedObjects": self._managed_objects})
        self._externals = Externals(thread, self._bus, self._taken, self._publish_external, self._retract_external)
        self._manager = self._export(MANAGER_PATH, MANAGER_XML, {"RegisterHandler": self._externals.register})
        self.show(handlers)
        try:
            self._name = self._own_name()
        except Unavailable:
            self.close()
            raise
        self.dbus_name_acquired()

    def dbus_bus_acquired(self) -> None:
        """Say so in the log, in the C runner's words."""
        log.debug("bus %s acquired", BUS_NAME)

    def dbus_name_acquired(self) -> None:
        """Say so in the log, in the C runner's words."""
        log.debug("name %s acquired", BUS_NAME)

    def close(self) -> None:
        """Give the name back, take every object off the bus and close the connection."""
        con = self._bus.con
        con.disconnect(self._closed_id)
        if self._name is not None and not con.is_closed():
            _quietly(self._name.unown)
        self._externals.close()
        for exported in [*self._objects.values(), self._manager, self._root]:
            exported.close()
        self._objects.clear()
        if not con.is_closed():
            _quietly(con.close_sync, None)
        deadline = time.monotonic() + CLOSE_SECONDS
        while not con.is_closed() and time.monotonic() < deadline:
            time.sleep(0.005)
        if con.is_closed():
            self._anchor.unset()
        else:
            _never_closed.append(self._anchor)

    # -- handlers ---------------------------------------------------------------------------------------------------

    def show(self, handlers: Iterable[Handler]) -> None:
        """Export exactly these handlers, broken ones left out, beside the external ones."""
        wanted = {handler.name: handler for handler in handlers if not handler.error and self._fits(handler.name)}
        for subtype in [name for name, handler in self._shown.items() if wanted.get(name) != handler]:
            del self._shown[subtype]
            self._retract(subtype)
        for subtype, handler in sorted(wanted.items()):
            if subtype in self._shown:
                continue
            self._externals.forget(subtype)  # our own comes first
            self._shown[subtype] = handler
            checker = Checker(handler)

            def check(call: Call, config: str, checker: Checker = checker) -> Verdict | Later[Verdict]:
                # Who may ask the handler itself is root; see Checker.check.
                return checker.check(config, trusted=call.from_root())

            self._publish(subtype, handler.config_desc, check, self._change)

    def _fits(self, subtype: str) -> bool:
        problem = path_error(subtype)
        if problem and subtype not in self._unfit:
            self._unfit.add(subtype)
            log.warning("handler %r can't be shown on D-Bus, so targetcli does not list it: %s", subtype, problem)
        return not problem

    def _publish(self, subtype: str, desc: str, check: Callable[..., Any], change: Callable[..., Any]) -> None:
        def change_medium(call: Call, name: str, size: int, config: str) -> MediumResult | Later[MediumResult]:
            call.only_root()
            result: MediumResult | Later[MediumResult] = change(subtype, name, size, config)
            return result

        exported = self._export(
            handler_path(subtype),
            HANDLER_XML,
            {"CheckConfig": check, "ChangeMedium": change_medium},
            {"ConfigDesc": desc},
        )
        self._objects[subtype] = exported
        self._root.emit("InterfacesAdded", "(oa{sa{sv}})", exported.path, exported.managed())

    def _retract(self, subtype: str) -> None:
        exported = self._objects.pop(subtype)
        exported.close()
        if not self._bus.con.is_closed():
            self._root.emit("InterfacesRemoved", "(oas)", exported.path, [exported.interface])

    def _managed_objects(self, _call: Call) -> tuple[dict[str, Any]]:
        # The handler manager is left out on purpose: targetcli takes every managed object for a handler.
        return ({exported.path: exported.managed() for exported in self._objects.values()},)

    def _change(self, subtype: str, name: str, size: int, config: str) -> MediumResult | Later[MediumResult]:
        try:
            cfgstring = split_config(subtype, config)
        except ConfigError as error:
            return -errno.EINVAL, str(error)
        answer: Future[MediumResult] = Future()
        self._change_medium(subtype, name, size, cfgstring).add_done_callback(
            lambda done: answer.set_result(_medium_result(subtype, name, done))
        )
        late = -errno.ETIMEDOUT, f"the change did not end within {CHANGE_SECONDS:g} s"
        return Later(answer, CHANGE_SECONDS, late)

    # -- external handlers ------------------------------------------------------------------------------------------

    def _taken(self, subtype: str) -> str:
        handler = self._shown.get(subtype)
        return handler.source if handler is not None else ""

    def _publish_external(self, external: External) -> None:
        def check(call: Call, config: str) -> Verdict | Later[Verdict]:
            return self._externals.check(external, call, config)

        def change(subtype: str, _name: str, _size: int, _config: str) -> MediumResult:
            return -errno.EOPNOTSUPP, f"handler {subtype!r} belongs to {external.bus_name}: ask that program"

        self._publish(external.subtype, external.desc, check, change)
        self.external = self._externals.subtypes()

    def _retract_external(self, subtype: str) -> None:
        self._retract(subtype)
        self.external = self._externals.subtypes()

    # -- the bus ----------------------------------------------------------------------------------------------------

    def _export(
        self, path: str, xml: str, methods: dict[str, Callable[..., Any]], properties: dict[str, str] | None = None
    ) -> Exported:
        return Exported(self._thread, self._bus, path, xml, methods, properties)

    def _own_name(self) -> Any:
        try:
            # Never to be replaced: whoever may own the name would else take it from a running service.
            return self._bus.request_name(BUS_NAME, allow_replacement=False, replace=False)
        except GLib.Error as error:
            if Gio.DBusError.get_remote_error(error) == ACCESS_DENIED:
                raise Unavailable(
                    f"the bus does not let us own {BUS_NAME}: run as root, and `tcmu install-service` for the policy"
                ) from error
            raise Unavailable(f"{BUS_NAME} can't be owned: {error.message}") from error
        except RuntimeError as error:  # pydbus's, for each refusal in the reply
            raise Unavailable(f"{BUS_NAME} belongs to {self._rival()}: stop that one") from error

    def _rival(self) -> str:
        try:
            return f"process {ask_bus(self._bus, 'GetConnectionUnixProcessID', BUS_NAME, 'u')}"
        except GLib.Error:
            return "another program"


def anchor(con: Any) -> Any:
    """Return what holds a reference to a connection in C, until `unset` is called on it.

    GDBus's worker thread takes a reference for each message while it holds a lock of all connections. Were that the
    second one, PyGObject would be told and wait for the GIL there, while a connection that the garbage collector
    frees, with the GIL, waits for that lock: the whole process would stand still.
    """
    return GObject.Value(Gio.DBusConnection, con)


def _connect(address: str) -> Any:
    """Return a pydbus bus; raises `Unavailable`."""
    try:
        if not address:
            # `pydbus.SystemBus()` would share its connection with the process and end it when the bus stops.
            address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or Gio.dbus_address_get_for_bus_sync(
                Gio.BusType.SYSTEM, None
            )
        bus = pydbus.connect(address)
    except GLib.Error as error:
        raise Unavailable(
            f"{error.message}; `systemctl start dbus` (without systemd: `dbus-daemon --system --fork`) starts the bus, "
            "which is used as soon as it is there"
        ) from error
    bus.con.set_exit_on_close(False)
    return bus


def _medium_result(subtype: str, name: str, done: Future[MediumResult]) -> MediumResult:
    error = done.exception()
    if error is None:
        return done.result()
    if isinstance(error, ConfigError):
        return -errno.EINVAL, str(error)
    if isinstance(error, NotImplementedError):
        return -errno.EOPNOTSUPP, str(error) or f"handler {subtype!r} can't change a medium"
    if isinstance(error, OSError):
        return -(error.errno or errno.EIO), str(error)
    log.error("changing the medium of %s/%s failed", subtype, name, exc_info=error)
    return -errno.EIO, f"internal error: {error!r}"


def _quietly(fn: Callable[..., object], *args: object) -> None:
    """Call what can only fail because the bus has gone in the meantime."""
    try:
        fn(*args)
    except GLib.Error as error:
        log.debug("leaving the bus: %s", error.message)
