"""Objects on the bus: pydbus's registration with a dispatcher that can answer later and knows who calls."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pydbus
from gi.repository import Gio, GLib, GObject
from pydbus.generic import signal
from pydbus.registration import ObjectRegistration

from tcmu_core.bus.check import Later
from tcmu_core.bus.glib import GLibThread
from tcmu_core.bus.interface import DBUS, DBUS_PATH, PROPERTIES

log = logging.getLogger("tcmu.bus")

BUS_TIMEOUT_MS = 2000  # what the bus daemon itself is given to answer

# GLib 2.84 annotated that a method call's closure owns the invocation; before, PyGObject leaks one reference per call.
_LEAKS_INVOCATIONS = (GLib.MAJOR_VERSION, GLib.MINOR_VERSION) < (2, 84)

ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
FAILED = "org.freedesktop.DBus.Error.Failed"
UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"
UNKNOWN_PROPERTY = "org.freedesktop.DBus.Error.UnknownProperty"
READ_ONLY = "org.freedesktop.DBus.Error.PropertyReadOnly"


class Refused(Exception):
    """A call ends with a D-Bus error: `name` is the error's, the message goes to the caller."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def ask_bus(bus: Any, member: str, name: str, reply: str) -> Any:
    """Call `member(name)` of the bus daemon and return its one result of the type `reply`; raises `GLib.Error`."""
    return bus.con.call_sync(
        DBUS, DBUS_PATH, DBUS, member, GLib.Variant("(s)", (name,)), GLib.VariantType(f"({reply})"),
        Gio.DBusCallFlags.NO_AUTO_START, BUS_TIMEOUT_MS, None,
    ).unpack()[0]  # fmt: skip


def is_root(bus: Any, name: str) -> bool:
    """Return whether the connection that owns `name` belongs to root; a connection that has gone does not."""
    with contextlib.suppress(GLib.Error):
        return bool(ask_bus(bus, "GetConnectionUnixUser", name, "u") == 0)
    return False


class Call:
    """One method call that waits for its answer; only the first answer counts. Used on the bus's thread."""

    def __init__(self, bus: Any, sender: str, member: str, out: str, invocation: Any) -> None:
        self.member = member
        self.sender = sender
        self._bus = bus
        self._out = out
        self._invocation = invocation

    def from_root(self) -> bool:
        """Return whether root is calling."""
        return is_root(self._bus, self.sender)

    def only_root(self) -> None:
        """Refuse the call of anybody else, whatever the bus's policy says."""
        if not self.from_root():
            raise Refused(ACCESS_DENIED, f"only root may call {self.member}")

    def answer(self, values: tuple[Any, ...]) -> None:
        """Return `values`, one for each out argument."""
        try:
            reply = GLib.Variant(
                self._out, tuple(clean(value) if isinstance(value, str) else value for value in values)
            )
        except (TypeError, ValueError, OverflowError) as error:  # a caller always gets an answer
            log.error("%s returned %r: %s", self.member, values, error)
            self.fail(error)
            return
        invocation = self._take()
        if invocation is not None:
            invocation.return_value(reply)
            _drop(invocation)

    def fail(self, error: BaseException) -> None:
        """Return an error."""
        invocation = self._take()
        if invocation is not None:
            name = error.name if isinstance(error, Refused) else FAILED
            invocation.return_dbus_error(name, clean(str(error) or repr(error)))
            _drop(invocation)

    def _take(self) -> Any:
        invocation, self._invocation = self._invocation, None
        return invocation


def clean(text: str) -> str:
    """Return `text` as D-Bus takes it: valid Unicode without NUL (D-Bus Specification, "Valid UTF-8 strings")."""
    return text.encode(errors="replace").decode().replace("\0", " ")


def _drop(invocation: Any) -> None:
    if _LEAKS_INVOCATIONS:
        GObject.Object._unref(invocation)


class Exported:
    """One object on the bus.

    `methods` maps a member's name to `function(call, *arguments)`, which returns the out arguments as a tuple, or a
    `Later` of them. `properties` are constant strings of the object's one interface.
    """

    SignalEmitted = signal()  # what pydbus's registration forwards to the bus

    def __init__(
        self,
        thread: GLibThread,
        bus: pydbus.bus.Bus,
        path: str,
        xml: str,
        methods: Mapping[str, Callable[..., Any]],
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self._thread = thread
        self._bus = bus
        self.path = path
        interfaces = Gio.DBusNodeInfo.new_for_xml(xml).interfaces
        self.interface: str = interfaces[0].name
        self._out = {
            method.name: f"({''.join(arg.signature for arg in method.out_args)})" for method in interfaces[0].methods
        }
        self._methods = methods
        self._properties = {name: clean(value) for name, value in (properties or {}).items()}
        self._registration = ObjectRegistration(bus, path, interfaces, self)

    def managed(self) -> dict[str, dict[str, Any]]:
        """Return the object's interfaces and properties as ObjectManager shows them."""
        return {self.interface: self._variants()}

    def emit(self, member: str, signature: str, *values: Any) -> None:
        """Emit a signal of the object's interface."""
        self.SignalEmitted(self.interface, member, GLib.Variant(signature, values))

    def close(self) -> None:
        """Take the object off the bus."""
        self._registration.unregister()
        type(self).SignalEmitted.map.pop(self, None)  # pydbus keeps an entry for every object that ever was

    # The signature is that of Gio.DBusInterfaceVTable's method_call.
    def call_method(
        self, _connection: Any, sender: str, _path: str, interface: str, member: str, parameters: Any, invocation: Any
    ) -> None:
        """Dispatch one method call."""
        call = Call(self._bus, sender, member, self._out.get(member, ""), invocation)
        try:
            if interface == PROPERTIES:
                self._call_properties(call, member, *parameters.unpack())
                return
            if interface != self.interface or member not in self._methods:
                raise Refused(UNKNOWN_METHOD, f"{self.path} has no method {interface}.{member}")
            result = self._methods[member](call, *parameters.unpack())
            if isinstance(result, Later):
                self._wait(call, result)
            else:
                call.answer(result)
        except Refused as error:
            call.fail(error)
        except Exception as error:
            log.exception("%s of %s failed", member, self.path)
            call.fail(error)

    def _wait(self, call: Call, later: Later[Any]) -> None:
        """Answer with the future's result, or with the fallback when it is late."""

        def finished(future: Any) -> None:
            cancel()
            error = future.exception()
            if error is None:
                call.answer(future.result())
            else:
                call.fail(error)

        cancel = self._thread.call_later(later.seconds, call.answer, later.fallback)
        later.future.add_done_callback(lambda future: self._thread.post(finished, future))

    def _call_properties(self, call: Call, member: str, interface: str, *arguments: Any) -> None:
        variants = self._variants() if interface == self.interface else {}
        if member == "GetAll":
            call._out = "(a{sv})"
            call.answer((variants,))
            return
        name = arguments[0]
        if name not in variants:
            raise Refused(UNKNOWN_PROPERTY, f"{self.path} has no property {interface}.{name}")
        if member == "Set":
            raise Refused(READ_ONLY, f"{interface}.{name} can't be written")
        call._out = "(v)"
        call.answer((variants[name],))

    def _variants(self) -> dict[str, Any]:
        return {name: GLib.Variant("s", value) for name, value in self._properties.items()}
