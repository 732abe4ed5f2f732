"""This very machine as a sandbox, in which the command lines of a document are typed one after another."""

from __future__ import annotations

import itertools
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.release.debian import Sandbox
from tests.release.interpreters import ROOT
from tests.waiting import wait_for

HOME = "/root"  # where all is typed
PATIENCE = 300.0  # seconds for a line
NAMES = ("server", "disks.example.com")  # of the hosts in the documents: this one is all of them
ADDRESSES = ("192.0.2.1", "192.0.2.2")

# These go on until somebody ends them; env(1) leads others that do.
ENDLESS = re.compile(
    r"(\w+=\S+ )?tcmu (serve (?!.*--run )|metrics |record |trace (?!.*--count ))|(tcmu-runner|make run|podman run|env) "
)
SERVES = re.compile(r"(\w+=\S+ )?tcmu serve ")
READS_KEYS = re.compile(r"tcmu top(?! --once)")
KEPT = ("cd ", "export ")  # by the shell, for the lines that follow
INTERRUPT = "^C"

SURROUNDINGS = {
    "TERM": "xterm",
    # What is installed is there: no index is asked, which could not be reached.
    "PIP_NO_INDEX": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}

# A mount of its own is not seen through the overlay.
SHOWN = """
mkdir ../u{number} ../w{number}
mount -t overlay -o lowerdir={path},upperdir=../u{number},workdir=../w{number} overlay .{path}
"""

# Not chroot(2) alone: what makes containers has to leave a root that is a whole one.
WHOLE = """
pivot_root . .
umount --lazy .
"""


class Session:
    """A sandbox of this machine with a network of its own, and a shell in it."""

    def __init__(self, path: Path = Path(sys.prefix) / "bin") -> None:
        apart = {path.stat().st_dev: path for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix))}
        apart.pop(Path("/").stat().st_dev, None)
        more = "".join(SHOWN.format(number=number, path=path) for number, path in enumerate(apart.values()))
        self._sandbox = Sandbox(Path("/"), network=False, more=more + WHOLE)
        surroundings = {"PATH": f"{path}:/usr/sbin:/usr/bin:/sbin:/bin", **SURROUNDINGS}
        self._shell = [f"export {name}={shlex.quote(value)}" for name, value in surroundings.items()] + [f"cd {HOME}"]
        self._numbers = itertools.count()
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # by what their files are called

    def __enter__(self) -> Session:
        hosts = "".join(f"127.0.0.1 {name}\\n" for name in NAMES)
        addresses = "".join(f"ip address add {address}/32 dev lo; " for address in ADDRESSES)
        self.type(f"printf '{hosts}' >> /etc/hosts; {addresses} mkdir -p /etc/tcmu; rm -rf /run/tcmu*")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._sandbox:  # all that is left ends with it
            for name in reversed(list(self._running)) if error is None else ():
                self.end(name)
        for process in self._running.values():
            process.wait()

    def _words(self, line: str) -> list[str]:
        return self._sandbox.words("; ".join([*self._shell, line]))

    def type(self, line: str, fails: str = "") -> str:
        """Run a line, and return what it prints. It must not fail, or, with `fails`, must, and say that.

        What goes on is begun: it is told to end by `^C`, by the next that serves where it serves, and at the end.
        """
        if line == INTERRUPT:
            self.end(list(self._running)[-1])
            return ""
        if line.startswith(KEPT):
            self._shell.append(line)
        if ENDLESS.match(line):
            return self._begin(line)
        if READS_KEYS.match(line):  # in a terminal, and then `q`
            line = f"{{ sleep 2; printf q; }} | script --quiet --return --command {shlex.quote(line)} /dev/null"
        done = subprocess.run(
            self._words(line), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        said = f"{line}\n{done.stdout}{done.stderr}"
        assert bool(done.returncode) == bool(fails), said
        assert fails in said, said
        return done.stdout

    def _begin(self, line: str) -> str:
        """Start what goes on, and wait until it says something."""
        name = f"/run/{next(self._numbers)}"
        if SERVES.match(line):
            name = "/run/serve"
            self.end(name)
            self.type(f"rm -f {name}.out")
        command = f"echo $$ > {name}.pid; exec setsid env {line.partition(' #')[0]} > {name}.out 2>&1"
        process = self._running[name] = subprocess.Popen(self._words(command), stdin=subprocess.DEVNULL)

        def said() -> str:
            heard = self.type(f"cat {name}.out || true")
            assert process.poll() is None, f"{line}\n{heard}"
            return heard

        return wait_for(said, every=0.1, seconds=PATIENCE, why=lambda: line)

    def end(self, name: str) -> None:
        """Press Ctrl-C where that runs, if it does: it ends well, unless a line has had it end by an abort."""
        process = self._running.pop(name, None)
        if process is None:
            return
        allowed = {0, -signal.SIGINT, 128 + signal.SIGINT}
        if process.poll() is None:
            self.type(f"kill -INT -- -$(cat {name}.pid)")
        else:
            allowed = {-signal.SIGABRT}
        assert process.wait(PATIENCE) in allowed, self.type(f"cat {name}.out")
