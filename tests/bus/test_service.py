from __future__ import annotations

import errno
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from gi.repository import Gio, GLib

from tcmu_core import ConfigError
from tcmu_core.bus import BusService, check, connection
from tcmu_core.bus.export import Exported
from tcmu_core.bus.interface import BUS_NAME, OBJECT_MANAGER
from tcmu_core.loop import Loop

from .conftest import Client, PrivateBus, make_handler

ROOT = "/org/kernel/TCMUService1"
Serve = Callable[..., BusService]

# The interface as the C runner's users know it, and ChangeMedium as targetcli calls it.
INTERFACES = {
    ROOT: {
        OBJECT_MANAGER: {
            "GetManagedObjects": "->a{oa{sa{sv}}}",
            "InterfacesAdded": "oa{sa{sv}}",
            "InterfacesRemoved": "oas",
        }
    },
    f"{ROOT}/HandlerManager1": {f"{BUS_NAME}.HandlerManager1": {"RegisterHandler": "ss->bs"}},
    f"{ROOT}/file": {BUS_NAME: {"CheckConfig": "s->bs", "ChangeMedium": "sts->is", "ConfigDesc": "s read"}},
}


def members(xml: str) -> dict[str, dict[str, str]]:
    """Return {interface: {member: signature}} of introspection data, without what every object has."""
    found: dict[str, dict[str, str]] = {}
    for interface in ET.fromstring(xml).iter("interface"):
        if interface.attrib["name"].startswith("org.freedesktop.DBus.") and interface.attrib["name"] != OBJECT_MANAGER:
            continue
        table = found.setdefault(interface.attrib["name"], {})
        for item in interface:
            args = [(arg.get("direction"), arg.attrib["type"]) for arg in item.iter("arg")]
            into = "".join(kind for direction, kind in args if direction == "in")
            out = "".join(kind for direction, kind in args if direction != "in")
            if item.tag == "property":
                table[item.attrib["name"]] = f"{item.attrib['type']} {item.attrib['access']}"
            else:
                table[item.attrib["name"]] = f"{into}->{out}" if item.tag == "method" else out
    return found


@pytest.mark.parametrize("path", INTERFACES)
def test_introspection_shows_the_reference_interface(path: str, bus: PrivateBus, client: Client, serve: Serve) -> None:
    serve(bus, make_handler("file"))
    (xml,) = client.call(path, "org.freedesktop.DBus.Introspectable", "Introspect")
    assert members(xml) == INTERFACES[path]


def test_each_usable_handler_is_one_managed_object(bus: PrivateBus, client: Client, serve: Serve) -> None:
    serve(bus, make_handler("file", desc="file/PATH"), make_handler("ram", desc="ram/"))
    assert client.managed() == {
        f"{ROOT}/file": {BUS_NAME: {"ConfigDesc": "file/PATH"}},
        f"{ROOT}/ram": {BUS_NAME: {"ConfigDesc": "ram/"}},
    }


@pytest.mark.parametrize("name", ["with-dash", "HandlerManager1", "größe"])
def test_a_name_that_no_object_path_can_hold_is_left_out_and_said(
    name: str, bus: PrivateBus, client: Client, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    serve(bus, make_handler(name), make_handler("ram"))
    assert list(client.managed()) == [f"{ROOT}/ram"]
    assert any(repr(name) in line and "targetcli does not list it" in line for line in caplog.messages)


def test_a_broken_handler_is_left_out(bus: PrivateBus, client: Client, serve: Serve) -> None:
    broken = make_handler("a b")
    assert broken.error
    serve(bus, broken, make_handler("ram"))
    assert list(client.managed()) == [f"{ROOT}/ram"]


def test_a_description_that_is_not_valid_text_hides_no_handler(bus: PrivateBus, client: Client, serve: Serve) -> None:
    serve(bus, make_handler("odd", desc="a\udcffb\0c"), make_handler("ram"))
    assert client.managed()[f"{ROOT}/odd"][BUS_NAME]["ConfigDesc"] == "a?b c"


def test_properties_answer_get_and_getall(bus: PrivateBus, client: Client, serve: Serve) -> None:
    serve(bus, make_handler("ram", desc="ram/"))
    properties = "org.freedesktop.DBus.Properties"
    path = f"{ROOT}/ram"
    assert client.call(path, properties, "Get", "(ss)", BUS_NAME, "ConfigDesc") == ("ram/",)
    assert client.call(path, properties, "GetAll", "(s)", BUS_NAME) == ({"ConfigDesc": "ram/"},)


def test_targetclis_own_calls(bus: PrivateBus, serve: Serve) -> None:
    def check_path(cfgstring: str) -> None:
        if not cfgstring.startswith("/"):
            raise ConfigError(f"{cfgstring!r} is no absolute path")

    serve(bus, make_handler("file", check_path), change_medium=lambda *args: (0, f"{args}"))
    con = bus.connect()
    flags = Gio.DBusProxyFlags.NONE
    manager = Gio.DBusProxy.new_sync(con, flags, None, BUS_NAME, ROOT, OBJECT_MANAGER, None)
    ((path, properties),) = manager.GetManagedObjects().items()
    handler = Gio.DBusProxy.new_sync(con, flags, None, BUS_NAME, path, BUS_NAME, None)
    assert path[path.rfind("/") + 1 :] == "file"
    assert properties[BUS_NAME]["ConfigDesc"] == "what it takes"
    assert handler.CheckConfig("(s)", "file//srv/disk") == (True, "success")
    assert handler.CheckConfig("(s)", "file/disk") == (False, "'disk' is no absolute path")
    assert handler.ChangeMedium("(sts)", "cd", 650 << 20, "file//srv/b.iso") == (
        0,
        "('file', 'cd', 681574400, '/srv/b.iso')",
    )
    con.close_sync(None)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("ram/x", "does not begin with 'file/'"),
        ("file", "does not begin with 'file/'"),
        ("file/a:b", "it holds a colon"),
        ("file/a,b", "it holds a comma"),
        ("file/a b", "it holds a space"),
        ("file/a\nb", "it holds a newline"),
        ("file/" + "x" * 251, "longer than the 255 bytes"),
        ("file/;tcmur_cmd_timeout=3;/x", "did you mean 'tcmur_cmd_time_out'?"),
    ],
)
def test_a_configuration_of_wrong_form_is_refused_in_words(
    config: str, words: str, bus: PrivateBus, client: Client, serve: Serve
) -> None:
    serve(bus, make_handler("file"))
    valid, message = client.call(f"{ROOT}/file", BUS_NAME, "CheckConfig", "(s)", config)
    assert not valid
    assert words in message


