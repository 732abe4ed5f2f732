from __future__ import annotations

import builtins
import gc
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
from gi.repository import Gio, GLib

from tcmu_core.bus import BusService, connection, service
from tcmu_core.bus.interface import BUS_NAME
from tcmu_core.loop import Loop
from tests.waiting import wait_for

from .conftest import OPEN_POLICY, SYSTEM_POLICY, Client, PrivateBus, make_handler, no_medium

Serve = Callable[..., BusService]


@pytest.fixture
def quick_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(service, "LAST_RETRY", 0.02)


@pytest.fixture
def unstarted(bus: PrivateBus, loop: Loop) -> Any:
    made = BusService([make_handler("ram")], change_medium=no_medium, post=loop.post, address=bus.address)
    yield made
    made.stop()


def test_the_start_up_lines_are_the_c_runners(bus: PrivateBus, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tcmu.bus")
    serve(bus, make_handler("ram"))
    lines = [(record.levelname, record.funcName, record.getMessage()) for record in caplog.records]
    assert lines == [
        ("DEBUG", "dbus_bus_acquired", f"bus {BUS_NAME} acquired"),
        ("DEBUG", "dbus_name_acquired", f"name {BUS_NAME} acquired"),
    ]


def test_stop_gives_the_name_back(bus: PrivateBus, client: Client, serve: Serve) -> None:
    running = serve(bus, make_handler("ram"))
    assert client.owner() == os.getpid()
    running.stop()
    assert not running.connected
    with pytest.raises(GLib.Error, match="NameHasNoOwner"):
        client.owner()


def test_a_second_stop_and_one_without_start_do_nothing(unstarted: BusService) -> None:
    unstarted.stop()
    unstarted.start()
    unstarted.stop()
    unstarted.stop()


@pytest.mark.usefixtures("quick_retry")
def test_a_bus_that_dies_and_returns_is_used_again(
    bus: PrivateBus, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    running = serve(bus, make_handler("ram"))
    bus.stop()
    wait_for(lambda: not running.connected)
    bus.start()
    wait_for(lambda: running.connected)
    client = Client(bus)
    assert list(client.managed()) == ["/org/kernel/TCMUService1/ram"]
    client.close()
    assert sum("connection to the bus was lost" in line for line in caplog.messages) == 1


@pytest.mark.usefixtures("quick_retry")
def test_without_a_bus_it_says_so_once_and_uses_the_bus_that_comes(
    bus: PrivateBus, unstarted: BusService, caplog: pytest.LogCaptureFixture
) -> None:
    bus.stop()
    assert not unstarted.start()
    bus.start()
    wait_for(lambda: unstarted.connected)
    (line,) = caplog.messages
    assert "targetcli does not list the handlers" in line
    assert "`systemctl start dbus`" in line


@pytest.mark.usefixtures("quick_retry")
def test_a_name_that_another_owns_is_taken_when_it_is_free(
    bus: PrivateBus, client: Client, unstarted: BusService, caplog: pytest.LogCaptureFixture
) -> None:
    client.con.pydbus.request_name(BUS_NAME, allow_replacement=True)
    assert not unstarted.start()
    assert caplog.messages == [
        "D-Bus is off, so targetcli does not list the handlers: "
        f"{BUS_NAME} belongs to process {os.getpid()}: stop that one"
    ]
    client.con.pydbus.dbus.ReleaseName(BUS_NAME)
    wait_for(lambda: unstarted.connected)


def test_nobody_can_take_the_name_from_a_running_service(
    private_bus: Callable[[str], PrivateBus], serve: Serve
) -> None:
    bus = private_bus(OPEN_POLICY)
    serve(bus, make_handler("ram"))
    client = Client(bus)
    with pytest.raises(RuntimeError, match="already exists"):
        client.con.pydbus.request_name(BUS_NAME, replace=True)
    client.close()


def test_without_the_policy_it_says_what_installs_it(
    private_bus: Callable[[str], PrivateBus], loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    bus = private_bus(SYSTEM_POLICY)
    running = BusService([], change_medium=no_medium, post=loop.post, address=bus.address)
    assert not running.start()
    running.stop()
    (line,) = caplog.messages
    assert "`tcmu install-service`" in line


@pytest.mark.parametrize("missing", ["pydbus", "gi"])
def test_without_the_packages_it_says_in_one_line_what_brings_them(
    missing: str,
    bus: PrivateBus,
    unstarted: BusService,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("tcmu_core.bus.connection"):
            raise ModuleNotFoundError(f"No module named {missing!r}")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert not unstarted.start()
    (line,) = caplog.messages
    assert f"No module named {missing!r}" in line
    assert "`pip install 'tcmu-core[dbus]'`" in line


def test_a_connection_that_was_given_up_is_freed(bus: PrivateBus, serve: Serve) -> None:
    running = serve(bus, make_handler("ram"))
    assert running._connection is not None
    freed: list[int] = []
    running._connection._bus.con.weak_ref(freed.append, 1)
    kept = len(connection._never_closed)
    running.stop()
    assert len(connection._never_closed) == kept  # it closed in time
    # GDBus's worker lets go of it in its own time, and what it leaves may be a circle.
    wait_for(lambda: gc.collect() >= 0 and bool(freed))


def test_a_live_connection_is_held_in_c_too(bus: PrivateBus, serve: Serve) -> None:
    # With one reference alone the process can deadlock: see tcmu_core.bus.connection.anchor.
    running = serve(bus, make_handler("ram"))
    assert running._connection is not None
    assert running._connection._bus.con.__grefcount__ >= 2


def test_the_process_survives_its_bus(bus: PrivateBus, serve: Serve) -> None:
    running = serve(bus, make_handler("ram"))
    assert running._connection is not None
    assert not running._connection._bus.con.get_exit_on_close()


def test_the_default_address_is_the_system_buss(bus: PrivateBus, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    running = BusService([], change_medium=no_medium, post=loop.post)
    assert running.start()
    running.stop()


def test_the_default_main_context_is_left_alone(bus: PrivateBus, serve: Serve) -> None:
    serve(bus, make_handler("ram"))
    assert GLib.MainContext.default().acquire()
    GLib.MainContext.default().release()
    assert Gio.bus_get_sync is not None
