"""tcmu.conf: what is wrong in it, who may log in from where, ports, and the permissions of images."""

from __future__ import annotations

import ipaddress
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from tcmu_core.config.check import problems as lun_problems
from tcmu_core.config.check import unknown
from tcmu_core.config.configuration import DEFAULT_PATH, Config
from tcmu_core.config.file import load
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.doctor.finding import Finding, Severity, System
from tcmu_core.errors import ConfigError, TcmuError
from tcmu_core.iscsi.settings import format_address, parse_address

_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


def configuration(system: System) -> Iterator[Finding]:
    """Read tcmu.conf as the daemon does, and compare it with the handlers."""
    try:
        config = load(system.config, must_exist=system.config_must_exist)
        found = [*lun_problems(config, system.registry), *unknown(config, system.registry)]
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            yield Finding("tcmu.conf", Severity.NOTE, f"Only root can read {system.config}.", "sudo tcmu doctor")
            return
        config, found = Config(), str(error).splitlines()
    for text in found:
        place = text.split(": ")[0]
        which = "" if system.config == DEFAULT_PATH else f" --config {shlex.quote(str(system.config))}"
        yield Finding("tcmu.conf", Severity.ERROR, text, f"edit {place}, then: tcmu-runner --check-config{which}")
    for text in config.warnings:
        said, separator, command = text.rpartition(": chmod ")
        cure = f"chmod {command}" if separator else f"edit {system.config}"
        yield Finding("tcmu.conf", Severity.WARNING, said if separator else text, cure)
    if not found and not config.warnings:
        there = "is right" if system.config.exists() else "is not there: the defaults hold"
        yield Finding("tcmu.conf", Severity.OK, f"{system.config} {there}.")


def read(system: System) -> Config | None:
    """Return tcmu.conf, None where it can't be read or has mistakes: `configuration` tells them."""
    try:
        return load(system.config)
    except ConfigError:
        return None


def access(system: System) -> Iterator[Finding]:
    """Look for targets that anybody may log in to, where others than this host can."""
    config = read(system)
    if config is None:
        return
    portal = config.portal
    reached = [text for text in portal.addresses if not ipaddress.ip_address(parse_address(text)[0]).is_loopback]
    opened = [target.name for target in config.targets if not portal.access_to(target.name).restricted]
    if not config.targets:
        yield Finding("access", Severity.OK, "tcmu.conf has no targets.")
    elif not reached or not opened:
        why = "only this host reaches the portal" if not reached else "each has CHAP users or an ACL"
        yield Finding("access", Severity.OK, f"No target is open to everybody: {why}.")
    for name in opened if reached else ():
        text = (
            f"Everybody who reaches {', '.join(reached)} may log in and write: neither CHAP nor an ACL keeps them out."
        )
        cure = f"edit {system.config}: give [[{name}]] a [[[chap]]], or [portal] listen = 127.0.0.1"
        yield Finding(f"target {name}", Severity.WARNING, text, cure)


def ports(system: System) -> Iterator[Finding]:
    """Look whether somebody else listens where the daemon wants to."""
    config = read(system)
    if config is None or not config.targets:
        return
    taken = listening(system)
    for text in config.portal.addresses:
        host, port = parse_address(text)
        what = f"port {format_address(host, port)}"
        wanted = ipaddress.ip_address(host)
        clash = any(
            number == port and (other == wanted or (other.version == wanted.version and both_any(other, wanted)))
            for other, number in taken
        )
        if not clash:
            yield Finding(what, Severity.OK, "Nobody listens there." if port else "The kernel chooses one.")
        elif system.daemon != 0:
            yield Finding(what, Severity.OK, "It is listened on, and tcmu-runner is there.")
        elif system.euid:
            text = "It is listened on; only root can see whether by tcmu-runner."
            yield Finding(what, Severity.NOTE, text, "sudo tcmu doctor")
        else:
            text = "Another program listens there, so tcmu-runner can't."
            yield Finding(what, Severity.ERROR, text, f"ss -ltnp 'sport = :{port}'  (and stop what it names)")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def both_any(one: _Address, other: _Address) -> bool:
    """Whether one of two addresses of a kind stands for all of them."""
    return one.is_unspecified or other.is_unspecified


def listening(system: System) -> set[tuple[_Address, int]]:
    """Return where TCP is listened on (proc(5), /proc/net/tcp): addresses are words of the machine's byte order."""
    found: set[tuple[_Address, int]] = set()
    for name in ("tcp", "tcp6"):
        for line in system.text(f"/proc/net/{name}").splitlines()[1:]:
            fields = line.split()
            if len(fields) < 4 or fields[3] != _LISTEN:
                continue
            address, _, port = fields[1].partition(":")
            raw = bytes.fromhex(address)
            words = [raw[at : at + 4] for at in range(0, len(raw), 4)]
            data = b"".join(int.from_bytes(word).to_bytes(4, sys.byteorder) for word in words)
            found.add((ipaddress.ip_address(data), int(port, 16)))
    return found


def images(system: System) -> Iterator[Finding]:
    """Look for the files that disks stand on: whether they can be there, and others may read or write them."""
    config = read(system)
    if config is None:
        return
    count = 0
    for target in config.targets:
        for lun in target.luns:
            handler = system.registry.handlers.get(lun.handler)
            if handler is None or handler.options is None or handler.options.body is None:
                continue
            if not handler.options.body.is_path:
                continue
            try:
                spec = DiskSpec(lun.handler).configured(lun.cfgstring)
                body = handler.options.parse(spec.cfgstring, config.handlers.get(lun.handler, {})).body
                path = Path(handler.options.body.split(body)[1])
                status = path.stat()
            except FileNotFoundError:
                if not path.parent.exists():
                    text = f"{path.parent} is not there, so the LUN can't be opened."
                    cure = f"mkdir -p {shlex.quote(str(path.parent))}"
                    yield Finding(f"image of {lun.name}", Severity.ERROR, text, cure)
                continue  # it is made when it is opened
            except (TcmuError, OSError):
                continue  # told elsewhere
            count += 1
            file = shlex.quote(str(path))
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o002:
                text = f"{path}: everybody on this host may write into the disk."
                yield Finding(f"image of {lun.name}", Severity.WARNING, text, f"chmod o-rw {file}")
            elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004:
                text = f"{path}: everybody on this host may read the disk."
                yield Finding(f"image of {lun.name}", Severity.NOTE, text, f"chmod o-r {file}")
    if count:
        yield Finding("images", Severity.OK, f"Looked at {count}.")
