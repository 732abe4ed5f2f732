from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core import ConfigError
from tcmu_core.bus import BusService
from tcmu_core.bus.interface import BUS_NAME

from .conftest import AS_NOBODY, OPEN_POLICY, PrivateBus, make_handler

ROOT = "/org/kernel/TCMUService1"
DBUS_CALL = ("call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
Serve = Callable[..., BusService]

CHANGE_MEDIUM = ("call", BUS_NAME, f"{ROOT}/file", BUS_NAME, "ChangeMedium", "sts", "cd", "0", "file//x")
REGISTER = (
    "call",
    BUS_NAME,
    f"{ROOT}/HandlerManager1",
    f"{BUS_NAME}.HandlerManager1",
    "RegisterHandler",
    "ss",
    "x",
    "",
)


@pytest.mark.parametrize("name", [BUS_NAME, f"{BUS_NAME}.HandlerManager1", f"{BUS_NAME}.HandlerManager1.foo"])
def test_the_policy_lets_root_alone_own_the_names(name: str, bus: PrivateBus) -> None:
    request = (*DBUS_CALL, "RequestName", "su", name, "4")
    refused = bus.busctl(*request, user=AS_NOBODY)
    assert refused.returncode != 0
    assert "Access denied" in refused.stderr
    assert bus.busctl(*request).stdout == "u 1\n"


@pytest.mark.parametrize("call", [CHANGE_MEDIUM, REGISTER], ids=["ChangeMedium", "RegisterHandler"])
def test_the_policy_lets_root_alone_change_anything(call: tuple[str, ...], bus: PrivateBus, serve: Serve) -> None:
    serve(bus, make_handler("file"))
    refused = bus.busctl(*call, user=AS_NOBODY)
    assert refused.returncode != 0
    assert "Access denied" in refused.stderr
    assert bus.busctl(*call).returncode == 0


@pytest.mark.parametrize("call", [CHANGE_MEDIUM, REGISTER], ids=["ChangeMedium", "RegisterHandler"])
def test_under_a_policy_that_allows_all_the_service_itself_refuses(
    call: tuple[str, ...], private_bus: Callable[[str], PrivateBus], serve: Serve
) -> None:
    bus = private_bus(OPEN_POLICY)
    changed: list[object] = []
    serve(bus, make_handler("file"), change_medium=lambda *args: (changed.append(args), (0, ""))[1])
    _, dest, path, interface, member, _, *arguments = call
    gdbus = ("gdbus", "call", "--address", bus.address, "--dest", dest, "--object-path", path)
    refused = subprocess.run(
        [*AS_NOBODY, *gdbus, "--method", f"{interface}.{member}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert f"AccessDenied: only root may call {member}" in refused.stderr
    assert changed == []


def test_everybody_may_look(bus: PrivateBus, serve: Serve) -> None:
    serve(bus, make_handler("file", desc="file/PATH"))
    managed = bus.busctl(
        "call", BUS_NAME, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", user=AS_NOBODY
    )
    assert f'"{ROOT}/file"' in managed.stdout
    shown = bus.busctl("get-property", BUS_NAME, f"{ROOT}/file", BUS_NAME, "ConfigDesc", user=AS_NOBODY)
    assert shown.stdout == 's "file/PATH"\n'
    assert f"{ROOT}/file" in bus.busctl("tree", BUS_NAME, user=AS_NOBODY).stdout


def test_nobody_writes_a_property(bus: PrivateBus, serve: Serve) -> None:
    serve(bus, make_handler("file"))
    for user in (AS_NOBODY, ()):
        written = bus.busctl("set-property", BUS_NAME, f"{ROOT}/file", BUS_NAME, "ConfigDesc", "s", "mine", user=user)
        assert written.returncode != 0
    shown = bus.busctl("get-property", BUS_NAME, f"{ROOT}/file", BUS_NAME, "ConfigDesc")
    assert shown.stdout == 's "what it takes"\n'


def test_an_unprivileged_check_learns_nothing_and_runs_no_handler(
    bus: PrivateBus, serve: Serve, tmp_path: Path
) -> None:
    asked: list[str] = []

    def leaky(cfgstring: str) -> None:
        asked.append(cfgstring)
        if not os.path.exists(cfgstring):
            raise ConfigError(f"{cfgstring} does not exist")

    secret = tmp_path / "secret"
    secret.touch()
    serve(bus, make_handler("file", leaky))

    def check(path: str, user: tuple[str, ...]) -> str:
        call = ("call", BUS_NAME, f"{ROOT}/file", BUS_NAME, "CheckConfig", "s", f"file/{path}")
        return bus.busctl(*call, user=user).stdout

    assert check(str(secret), AS_NOBODY) == check("/no/such/file", AS_NOBODY)
    assert asked == []
    assert check("a:b", AS_NOBODY).startswith("bs false")
    assert check(str(secret), ()) == 'bs true "success"\n'
    assert check("/no/such/file", ()) == 'bs false "/no/such/file does not exist"\n'
