"""Each check of `tcmu doctor`, on a host that has the fault and on one that has not."""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.bus.interface import BUS_NAME
from tcmu_core.doctor import bus_side, conf_side, kernel_side, plugin_side, process_side
from tcmu_core.doctor.examine import CHECKS, examine
from tcmu_core.doctor.finding import Finding, Severity, System
from tcmu_core.errors import ConfigError, TcmuError
from tcmu_core.filters.registry import FilterRegistry, FoundFilter
from tcmu_core.state import Places

OK, NOTE, WARNING, ERROR = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.ERROR
TARGET = "[targets]\n[[iqn.2025-01.local.tcmu:a]]\n[[[lun 0]]]\nhandler = file\ncfgstring = {path}\nsize = 1M\n"


@pytest.fixture
def host(tmp_path: Path) -> Any:
    """Make a host out of files and their contents; `conf` is its tcmu.conf."""

    def make(files: dict[str, str] | None = None, conf: str | None = None, **more: Any) -> System:
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        config = tmp_path / "tcmu.conf"
        if conf is not None:
            config.write_text(conf)
            config.chmod(0o600)
        return System(**{"root": tmp_path, "config": config, "places": Places.of(tmp_path), "release": "6.1.0", **more})

    return make


def worst(findings: Iterable[Finding]) -> Severity:
    return max(one.severity for one in findings)


def refuse() -> Any:
    raise TcmuError("nobody is there")


LOADED = {"sys/module/target_core_user/x": ""}
LIO = {"sys/kernel/config/target/version": ""}
MODULES = {"lib/modules/6.1.0/modules.dep": "kernel/drivers/target/target_core_user.ko.xz: kernel/uio.ko.xz\n"}


@pytest.mark.parametrize(
    ("files", "severity", "cure"), [(LOADED, OK, ""), (MODULES, NOTE, "modprobe"), ({}, NOTE, "mod")]
)
def test_the_kernels_module_is_loaded_or_can_be(host: Any, files: Any, severity: Severity, cure: str) -> None:
    (found,) = kernel_side.module(host(files))
    assert (found.severity, found.cure.startswith(cure)) == (severity, True)


@pytest.mark.parametrize(("files", "severity"), [({**LOADED, **LIO}, OK), (LOADED, ERROR), ({}, NOTE)])
def test_configfs_is_mounted_where_the_module_is(host: Any, files: Any, severity: Severity) -> None:
    assert worst(kernel_side.configfs(host(files))) is severity


@pytest.mark.parametrize(
    ("files", "version", "severity"),
    [({}, lambda: 2, OK), ({}, lambda: 1, WARNING), ({}, refuse, NOTE), (LOADED, refuse, ERROR)],
)
def test_netlink_takes_answers(host: Any, files: Any, version: Any, severity: Severity) -> None:
    assert worst(kernel_side.netlink(host(files), version)) is severity


DEVICE = {"sys/class/uio/uio0/name": "tcm-user/1/one/file//x.img\n"}
NODE = {"dev/uio0": ""}


def test_a_device_that_somebody_serves_is_in_order(host: Any, tmp_path: Path) -> None:
    system = host({**DEVICE, **NODE}, euid=0)
    held = tmp_path / "proc" / "7" / "fd"
    held.mkdir(parents=True)
    (held / "3").symlink_to(tmp_path / "dev" / "uio0")
    assert worst(kernel_side.devices(system)) is OK


def test_a_device_that_nobody_serves_is_blocked(host: Any) -> None:
    (found,) = kernel_side.devices(host({**DEVICE, **NODE}, euid=0))
    assert (found.looked_at, found.severity) == ("device file/one", ERROR)
    assert found.cure.startswith("tcmu-runner ")
    (found,) = kernel_side.devices(host({"run/systemd/system/x": ""}, euid=0))
    assert found.cure.startswith("systemctl start tcmu-runner")


def test_who_is_not_root_is_told_that_he_can_not_see_who_serves_a_device(host: Any) -> None:
    (found,) = kernel_side.devices(host({**DEVICE, **NODE}, euid=1000))
    assert (found.severity, found.cure) == (NOTE, "sudo tcmu doctor")


def test_a_device_without_its_node_and_no_device_at_all(host: Any) -> None:
    assert worst(kernel_side.devices(host())) is OK
    assert worst(kernel_side.devices(host(DEVICE, euid=0))) is ERROR


def test_the_packages_for_dbus(host: Any) -> None:
    def load(name: str) -> object:
        if name == "gi":
            raise ImportError("no gi")
        return None

    found = list(bus_side.packages(host(), load))
    assert [(one.looked_at, one.severity) for one in found] == [("PyGObject", NOTE), ("pydbus", OK)]


def test_the_policy_for_dbus(host: Any) -> None:
    assert worst(bus_side.policy(host())) is NOTE
    policy = {"etc/dbus-1/system.d/t.conf": f'<allow own="{BUS_NAME}"/>'}
    assert worst(bus_side.policy(host(policy))) is OK


