"""State that outlives the process: where it lies, and a device's persistent reservations (APTPL) in a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path


class AptplFile:
    """Keeps the bytes that the engine hands it, replaced as a whole: after a crash there is the old or the new."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def load(self) -> bytes | None:
        """Return what was saved last, None when nothing was; raises `OSError`."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, data: bytes) -> None:
        """Save `data` and return when it is on stable storage; empty `data` removes the file. Raises `OSError`."""
        if not data:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
                _sync_directory(self.path.parent)
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_directory(self.path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def default_directory() -> Path:
    """Return where state is kept: /var/lib/tcmu for root, else below $XDG_STATE_HOME (XDG base directories 0.8)."""
    if os.geteuid() == 0:
        return Path("/var/lib/tcmu")
    home = os.environ.get("XDG_STATE_HOME", "")
    if home.startswith("/"):
        return Path(home) / "tcmu"
    try:
        return Path.home() / ".local" / "state" / "tcmu"
    except RuntimeError:  # a container's user without a name or $HOME; pam_systemd(8) gives each user this place
        return Path(f"/run/user/{os.geteuid()}") / "tcmu"


@dataclass(frozen=True, slots=True)
class Places:
    """Where the daemon keeps things: its lock, the sockets of its hosts, what survives a restart, and its log."""

    lock: Path
    hosts: Path
    state: Path
    logs: Path

    @classmethod
    def of(cls, directory: Path | None = None) -> Places:
        """Return the places of a person's own directory; without one, those of the system, or of an ordinary user."""
        if directory is not None:
            return cls(directory / "tcmu.lock", directory / "hosts", directory, directory)
        state = default_directory()
        if os.geteuid() == 0:
            return cls(Path("/run/tcmu.lock"), Path("/run/tcmu"), state, Path("/var/log"))
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        base = Path(runtime) / "tcmu" if runtime.startswith("/") else state
        return cls(base / "tcmu.lock", base / "hosts", state, state)


def aptpl_file(directory: Path, name: str, *identity: str) -> AptplFile:
    """Return the store of the logical unit that `identity` (handler, cfgstring, target …) tells from all others."""
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:64]
    return AptplFile(directory / f"{readable}-{digest}.aptpl")
