"""What the kernel allows a process: limits, io_uring, and the directories that are tcmu-runner's."""

from __future__ import annotations

import os
import resource
import shlex
import stat
from collections.abc import Callable, Iterator

from tcmu_core.doctor.finding import Finding, Severity, System
from tcmu_core.posix.uring import Ring

FILES = 65536  # what tcmu-runner asks for
ENTRIES = 8
Limits = Callable[[int], tuple[int, int]]


def files(_system: System, limits: Limits = resource.getrlimit) -> Iterator[Finding]:
    """Look how many files a process may open: tcmu-runner raises the soft limit, not the hard one."""
    _, hard = limits(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        text = f"A process may open {hard} files at most; tcmu-runner wants {FILES}."
        cure = f"tcmu-runner -f {FILES}  (as root; for others raise the hard limit: ulimit -Hn {FILES})"
        yield Finding("RLIMIT_NOFILE", Severity.WARNING, text, cure)
    else:
        yield Finding("RLIMIT_NOFILE", Severity.OK, "A process may open enough files.")


def memlock(system: System, limits: Limits = resource.getrlimit) -> Iterator[Finding]:
    """Look at locked memory, which the rings of io_uring were counted as before Linux 5.12."""
    numbers = system.release.split("-")[0].split(".")
    old = tuple(int(number) if number.isdigit() else 0 for number in numbers[:2]) < (5, 12)
    soft, _ = limits(resource.RLIMIT_MEMLOCK)
    if old and system.euid and soft != resource.RLIM_INFINITY and soft < 1 << 20:
        text = f"{soft >> 10} KiB: kernel {system.release} counts io_uring's rings here; without them threads are used."
        yield Finding("RLIMIT_MEMLOCK", Severity.WARNING, text, "ulimit -l 65536")
    else:
        yield Finding("RLIMIT_MEMLOCK", Severity.OK, "It limits nothing that is needed.")


def directories(system: System) -> Iterator[Finding]:
    """Look whether the daemon can use its directories, and nobody else can put anything there."""
    places = system.places
    found = 0
    for what, path in (("state", places.state), ("sockets", places.hosts), ("log", places.logs)):
        title = f"directory of its {what}"
        if not path.exists():
            continue  # it is made
        mode, quoted = path.stat().st_mode, shlex.quote(str(path))
        if not stat.S_ISDIR(mode):
            yield Finding(title, Severity.ERROR, f"{path} is no directory.", f"mv {quoted} {quoted}.old")
        elif mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX and what != "log":
            text = f"Others may write into {path}: they could take reservations away, or speak for a disk."
            yield Finding(title, Severity.WARNING, text, f"chmod go-w {quoted}")
        elif not os.access(path, os.W_OK | os.X_OK):
            severity = Severity.NOTE if system.euid else Severity.ERROR
            yield Finding(title, severity, f"{path} can't be written to by this user.", f"ls -ld {quoted}; mount")
        else:
            found += 1
    yield Finding("directories", Severity.OK, f"Looked at those of tcmu-runner: {found} can be used.")


def probe() -> None:
    """Make a ring and let it go; raises `OSError`."""
    Ring(ENTRIES).close()


def io_uring(system: System, attempt: Callable[[], None] = probe) -> Iterator[Finding]:
    """Try whether this process may use io_uring."""
    try:
        attempt()
    except OSError as error:
        switch = system.text("/proc/sys/kernel/io_uring_disabled")
        text = f"It is not allowed here ({os.strerror(error.errno or 0)}): threads are used instead, at half the rate."
        if switch in ("1", "2"):
            yield Finding("io_uring", Severity.NOTE, text, "sysctl -w kernel.io_uring_disabled=0")
        else:
            cure = "uname -r  (Linux 5.6 or later; in a container its seccomp profile has to allow io_uring_setup)"
            yield Finding("io_uring", Severity.NOTE, text, cure)
    else:
        yield Finding("io_uring", Severity.OK, "It is allowed, and used.")