@pytest.mark.parametrize(("ask", "severity"), [(lambda: True, OK), (lambda: False, NOTE), (refuse, NOTE), (None, NOTE)])
def test_the_name_on_the_bus(host: Any, ask: Any, severity: Severity) -> None:
    assert worst(bus_side.name(host(), ask)) is severity


def test_the_handlers(host: Any, tmp_path: Path) -> None:
    assert worst(plugin_side.handlers(host())) is OK
    (tmp_path / "handler_bad.py").write_text("import no_such_module\n")
    found = list(plugin_side.handlers(host(handler_paths=(tmp_path,))))
    assert worst(found) is ERROR
    assert "no_such_module" in next(one.text for one in found if one.looked_at == "handler bad")


def test_the_filters(host: Any) -> None:
    registry = FilterRegistry()
    assert worst(plugin_side.filters(host(), lambda: registry)) is OK
    registry.filters["bad"] = FoundFilter("bad", "t 1.0", error="it has no 'read'")
    assert worst(plugin_side.filters(host(), lambda: registry)) is ERROR


def test_handlers_of_another_version_than_the_core(host: Any) -> None:
    assert worst(plugin_side.versions(host())) is OK
    found = list(plugin_side.versions(host(), "0.0.1"))
    assert "tcmu-file" in next(one.cure for one in found if one.looked_at == "handler file")


@pytest.mark.parametrize(
    ("conf", "severity", "text"),
    [
        (None, OK, "is not there"),
        ("log_level = 3\n", OK, "is right"),
        ("log_levl = 3\n", ERROR, "tcmu.conf:1: unknown key 'log_levl': did you mean 'log_level'?"),
        (
            TARGET.format(path="/x").replace("file", "fiel"),
            ERROR,
            "tcmu.conf:4: no handler 'fiel': did you mean 'file'?",
        ),
        (TARGET.format(path="/x;direcd=1"), ERROR, "did you mean 'direct'?"),
        ("[handlers]\n[[fiel]]\ndirect = yes\n", ERROR, "tcmu.conf:3: [handlers] [[fiel]]: no handler 'fiel'"),
        ("[handlers]\n[[file]]\ndirecd = yes\n", ERROR, "has no option 'direcd': did you mean 'direct'?"),
        ("log_level = 9\n", WARNING, "log_level 9"),
    ],
)
def test_the_configuration(host: Any, conf: str | None, severity: Severity, text: str) -> None:
    found = list(conf_side.configuration(host(conf=conf)))
    assert worst(found) is severity
    assert any(text in one.text for one in found), found


def test_a_configuration_that_is_roots_alone_is_no_fault(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, **_: Any) -> Any:
        raise ConfigError(f"{path}: Permission denied") from PermissionError(13, "Permission denied")

    monkeypatch.setattr(conf_side, "load", load)
    (found,) = conf_side.configuration(host())
    assert (found.severity, found.cure) == (NOTE, "sudo tcmu doctor")
    assert not [*conf_side.access(host()), *conf_side.ports(host()), *conf_side.images(host())]


def test_secrets_that_others_may_read(host: Any) -> None:
    system = host(conf="[portal]\n[[chap]]\nalice = a long enough password\n")
    assert worst(conf_side.configuration(system)) is OK
    system.config.chmod(0o644)
    (found,) = conf_side.configuration(system)
    assert (found.severity, found.cure) == (WARNING, f"chmod 600 {system.config}")


@pytest.mark.parametrize(
    ("portal", "severity"),
    [
        ("", OK),
        ("[portal]\nlisten = 0.0.0.0:3260\ninsecure = yes\n", WARNING),
        ("[portal]\nlisten = 0.0.0.0:3260\nacl = iqn.1993-08.org.debian:*\n", OK),
    ],
)
def test_a_target_that_is_open_to_everybody(host: Any, portal: str, severity: Severity) -> None:
    assert worst(conf_side.access(host(conf=portal + TARGET.format(path="/x")))) is severity