def test_the_handler_sees_its_cfgstring_without_runner_options(bus: PrivateBus, client: Client, serve: Serve) -> None:
    seen: list[str] = []
    serve(bus, make_handler("file", seen.append))
    client.call(f"{ROOT}/file", BUS_NAME, "CheckConfig", "(s)", "file/;tcmur_cmd_time_out=3;/srv/x")
    assert seen == ["/srv/x"]


def test_a_check_that_raises_is_an_answer(bus: PrivateBus, client: Client, serve: Serve) -> None:
    def fail(_cfgstring: str) -> None:
        raise RuntimeError("oops")

    serve(bus, make_handler("bad", fail))
    valid, message = client.call(f"{ROOT}/bad", BUS_NAME, "CheckConfig", "(s)", "bad/x")
    assert (valid, message) == (False, "handler 'bad' broke while it looked at its cfgstring: RuntimeError: oops")


def test_an_answer_that_is_not_valid_text_still_arrives(bus: PrivateBus, client: Client, serve: Serve) -> None:
    def refuse(_cfgstring: str) -> None:
        raise ConfigError("no \udcff here")

    serve(bus, make_handler("file", refuse))
    assert client.call(f"{ROOT}/file", BUS_NAME, "CheckConfig", "(s)", "file/x") == (False, "no ? here")


def test_an_answer_of_the_wrong_type_is_an_error_to_the_caller(bus: PrivateBus, client: Client, serve: Serve) -> None:
    serve(bus, make_handler("fbo"), change_medium=lambda *_: (1 << 40, "too much"))
    with pytest.raises(GLib.Error, match=r"Error\.Failed"):
        client.call(f"{ROOT}/fbo", BUS_NAME, "ChangeMedium", "(sts)", "cd", 0, "fbo//x.iso")


