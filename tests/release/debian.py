"""A clean Debian root, made from the sources that this machine's apt has, and sandboxes to change it in."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.release.interpreters import ROOT

# What a package manager remembers by itself, whatever was removed.
REMEMBERED = ("/var/lib/dpkg/", "/var/lib/apt/", "/var/cache/", "/var/log/apt/", "/var/log/dpkg.log")

# What a root has anywhere but in a sandbox: apt takes it for part of the system, and never removes it by itself.
COMMON = "ca-certificates,media-types,netbase,tzdata"

# All that is changed lies in memory, in mounts that nobody else sees; both are gone with the last process.
SANDBOX = """
mount -t tmpfs -o mode=755 tmpfs {place}
cd {place}
mkdir upper work root
mount -t overlay -o lowerdir={root},upperdir=upper,workdir=work overlay root
cd root
mount -t proc proc proc
mount --rbind /dev dev
{more}
exec chroot . sh -c 'echo ready; exec sleep infinity'
"""


def make_root(goal: Path, *options: str) -> None:
    """Make a root of the Debian that runs here, with apt that was updated; `options` are mmdebstrap's."""
    tool = ROOT / "tools" / "debian-root"
    words = [
        tool,
        goal,
        "--variant=apt",
        f"--include={COMMON}",
        "--skip=cleanup/apt/lists",
        '--aptopt=APT::Get::Assume-Yes "true";',
        *options,
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Sandbox:
    """A system of its own from a root, with the packages in /mnt/debs; what is changed in it is gone with it.

    It has this machine's network, or nothing but a loopback device.
    """

    def __init__(self, root: Path, debs: Path | None = None, *, network: bool = True, more: str = "") -> None:
        self._place = Path(tempfile.mkdtemp(prefix="tcmu-sandbox-"))
        if debs is not None:
            more += f"mkdir mnt/debs; mount --bind {debs} mnt/debs\n"
        if not network:
            more += "ip link set lo up\n"
        script = SANDBOX.format(place=self._place, root=root, more=more)
        apart = ["--mount", "--pid", *([] if network else ["--net"])]
        self._process = subprocess.Popen(
            ["unshare", *apart, "--fork", "--kill-child", "sh", "-euc", script],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._inside = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().strip()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._place.rmdir()

    def words(self, command: str | Sequence[str], user: str = "root") -> list[str]:
        """Return the words that run a command inside; a string goes to bash."""
        inside = ["bash", "-c", command] if isinstance(command, str) else list(command)
        who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env"]
        clean = ["env", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        return [
            "nsenter",
            f"--target={self._inside}",
            "--mount",
            "--pid",
            "--net",
            "--root",
            "--wd",
            *who,
            *clean,
            *inside,
        ]

    def run(self, command: str | Sequence[str], user: str = "root") -> str:
        """Run a command to its end, and return what it prints."""
        done = subprocess.run(
            self.words(command, user), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        shown = command if isinstance(command, str) else shlex.join(command)
        assert done.returncode == 0, f"{shown}\n{done.stdout}{done.stderr}"
        return done.stdout

    def files(self) -> set[str]:
        """Return all files, without those in which the package manager keeps its own books."""
        found = self.run(["find", "/", "-xdev", "!", "-path", "/mnt/*"]).splitlines()
        return {path for path in found if not path.startswith(REMEMBERED)}