def test_a_port_that_another_program_has(host: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        tables = {f"proc/net/{name}": Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")}
    for listen, severity in ((f"127.0.0.1:{port}", ERROR), (f"[::]:{port}", OK), (f"0.0.0.0:{port}", ERROR)):
        conf = f"[portal]\nlisten = '{listen}'\ninsecure = yes\n" + TARGET.format(path="/x")
        assert worst(conf_side.ports(host(tables, conf, euid=0))) is severity, listen


def test_a_port_is_the_daemons_while_it_is_there(host: Any, tmp_path: Path) -> None:
    line = "  sl  local_address\n 0: 0100007F:0CBC 00000000:0000 0A 0\n"
    system = host({"proc/net/tcp": line}, TARGET.format(path="/x"), euid=0)
    assert worst(conf_side.ports(host(conf=TARGET.format(path="/x"), euid=1000))) is NOTE
    assert worst(conf_side.ports(system)) is ERROR
    system.places.lock.write_text("")
    with system.places.lock.open("r+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        child = os.fork()
        if child == 0:  # a lock is a process's: none of its own stands in its way
            right = system.daemon == os.getppid() and worst(conf_side.ports(system)) is OK
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert system.daemon == 0


@pytest.mark.parametrize(("mode", "severity"), [(0o600, OK), (0o644, NOTE), (0o666, WARNING)])
def test_an_image_that_others_may_use(host: Any, tmp_path: Path, mode: int, severity: Severity) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    image.chmod(mode)
    assert worst(conf_side.images(host(conf=TARGET.format(path=image)))) is severity


def test_an_image_that_can_not_be_there(host: Any, tmp_path: Path) -> None:
    assert not [*conf_side.images(host(conf=TARGET.format(path=tmp_path / "new.img")))]
    (found,) = conf_side.images(host(conf=TARGET.format(path=tmp_path / "nowhere" / "disk.img")))
    assert (found.severity, found.cure) == (ERROR, f"mkdir -p {tmp_path / 'nowhere'}")


def test_a_cure_is_a_command_whatever_a_file_is_called(host: Any, tmp_path: Path) -> None:
    held = tmp_path / "it's held"
    held.mkdir()
    image = held / "a disc.iso"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o666)
    conf = TARGET.format(path=f"ro/{image}").replace("handler = file", "handler = fbo")
    (found, _) = conf_side.images(host(conf=conf))
    assert shlex.split(found.cure) == ["chmod", "o-rw", str(image)]
    (found,) = conf_side.images(host(conf=TARGET.format(path=held / "no where" / "disk.img")))
    assert shlex.split(found.cure) == ["mkdir", "-p", str(held / "no where")]
    system = host(conf="[portal]\n[[chap]]\nalice = long enough to be one\n")
    os.rename(system.config, held / "tcmu.conf")
    (held / "tcmu.conf").chmod(0o644)
    (found,) = conf_side.configuration(replace(system, config=held / "tcmu.conf"))
    assert shlex.split(found.cure) == ["chmod", "600", str(held / "tcmu.conf")]
    (held / "tcmu.conf").write_text("nonsense = 1\n")
    (found,) = conf_side.configuration(replace(system, config=held / "tcmu.conf"))
    assert shlex.split(found.cure.partition("then: ")[2]) == [
        "tcmu-runner", "--check-config", "--config", str(held / "tcmu.conf")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "severity", "cure"), [(0o700, OK, ""), (0o755, OK, ""), (0o777, WARNING, "chmod go-w"), (0o1777, OK, "")]
)
def test_the_directories_of_the_daemon(host: Any, tmp_path: Path, mode: int, severity: Severity, cure: str) -> None:
    places = Places(*(tmp_path / name for name in ("lock", "run", "state", "log")))
    assert worst(process_side.directories(host(places=places))) is OK  # they are made
    places.state.mkdir()
    places.state.chmod(mode)
    found = list(process_side.directories(host(places=places)))
    assert worst(found) is severity
    assert found[0].cure.startswith(cure)


def test_a_directory_of_the_daemon_that_is_none(host: Any, tmp_path: Path) -> None:
    places = Places(*(tmp_path / name for name in ("lock", "run", "state", "log")))
    places.hosts.touch()
    found = list(process_side.directories(host(places=places)))
    assert (found[0].severity, found[0].cure) == (ERROR, f"mv {places.hosts} {places.hosts}.old")


def test_the_limits(host: Any) -> None:
    assert worst(process_side.files(host(), lambda _: (1024, 1 << 20))) is OK
    assert worst(process_side.files(host(), lambda _: (1024, 4096))) is WARNING
    small = lambda _: (65536, 65536)  # noqa: E731
    assert worst(process_side.memlock(host(euid=1000), small)) is OK
    assert worst(process_side.memlock(host(euid=1000, release="5.10.0-33-amd64"), small)) is WARNING


def test_io_uring_and_what_is_used_instead(host: Any) -> None:
    def refused() -> None:
        raise PermissionError(1, "no")

    assert worst(process_side.io_uring(host(), lambda: None)) is OK
    (found,) = process_side.io_uring(host({"proc/sys/kernel/io_uring_disabled": "2\n"}), refused)
    assert (found.severity, found.cure) == (NOTE, "sysctl -w kernel.io_uring_disabled=0")
    assert "threads are used" in found.text


def test_a_check_that_hangs_or_breaks_is_a_finding_and_the_others_go_on(host: Any) -> None:
    end = threading.Event()

    def hangs(_: System) -> Any:
        end.wait()
        yield from ()

    def breaks(_: System) -> Any:
        raise ValueError("odd")

    def works(_: System) -> Any:
        yield Finding("works", OK, "fine")

    found = examine(host(), {"hangs": hangs, "breaks": breaks, "works": works}, 0.2)
    end.set()
    assert [(one.looked_at, one.severity) for one in found] == [("hangs", WARNING), ("breaks", WARNING), ("works", OK)]


def test_every_finding_that_is_none_of_the_good_ones_has_a_sentence(host: Any) -> None:
    assert all(one.text for one in examine(host(), CHECKS))
