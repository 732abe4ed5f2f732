"""Whether somebody has the name, as `tcmu doctor` asks a real bus."""

from __future__ import annotations

import shutil

from gi.repository import Gio, GLib

from tcmu_core.bus.interface import BUS_NAME
from tcmu_core.doctor.bus_side import is_owned
from tests.bus.conftest import OPEN_POLICY, PrivateBus


def test_the_name_has_an_owner_as_long_as_somebody_has_it() -> None:
    bus = PrivateBus(OPEN_POLICY)
    bus.start()
    try:
        assert not is_owned(bus.address)
        owner = bus.connect()
        owner.call_sync(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName",
            GLib.Variant("(su)", (BUS_NAME, 0)), None, Gio.DBusCallFlags.NONE, 5000, None,
        )  # fmt: skip
        assert is_owned(bus.address)
    finally:
        bus.stop()
        shutil.rmtree(bus.directory)
