"""A machine that boots once and runs many commands, with the host's files and without harm to them."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from . import initramfs, qemu
from .errors import TAIL, BootFailed, CommandTimeout, MachineDied, MachineError, Result
from .kernel import Kernel

ROOT = Path(__file__).resolve().parents[2]  # the checkout
BOOT_TIMEOUT = 180.0  # seconds; an emulated machine needs 4 on an idle host
AGENT_TIMEOUT = 60.0  # for a job to start, or to be gone once destroyed
MSIZE = 512000  # what Linux's virtio transport of 9p can at most (net/9p/trans_virtio.c)
GIB = 1 << 30

# What the kernel says when it was told to (kernel/reboot.c).
ENDS = ("reboot: Restarting system", "reboot: Power down")

GATEWAY = "10.0.2.2"  # the host's loopback, as QEMU's user network has it
NETWORK = f"""\
modprobe virtio_net
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via {GATEWAY}
"""

NOWHERE = Path()  # the directory of a machine that is not running

Command = str | Sequence[str | os.PathLike[str]]


class Machine:
    """A virtual machine; use it as a context manager, from one thread.

    Commands see the host's whole file system at its own paths; what they change is lost with the machine. /tmp
    and /run are empty, except for the checkout, the running Python and what `visible` names. `share` is one
    directory at the same path here and there, written from both sides; it goes with the machine too.

    `kernel` is a `…/boot/vmlinuz-RELEASE` other than the newest installed one; `keep` a directory to create
    that holds the console's log and every command's output, and stays. `disks` are raw images or QEMU's URLs of them,
    each a virtio disk (/dev/vda and so on, once the module virtio_blk is loaded). With `network` the guest reaches what
    the host does: the host's 127.0.0.1 at `GATEWAY`, others at their own addresses.

    `system` is a raw image of an ext4 file system with a systemd of its own: it is the root then, written to and kept,
    and /dev/vda, instead of the host's files. Commands run beside its services, from the start; give them a `cwd`.
    """

    def __init__(
        self,
        *,
        cpus: int = 2,
        memory: str = "2G",
        kernel: Path | None = None,
        visible: Sequence[Path] = (),
        keep: Path | None = None,
        disks: Sequence[str] = (),
        system: Path | None = None,
        network: bool = False,
        boot_timeout: float = BOOT_TIMEOUT,
    ) -> None:
        self.cpus = cpus
        self.memory = memory
        self.kernel = Kernel.at(kernel.resolve()) if kernel else Kernel.newest()
        self.boot_time = 0.0  # seconds
        self._visible = [*visible, ROOT, Path(sys.prefix), Path(sys.base_prefix)]
        self._keep = keep
        self._system = system
        self._disks = (*([str(system)] if system else []), *disks)
        self._network = network
        self._boot_timeout = boot_timeout
        self._directory = NOWHERE
        self._console = ""
        self._qemu: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._received = b""
        self._ready = False
        self._jobs: list[Job] = []

    @property
    def share(self) -> Path:
        """The directory that the guest can write to, at the same path on both sides."""
        return self._directory / "share"

    @property
    def pid(self) -> int:
        """QEMU's process on the host."""
        if self._qemu is None:
            raise MachineError("the machine is not running")
        return self._qemu.pid

    def console(self) -> str:
        """What the kernel has written to its console, also when the machine has stopped since."""
        return self._console if self._directory == NOWHERE else _text(self._directory / "console.log")

    # Life

    def __enter__(self) -> Machine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Boot, and return when commands can run. Raises BootFailed."""
        if self._qemu is not None:
            raise MachineError("the machine is running")
        began = time.monotonic()
        self._ready, self._received, self._jobs = False, b"", []
        if self._keep:
            self._keep.mkdir(parents=True)
            self._directory = self._keep.resolve()
        else:
            self._directory = Path(tempfile.mkdtemp(prefix="tcmu-vm-", dir=_scratch())).resolve()
        try:
            (self.share / ".jobs").mkdir(parents=True)
            self._launch()
            deadline = began + self._boot_timeout
            while not self._ready:
                if not self._pump(deadline):
                    raise BootFailed(f"not ready after {self._boot_timeout:g} s{self._tail()}")
            if self._network:
                self.run(f"set -e\n{NETWORK}", check=True)
        except MachineDied as error:
            self.stop()
            raise BootFailed(str(error)) from None
        except BaseException:
            self.stop()
            raise
        self.boot_time = time.monotonic() - began

    def _launch(self) -> None:
        image = self._directory / "initramfs"
        image.write_bytes(initramfs.build(self.kernel, initramfs.SYSTEM if self._system else ()))
        kernel = self.kernel.unpack(self._directory)
        shown = self._system is not None or self.kernel.modules == Path("/lib/modules") / self.kernel.release
        visible = () if self._system else self._visible
        env = {
            "VM_MSIZE": str(MSIZE),
            "VM_SHARE": str(self.share),
            "VM_KEEP": ":".join(sorted({str(path) for path in map(Path.resolve, visible) if _hidden(path)})),
            "VM_MODULES": "" if shown else str(self.kernel.modules),
            "VM_SYSTEM": "/dev/vda" if self._system else "",
        }
        here, there = socket.socketpair()
        self._channel = here
        with there, (self._directory / "qemu.log").open("wb") as complaints:
            self._qemu = subprocess.Popen(
                qemu.command(
                    kernel=kernel,
                    initramfs=image,
                    share=self.share,
                    console=self._directory / "console.log",
                    channel=there.fileno(),
                    cpus=self.cpus,
                    memory=self.memory,
                    env=env,
                    disks=self._disks,
                    network=self._network,
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                pass_fds=[there.fileno()],
            )
        self._send("hello")

    def stop(self) -> None:
        """End the machine at once, as by pulling the plug, and remove its files. Twice is no error."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        if self._directory == NOWHERE:
            return
        self._console = self.console()
        if self._keep:
            for name in ("vmlinux", "initramfs"):
                (self._directory / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(self._directory)
        self._directory = NOWHERE

    def wait(self, timeout: float) -> None:
        """Wait until the guest powers itself off or reboots, which ends the machine too.

        Raises MachineDied if it ends otherwise, and MachineError if it goes on past `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        try:
            while self._pump(deadline):
                pass
        except MachineDied:
            if not any(word in self.console() for word in ENDS):
                raise
        else:
            raise MachineError(f"the machine goes on after {timeout:g} s{self._tail()}")

    # Commands

    def run(
        self,
        command: Command,
        *,
        timeout: float = 120.0,
        cwd: str | os.PathLike[str] = ROOT,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes = b"",
        check: bool = False,
    ) -> Result:
        """Run a command (a string goes to /bin/sh) and wait for its end.

        What it leaves running goes on. Past `timeout` seconds it is killed with all that it started, and CommandTimeout
        raised. With `check`, CommandFailed unless it returned 0.
        """
        result = self.spawn(command, cwd=cwd, env=env, stdin=stdin).wait(timeout)
        return result.check() if check else result

    def spawn(
        self,
        command: Command,
        *,
        cwd: str | os.PathLike[str] = ROOT,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes = b"",
    ) -> Job:
        """Start a command in a session of its own and return while it runs."""
        line = command if isinstance(command, str) else shlex.join(os.fspath(word) for word in command)
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else [os.fspath(word) for word in command]
        directory = self.share / ".jobs" / str(len(self._jobs))
        directory.mkdir()
        (directory / "stdin").write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        for name in ("stdout", "stderr"):
            (directory / name).touch()
        # The agent's shell starts a background job with SIGINT and SIGQUIT ignored: give it the defaults back.
        prefix = ["/usr/bin/env", "--default-signal", "-C", os.fspath(cwd)]
        prefix += [f"{name}={value}" for name, value in (env or {}).items()]
        (directory / "script").write_text(f"exec {shlex.join(prefix + words)}\n")
        job = Job(self, len(self._jobs), line, directory)
        self._jobs.append(job)
        self._send(f"run {job.id}")
        deadline = time.monotonic() + AGENT_TIMEOUT
        while job.pid is None:
            if not self._pump(deadline):
                raise MachineError(f"the agent does not answer{self._tail()}")
        return job

    def modprobe(self, *modules: str) -> None:
        """Load kernel modules with what they need."""
        self.run(["modprobe", "-a", *modules], check=True)

    # The agent's channel

    def _send(self, line: str) -> None:
        if self._channel is None:
            raise MachineError("the machine is not running")
        try:
            self._channel.sendall(line.encode() + b"\n")
        except OSError:
            raise self._died() from None

    def _pump(self, deadline: float) -> bool:
        """Take in what the agent reports; false when it has nothing to say until the deadline. Raises MachineDied."""
        if self._channel is None:
            raise MachineError("the machine is not running")
        remaining = deadline - time.monotonic()
        readable, _, _ = select.select([self._channel], [], [], max(0.0, remaining))
        if not readable:
            return False
        try:
            data = self._channel.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise self._died()
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            match line.decode().split():
                case ["ready"]:
                    self._ready = True
                case ["started", job, pid]:
                    self._jobs[int(job)].pid = int(pid)
                case ["exit", job, status]:
                    self._jobs[int(job)].returncode = int(status)
                case _:
                    raise MachineError(f"the agent said {line!r}")
        return True

    def _died(self) -> MachineDied:
        status: int | None = None
        if self._qemu is not None:
            try:
                status = self._qemu.wait(5.0)  # the channel closes a moment before the process ends
            except subprocess.TimeoutExpired:
                self._qemu.kill()
        return MachineDied(f"the machine ended (QEMU's status {status}){self._tail()}")

    def _tail(self) -> str:
        complaint = _text(self._directory / "qemu.log").strip()
        return f"\n--- qemu\n{complaint}\n--- console\n{self.console()[-TAIL:]}"


class Job:
    """A command that was started in the guest."""

    def __init__(self, machine: Machine, number: int, command: str, directory: Path) -> None:
        self.id = number
        self.command = command
        self.pid: int | None = None  # in the guest
        self.returncode: int | None = None  # as of the last call; 128 + N when signal N ended it
        self.stdout_path = directory / "stdout"  # on the host, growing as the command writes
        self.stderr_path = directory / "stderr"
        self._machine = machine

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return _text(self.stdout_path, "surrogateescape")

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return _text(self.stderr_path, "surrogateescape")

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        while self.returncode is None and self._machine._pump(0.0):
            pass
        return self.returncode

    def wait(self, timeout: float = 120.0) -> Result:
        """Wait for its end; past `timeout` seconds destroy it and raise CommandTimeout."""
        if self.join(timeout):
            return self.result()
        self.destroy()
        raise CommandTimeout(self.result(), timeout, self._machine.console()[-TAIL:])

    def result(self) -> Result:
        """Its status and output, once it has ended."""
        if self.returncode is None:
            raise MachineError(f"{self.command!r} is still running")
        return Result(self.command, self.returncode, self.stdout, self.stderr)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command itself, not to its children."""
        if self.poll() is None:
            self._machine._send(f"signal {self.pid} {int(number)}")

    def terminate(self) -> None:
        """SIGTERM to the command itself."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the command itself: its children live on, as when a daemon crashes."""
        self.send_signal(signal.SIGKILL)

    def destroy(self) -> None:
        """Kill it and everything that it has started, daemons too, and wait until it is gone."""
        self._machine._send(f"destroy {self.id}")
        if not self.join(AGENT_TIMEOUT):
            raise MachineError(f"{self.command!r} cannot be killed: it hangs in the kernel{self._machine._tail()}")

    def join(self, timeout: float) -> bool:
        """Whether it ends within `timeout` seconds; it is let be."""
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if not self._machine._pump(deadline):
                return False
        return True


def _text(file: Path, errors: str = "replace") -> str:
    """The content of a file, its line ends untouched; nothing where there is none yet."""
    try:
        return file.read_bytes().decode(errors=errors)
    except FileNotFoundError:
        return ""


def _hidden(path: Path) -> bool:
    """Whether the guest has a file system of its own where the host has this path."""
    return path.resolve().parts[1:2] in [("tmp",), ("run",)]


def _scratch() -> str | None:
    """Where the share lives: in memory, if there is room, since tests sync a lot; else where temporary files go."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= GIB:
        return str(memory)
    return None