def test_a_check_that_hangs_delays_no_other_call(bus: PrivateBus, client: Client, serve: Serve) -> None:
    release = threading.Event()
    serve(bus, make_handler("slow", lambda _cfgstring: void(release.wait())), make_handler("ram"))
    slow: Future[Any] = Future()

    def ask() -> None:
        slow.set_result(Client(bus).call(f"{ROOT}/slow", BUS_NAME, "CheckConfig", "(s)", "slow/x"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert client.call(f"{ROOT}/ram", BUS_NAME, "CheckConfig", "(s)", "ram/x") == (True, "success")
        assert not slow.done()
    finally:
        release.set()
        thread.join()
    assert slow.result() == (True, "success")


def void(_value: object) -> None:
    """Swallow a value where None is wanted."""


def test_a_check_that_never_ends_is_answered_and_then_refused(
    bus: PrivateBus, client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(check, "MAX_PENDING_CHECKS", 1)
    release = threading.Event()
    serve(bus, make_handler("slow", lambda _cfgstring: void(release.wait())))
    try:
        arguments = (f"{ROOT}/slow", BUS_NAME, "CheckConfig", "(s)", "slow/x")
        assert client.call(*arguments) == (False, "handler 'slow' did not answer within 0.01 s")
        assert client.call(*arguments) == (False, "handler 'slow' has not ended 1 earlier checks")
    finally:
        release.set()


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        ((0, ""), (0, "")),
        ((-errno.EBUSY, "in use"), (-errno.EBUSY, "in use")),
        (ConfigError("no such image"), (-errno.EINVAL, "no such image")),
        (OSError(errno.ENOENT, "gone"), (-errno.ENOENT, "[Errno 2] gone")),
        (NotImplementedError("no changer"), (-errno.EOPNOTSUPP, "no changer")),
        (RuntimeError("oops"), (-errno.EIO, "internal error: RuntimeError('oops')")),
    ],
)
@pytest.mark.parametrize("later", [False, True], ids=["now", "later"])
def test_change_medium_gives_the_supervisors_answer(
    outcome: Any, answer: Any, later: bool, bus: PrivateBus, client: Client, serve: Serve
) -> None:
    def change(*_arguments: object) -> Any:
        if later:
            future: Future[Any] = Future()
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
            return future
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    serve(bus, make_handler("fbo"), change_medium=change)
    assert client.call(f"{ROOT}/fbo", BUS_NAME, "ChangeMedium", "(sts)", "cd", 0, "fbo//x.iso") == answer


def test_change_medium_runs_on_the_supervisors_loop(bus: PrivateBus, client: Client, serve: Serve, loop: Loop) -> None:
    threads: list[threading.Thread] = []
    here: Future[threading.Thread] = Future()
    loop.post(lambda: here.set_result(threading.current_thread()))

    def change(*_arguments: object) -> tuple[int, str]:
        threads.append(threading.current_thread())
        return 0, ""

    serve(bus, make_handler("fbo"), change_medium=change)
    client.call(f"{ROOT}/fbo", BUS_NAME, "ChangeMedium", "(sts)", "cd", 0, "fbo//x.iso")
    assert threads == [here.result()]


def test_change_medium_that_never_ends_is_answered(
    bus: PrivateBus, client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHANGE_SECONDS", 0.01)
    serve(bus, make_handler("fbo"), change_medium=lambda *_: Future())
    rc, message = client.call(f"{ROOT}/fbo", BUS_NAME, "ChangeMedium", "(sts)", "cd", 0, "fbo//x.iso")
    assert (rc, message) == (-errno.ETIMEDOUT, "the change did not end within 0.01 s")


def test_change_medium_refuses_a_wrong_form_before_the_supervisor_sees_it(
    bus: PrivateBus, client: Client, serve: Serve
) -> None:
    seen: list[object] = []
    serve(bus, make_handler("fbo"), change_medium=lambda *args: (seen.append(args), (0, ""))[1])
    rc, message = client.call(f"{ROOT}/fbo", BUS_NAME, "ChangeMedium", "(sts)", "cd", 0, "file//x.iso")
    assert rc == -errno.EINVAL
    assert "does not begin with 'fbo/'" in message
    assert seen == []


def test_update_announces_what_came_and_went(bus: PrivateBus, client: Client, serve: Serve) -> None:
    service = serve(bus, make_handler("file"), make_handler("ram"))
    context = GLib.MainContext.new()
    context.push_thread_default()
    signals: list[tuple[str, Any]] = []
    client.con.signal_subscribe(
        BUS_NAME, OBJECT_MANAGER, None, ROOT, None, Gio.DBusSignalFlags.NONE,
        lambda _con, _sender, _path, _interface, member, values: signals.append((member, values.unpack())),
    )  # fmt: skip
    client.managed()  # from here on the bus knows of the subscription
    service.update([make_handler("ram", desc="other"), make_handler("qcow")])
    while len(signals) < 4:
        context.iteration(True)
    context.pop_thread_default()
    assert signals == [
        ("InterfacesRemoved", (f"{ROOT}/file", [BUS_NAME])),
        ("InterfacesRemoved", (f"{ROOT}/ram", [BUS_NAME])),
        ("InterfacesAdded", (f"{ROOT}/qcow", {BUS_NAME: {"ConfigDesc": "what it takes"}})),
        ("InterfacesAdded", (f"{ROOT}/ram", {BUS_NAME: {"ConfigDesc": "other"}})),
    ]
    assert sorted(client.managed()) == [f"{ROOT}/qcow", f"{ROOT}/ram"]


def test_calls_leave_nothing_behind(
    bus: PrivateBus, client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []
    dispatch = Exported.call_method

    def watched(self: Exported, *arguments: Any) -> None:
        arguments[-1].weak_ref(freed.append, 1)
        dispatch(self, *arguments)

    monkeypatch.setattr(Exported, "call_method", watched)
    serve(bus, make_handler("ram", lambda _cfgstring: None))
    for _ in range(20):
        client.call(f"{ROOT}/ram", BUS_NAME, "CheckConfig", "(s)", "ram/x")
        client.managed()
    # An invocation lives until its reply is on its way: the last two may still be there.
    assert len(freed) >= 38


def test_objects_that_went_are_not_kept(bus: PrivateBus, client: Client, serve: Serve) -> None:
    service = serve(bus, make_handler("ram"))
    client.managed()
    before = len(Exported.SignalEmitted.map)
    service.update([])
    while client.managed():
        pass
    assert len(Exported.SignalEmitted.map) == before - 1
    service.stop()
    assert not any(exported.path.startswith(ROOT) for exported in Exported.SignalEmitted.map)
