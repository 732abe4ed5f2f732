"""`tcmu install-service` and `uninstall-service`: systemd unit, D-Bus files, logrotate, tcmu.conf and man pages."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Any

from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import ConfigError

INSTALL_DESCRIPTION = """\
Install what tcmu-runner needs to run as a system service: the systemd unit,
D-Bus policy and activation, log rotation, tcmu.conf and the man pages. A
tcmu.conf that is there is kept, and so is any other file that is not ours,
unless --force moves it aside. Run it again after an upgrade.
"""
UNINSTALL_DESCRIPTION = """\
Stop the service and take away what `tcmu install-service` wrote, with the same
--root and --prefix. A tcmu.conf that was changed is kept, and files that
--force moved aside come back.
"""

# Every file of ours carries it: without it, a file is somebody else's. tcmu.conf is the administrator's from the start.
MARK = b"`tcmu install-service`"
SAVED = ".bak"  # ignored by dbus-daemon, systemd and logrotate alike
PACKAGED_EXEC = "/usr/bin/tcmu-runner"  # what the files in conf/ say


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of the package and where it goes; `{prefix}` is --prefix."""

    source: str
    target: str
    owned: bool = True  # False: the administrator's once it is there


ARTIFACTS = (
    Artifact("conf/tcmu-runner.service", "{prefix}/lib/systemd/system/tcmu-runner.service"),
    Artifact(
        "conf/org.kernel.TCMUService1.service",
        "{prefix}/share/dbus-1/system-services/org.kernel.TCMUService1.service",
    ),
    Artifact("conf/tcmu-runner.dbus.conf", "/etc/dbus-1/system.d/tcmu-runner.conf"),
    Artifact("conf/tcmu-runner.logrotate", "/etc/logrotate.d/tcmu-runner"),
    Artifact("conf/tcmu.conf", "/etc/tcmu/tcmu.conf", owned=False),
    Artifact("man/tcmu-runner.8", "{prefix}/share/man/man8/tcmu-runner.8"),
    Artifact("man/tcmu.8", "{prefix}/share/man/man8/tcmu.8"),
    Artifact("man/tcmu.conf.5", "{prefix}/share/man/man5/tcmu.conf.5"),
)


class State(Enum):
    """What stands at a target."""

    ABSENT = "write"
    SAME = "unchanged"
    OLD = "replace"  # ours, of another version or for another --exec
    KEPT = "keep"  # the administrator's
    FOREIGN = "in the way"


@dataclass(frozen=True, slots=True)
class Target:
    """One file to be: its path under --root and its content."""

    path: Path
    content: bytes
    owned: bool

    @property
    def saved(self) -> Path:
        """Return where --force moves a foreign file."""
        return self.path.with_name(self.path.name + SAVED)

    def state(self) -> State:
        """Look at what is there now."""
        try:
            found = self.path.read_bytes()
        except FileNotFoundError:
            return State.ABSENT
        if found == self.content:
            return State.SAME
        if not self.owned:
            return State.KEPT
        return State.OLD if MARK in found else State.FOREIGN


def add_commands(subparsers: Any) -> None:
    """Add both commands to the tool's parser."""
    install = _parser(subparsers, "install-service", "install the service's files", INSTALL_DESCRIPTION)
    install.add_argument(
        "--exec", dest="executable", metavar="PATH", help="the tcmu-runner to start (the one installed here)"
    )
    install.add_argument("--force", action="store_true", help=f"move files of others aside, as NAME{SAVED}")
    install.set_defaults(func=run_install)
    uninstall = _parser(subparsers, "uninstall-service", "take the service's files away", UNINSTALL_DESCRIPTION)
    uninstall.set_defaults(func=run_uninstall, executable=None)


