from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tcmu_core.bus import BusService, external
from tcmu_core.bus.interface import BUS_NAME
from tests.waiting import wait_for

from .conftest import AS_NOBODY, OPEN_POLICY, Client, PrivateBus, make_handler

ROOT = "/org/kernel/TCMUService1"
Serve = Callable[..., BusService]

OWN_NAME = """
import signal, sys, pydbus
bus = pydbus.connect(sys.argv[1])
bus.request_name(sys.argv[2])
print("owned", flush=True)
signal.pause()
"""


class Program:
    """An external handler's process."""

    def __init__(self, bus: PrivateBus, subtype: str, *options: str, user: tuple[str, ...] = ()) -> None:
        script = Path(__file__).with_name("external_handler.py")
        self.process = subprocess.Popen(
            [*user, sys.executable, str(script), bus.address, subtype, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("release\n")
        self.process.stdin.flush()
        assert self.line() == "released"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def program(bus: PrivateBus) -> Iterator[Callable[..., Program]]:
    made: list[Program] = []

    def start(subtype: str, *options: str, on: PrivateBus = bus, user: tuple[str, ...] = ()) -> Program:
        made.append(Program(on, subtype, *options, user=user))
        return made[-1]

    yield start
    for program in made:
        program.kill()


def paths(client: Client) -> list[str]:
    return sorted(path.removeprefix(f"{ROOT}/") for path in client.managed())


Start = Callable[..., Program]


@pytest.mark.parametrize("options", [(), ("late",)], ids=["name first", "name while registering"])
def test_a_registered_program_is_a_handler_until_it_dies(
    options: tuple[str, ...], bus: PrivateBus, client: Client, serve: Serve, program: Start
) -> None:
    service = serve(bus, make_handler("ram"))
    running = program("ext", *options)
    assert running.line() == "True succeeded"
    assert client.managed()[f"{ROOT}/ext"] == {BUS_NAME: {"ConfigDesc": "its desc"}}
    assert service.external == {"ext"}
    running.kill()
    wait_for(lambda: paths(client) == ["ram"])
    assert service.external == frozenset()


def test_a_program_that_gives_its_name_up_is_no_handler_any_more(
    bus: PrivateBus, client: Client, serve: Serve, program: Start
) -> None:
    serve(bus)
    running = program("ext")
    running.line()
    running.release()
    wait_for(lambda: paths(client) == [])


def test_check_config_is_the_programs(bus: PrivateBus, client: Client, serve: Serve, program: Start) -> None:
    serve(bus)
    program("ext").line()
    check = (f"{ROOT}/ext", BUS_NAME, "CheckConfig", "(s)")
    assert client.call(*check, "ext/good") == (True, "external saw ext/good")
    assert client.call(*check, "ext/bad") == (False, "external saw ext/bad")
    valid, message = client.call(*check, "ext/a:b")
    assert not valid
    assert "it holds a colon" in message


def test_an_unprivileged_check_does_not_reach_the_program(bus: PrivateBus, serve: Serve, program: Start) -> None:
    serve(bus)
    program("ext").line()
    asked = bus.busctl("call", BUS_NAME, f"{ROOT}/ext", BUS_NAME, "CheckConfig", "s", "ext/bad", user=AS_NOBODY)
    assert asked.stdout.startswith("bs true")
    assert "external saw" not in asked.stdout


def test_a_medium_of_a_program_is_its_own_to_change(
    bus: PrivateBus, client: Client, serve: Serve, program: Start
) -> None:
    serve(bus)
    program("ext").line()
    rc, message = client.call(f"{ROOT}/ext", BUS_NAME, "ChangeMedium", "(sts)", "cd", 0, "ext/x")
    assert rc < 0
    assert f"belongs to {BUS_NAME}.HandlerManager1.ext" in message


def test_without_its_bus_name_a_program_is_refused(
    bus: PrivateBus, client: Client, serve: Serve, program: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "APPEAR_SECONDS", 0.05)
    serve(bus)
    assert program("ext", "nameless").line() == (f"False Cannot find handler bus name: {BUS_NAME}.HandlerManager1.ext")
    assert paths(client) == []


def test_a_name_that_a_handler_of_ours_has_is_refused(
    bus: PrivateBus, client: Client, serve: Serve, program: Start
) -> None:
    serve(bus, make_handler("ram"))
    assert program("ram").line() == "False handler 'ram' is already there: tcmu-ram 1.0"
    assert client.managed()[f"{ROOT}/ram"][BUS_NAME]["ConfigDesc"] == "what it takes"


@pytest.mark.parametrize("subtype", ["", "a-b", "a.b", "1st", "HandlerManager1", "x" * 250])
def test_a_subtype_that_the_bus_cannot_name_is_refused(
    subtype: str, bus: PrivateBus, client: Client, serve: Serve
) -> None:
    serve(bus)
    manager = (f"{ROOT}/HandlerManager1", f"{BUS_NAME}.HandlerManager1")
    done, message = client.call(*manager, "RegisterHandler", "(ss)", subtype, "")
    assert not done
    assert "is no usable subtype" in message


def test_a_program_that_registers_twice_is_one_handler(
    bus: PrivateBus, client: Client, serve: Serve, program: Start
) -> None:
    serve(bus)
    program("ext").line()
    manager = (f"{ROOT}/HandlerManager1", f"{BUS_NAME}.HandlerManager1")
    assert client.call(*manager, "RegisterHandler", "(ss)", "ext", "newer") == (True, "succeeded")
    assert client.managed() == {f"{ROOT}/ext": {BUS_NAME: {"ConfigDesc": "newer"}}}


def test_a_bus_name_that_is_not_roots_is_refused(private_bus: Callable[[str], PrivateBus], serve: Serve) -> None:
    bus = private_bus(OPEN_POLICY)
    serve(bus)
    client = Client(bus)
    name = f"{BUS_NAME}.HandlerManager1.ext"
    owner = subprocess.Popen([*AS_NOBODY, sys.executable, "-c", OWN_NAME, bus.address, name], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    try:
        assert owner.stdout.readline() == b"owned\n"
        manager = (f"{ROOT}/HandlerManager1", f"{BUS_NAME}.HandlerManager1")
        answer = client.call(*manager, "RegisterHandler", "(ss)", "ext", "")
        assert answer == (False, f"{name} does not belong to root")
        assert paths(client) == []
    finally:
        owner.kill()
        owner.communicate()
        client.close()
