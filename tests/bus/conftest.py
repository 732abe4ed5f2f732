"""A private bus with the policy of a system bus and ours, and a service on it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gi.repository import Gio, GLib

import tcmu_core
from tcmu_core.bus import BusService
from tcmu_core.bus.connection import anchor
from tcmu_core.bus.interface import BUS_NAME
from tcmu_core.handlers.registry import Handler, _inspect
from tcmu_core.loop import Loop

# What a system bus allows before any service's own policy: as the dbus package's system.conf has it.
SYSTEM_POLICY = """
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
"""
OPEN_POLICY = """
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
"""
POLICY_FILE = Path(str(files("tcmu_core") / "data" / "conf" / "tcmu-runner.dbus.conf"))
anchors: list[Any] = []  # the clients' connections, for the reason that `anchor` gives
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


class PrivateBus:
    """A dbus-daemon of our own, listening where any user may connect."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self.directory = Path(tempfile.mkdtemp(prefix="tcmu-bus-"))
        self.directory.chmod(0o755)
        self.address = f"unix:path={self.directory}/socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = self.directory / "bus.conf"
        config.write_text(
            '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" '
            '"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">\n'
            f"<busconfig><type>system</type><listen>{self.address}</listen>{self._policy}</busconfig>"
        )
        with (self.directory / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"],
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), (self.directory / "stderr").read_text()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def connect(self) -> Any:
        """Return a connection of a client of its own."""
        flags = Gio.DBusConnectionFlags
        con = Gio.DBusConnection.new_for_address_sync(
            self.address, flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
        )
        anchors.append(anchor(con))
        return con

    def busctl(self, *arguments: str, user: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run busctl on this bus, as root or as `user`."""
        command = [*user, "busctl", f"--address={self.address}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


class Client:
    """Synchronous calls from a connection of its own."""

    def __init__(self, bus: PrivateBus) -> None:
        self.con = bus.connect()

    def call(self, path: str, interface: str, member: str, signature: str = "()", *values: Any) -> Any:
        reply = self.con.call_sync(
            BUS_NAME,
            path,
            interface,
            member,
            GLib.Variant(signature, values),
            None,
            Gio.DBusCallFlags.NONE,
            30000,
            None,
        )
        return reply.unpack()

    def managed(self) -> dict[str, dict[str, dict[str, Any]]]:
        (objects,) = self.call("/org/kernel/TCMUService1", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        return dict(objects)

    def owner(self) -> int:
        """Return the process id behind the service's name."""
        reply = self.con.call_sync(
            "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetConnectionUnixProcessID",
            GLib.Variant("(s)", (BUS_NAME,)), None, Gio.DBusCallFlags.NONE, 30000, None,
        )  # fmt: skip
        return int(reply.unpack()[0])

    def close(self) -> None:
        self.con.close_sync(None)


def make_handler(name: str, check: Callable[[str], None] | None = None, desc: str = "what it takes") -> Handler:
    """Return a handler of this name as the registry would have loaded it."""
    module = ModuleType(f"handler_{name}")
    module.config_desc = desc  # type: ignore[attr-defined]

    @tcmu_core.hookimpl
    def open(device: tcmu_core.Device) -> None:
        device.size = 4096

    @tcmu_core.hookimpl
    def read(device: tcmu_core.Device, offset: int, buffers: list[memoryview]) -> None:
        pass

    module.open = open  # type: ignore[attr-defined]
    module.read = read  # type: ignore[attr-defined]
    if check is not None:

        @tcmu_core.hookimpl
        def check_config(cfgstring: str) -> None:
            check(cfgstring)

        module.check_config = check_config  # type: ignore[attr-defined]
    return _inspect(name, f"tcmu-{name} 1.0", "1.0", module)


def no_medium(subtype: str, name: str, size: int, cfgstring: str) -> tuple[int, str]:
    return -95, "not here"


@pytest.fixture
def private_bus() -> Iterator[Callable[[str], PrivateBus]]:
    """Make private buses that end with the test."""
    made: list[PrivateBus] = []

    def make(policy: str) -> PrivateBus:
        bus = PrivateBus(policy)
        made.append(bus)
        bus.start()
        return bus

    yield make
    for bus in made:
        bus.stop()
        shutil.rmtree(bus.directory)


@pytest.fixture
def bus(private_bus: Callable[[str], PrivateBus]) -> PrivateBus:
    """A bus with a system bus's policy and ours."""
    return private_bus(f"{SYSTEM_POLICY}<include>{POLICY_FILE}</include>")


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A supervisor's loop, running on a thread of its own."""
    loop = Loop()
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join()
    loop.close()


@pytest.fixture
def serve(loop: Loop) -> Iterator[Callable[..., BusService]]:
    """Start services that end with the test."""
    made: list[BusService] = []

    def start(bus: PrivateBus, *handlers: Handler, change_medium: Any = no_medium) -> BusService:
        service = BusService(handlers, change_medium=change_medium, post=loop.post, address=bus.address)
        made.append(service)
        assert service.start()
        return service

    yield start
    for service in made:
        service.stop()


@pytest.fixture
def client(bus: PrivateBus) -> Iterator[Client]:
    """A client on `bus`."""
    client = Client(bus)
    yield client
    client.close()