def _parser(subparsers: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", metavar="DIR", type=Path, default=Path("/"), help="the system's root directory (/)")
    parser.add_argument(
        "--prefix", metavar="DIR", type=Path, default=Path("/usr/local"), help="for all outside /etc (/usr/local)"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser


def run_install(args: argparse.Namespace) -> int:
    """Run `tcmu install-service`."""
    out = Output()
    plan = list(targets(args.root, args.prefix, args.executable))
    states = {target.path: target.state() for target in plan}
    foreign = [target.path for target in plan if states[target.path] is State.FOREIGN]
    if foreign and not args.force and not args.dry_run:
        raise ConfigError(
            f"not ours, so nothing was written: {', '.join(map(str, foreign))}; purge the package that brought them "
            f"(Debian: apt-get purge tcmu-runner), or move them aside with --force"
        )
    for target in plan:
        state = states[target.path]
        out.line(f"{state.value:10} {target.path}")
        if not args.dry_run:
            _install(target, state)
    _refresh(out, args, [["systemctl", "daemon-reload"], ["systemctl", "reload", "dbus.service"]])
    if _live(args.root) and not args.dry_run:
        out.line("Start it, now and at every boot: systemctl enable --now tcmu-runner")
    return Exit.FAILED if foreign and not args.force else Exit.OK


def run_uninstall(args: argparse.Namespace) -> int:
    """Run `tcmu uninstall-service`."""
    out = Output()
    plan = list(targets(args.root, args.prefix, PACKAGED_EXEC))
    if plan[0].state() is not State.ABSENT:
        _refresh(out, args, [["systemctl", "disable", "--now", "tcmu-runner.service"]])
    for target in plan:
        state = target.state()
        if state in {State.ABSENT, State.FOREIGN}:
            continue
        out.line(f"{'keep' if state is State.KEPT else 'remove':10} {target.path}")
        if state is not State.KEPT and not args.dry_run:
            target.path.unlink()
        if target.owned and target.saved.exists():
            out.line(f"{'restore':10} {target.path}")
            if not args.dry_run:
                target.saved.rename(target.path)
    directory = args.root / "etc/tcmu"
    if not args.dry_run and directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
    _refresh(out, args, [["systemctl", "daemon-reload"], ["systemctl", "reload", "dbus.service"]])
    return Exit.OK


def targets(root: Path, prefix: Path, executable: str | None) -> Iterator[Target]:
    """Yield all files; `executable` None stands for the tcmu-runner of this installation.

    Raises:
        ConfigError: --prefix is relative, or there is no tcmu-runner to start.
    """
    if not prefix.is_absolute():
        raise ConfigError(f"--prefix {prefix}: give an absolute path")
    start = executable or _executable(root, prefix)
    # systemd.service(5): an unquoted command is split at spaces, % and $ are expanded, quotes and \ interpreted.
    if not start.startswith("/") or any(char.isspace() or char in "%$\"'\\;" for char in start):
        raise ConfigError(f"--exec {start!r}: give an absolute path without spaces, quotes, %, $, ; and \\")
    data = files("tcmu_core") / "data"
    for artifact in ARTIFACTS:
        content = (data / artifact.source).read_bytes()
        if artifact.owned:
            for end in "\n ":
                content = content.replace(f"={PACKAGED_EXEC}{end}".encode(), f"={start}{end}".encode())
        path = root / artifact.target.format(prefix=prefix).lstrip("/")
        yield Target(path, content, artifact.owned)


def _executable(root: Path, prefix: Path) -> str:
    if not _is_system_root(root):
        return str(prefix / "bin/tcmu-runner")  # a tree that is being packaged
    script = Path(sysconfig.get_path("scripts")) / "tcmu-runner"
    if not os.access(script, os.X_OK):
        raise ConfigError(f"{script} is not there: name the tcmu-runner to start with --exec")
    return str(script)


def _install(target: Target, state: State) -> None:
    if state in {State.SAME, State.KEPT}:
        return
    target.path.parent.mkdir(parents=True, exist_ok=True)
    if state is State.FOREIGN:
        target.path.rename(target.saved)
    # Whoever reads it meanwhile (dbus-daemon does at once) sees the old file or the new one, never a part.
    fresh = target.path.with_name(f".{target.path.name}.new")
    fresh.write_bytes(target.content)
    fresh.chmod(0o644)
    fresh.replace(target.path)


def _is_system_root(root: Path) -> bool:
    return root.resolve() == Path("/")


def _live(root: Path) -> bool:
    """Return whether this is the running system and systemd runs it (sd_booted(3))."""
    return _is_system_root(root) and Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def _refresh(out: Output, args: argparse.Namespace, commands: Iterable[list[str]]) -> None:
    """Run `commands` on the running system; one that fails is said, and fails nothing."""
    if not _live(args.root):
        return
    for command in commands:
        out.line(f"{'run':10} {' '.join(command)}")
        if not args.dry_run:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                out.line(f"{'':10} {(done.stderr or done.stdout).strip() or f'exit status {done.returncode}'}")
