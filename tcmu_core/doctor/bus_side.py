"""D-Bus, by which targetcli finds the handlers: the packages, the bus, the policy, and who has the name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from tcmu_core.bus.interface import BUS_NAME
from tcmu_core.doctor.finding import Finding, Severity, System

POLICIES = ("/etc/dbus-1/system.d", "/usr/share/dbus-1/system.d")
SOCKETS = ("/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket")
ASK_MILLISECONDS = 2000


def packages(_system: System, load: Callable[[str], object] = importlib.import_module) -> Iterator[Finding]:
    """Look whether PyGObject and pydbus can be imported."""
    for name, title in (("gi", "PyGObject"), ("pydbus", "pydbus")):
        try:
            load(name)
        except Exception as error:
            text = f"It can't be used ({error}): targetcli does not see the handlers."
            yield Finding(title, Severity.NOTE, text, "pip install 'tcmu-core[dbus]'")
        else:
            yield Finding(title, Severity.OK, "It is installed.")


def policy(system: System) -> Iterator[Finding]:
    """Look for a policy that allows the name."""
    for directory in POLICIES:
        for file in sorted(system.path(directory).glob("*.conf")):
            if f'own="{BUS_NAME}"' in system.text(f"{directory}/{file.name}"):
                yield Finding("D-Bus policy", Severity.OK, f"{directory}/{file.name} says who may own {BUS_NAME}.")
                return
    text = f"No policy lets anybody own {BUS_NAME}: targetcli does not see the handlers."
    yield Finding("D-Bus policy", Severity.NOTE, text, "tcmu install-service")


def name(system: System, ask: Callable[[], bool] | None = None) -> Iterator[Finding]:
    """Ask the system bus whether somebody has the name."""
    what = f"D-Bus name {BUS_NAME}"
    if ask is None and not any(system.path(socket).exists() for socket in SOCKETS):
        yield Finding(what, Severity.NOTE, "There is no system bus here.", "systemctl start dbus")
        return
    try:
        owned = (ask or is_owned)()
    except Exception as error:
        yield Finding(what, Severity.NOTE, f"The system bus can't be asked: {error}.", "systemctl status dbus")
        return
    if owned:
        yield Finding(what, Severity.OK, "It has an owner.")
    elif system.daemon:
        text = "tcmu-runner is there and does not have it: its log says why."
        yield Finding(what, Severity.WARNING, text, "systemctl restart tcmu-runner")
    else:
        yield Finding(what, Severity.NOTE, "Nobody has it: targetcli sees no handlers.", "systemctl start tcmu-runner")


def is_owned(address: str = "") -> bool:
    """Ask the system's bus, or the one at `address`, whether `BUS_NAME` has an owner."""
    from gi.repository import Gio, GLib

    kind = Gio.DBusConnectionFlags
    address = address or Gio.dbus_address_get_for_bus_sync(Gio.BusType.SYSTEM, None)
    flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION
    bus = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
    try:
        answer = bus.call_sync(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner",
            GLib.Variant("(s)", (BUS_NAME,)), None, Gio.DBusCallFlags.NONE, ASK_MILLISECONDS, None,
        )  # fmt: skip
        return bool(answer.unpack()[0])
    finally:
        bus.close_sync(None)
