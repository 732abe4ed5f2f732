"""What can go wrong in the virtual machine, each with the console's last lines or the command's output."""

from __future__ import annotations

from dataclasses import dataclass

TAIL = 4000  # characters of output that an exception shows; the whole is on its attributes


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. Bytes that are not UTF-8 are kept as surrogate escapes."""

    command: str
    returncode: int  # 128 + N when signal N ended it
    stdout: str
    stderr: str

    def check(self) -> Result:
        """Itself; raises CommandFailed unless the command returned 0."""
        if self.returncode:
            raise CommandFailed(self)
        return self

    def __str__(self) -> str:
        parts = [f"{self.command!r} returned {self.returncode}"]
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr)):
            if text:
                parts.append(f"--- {name}\n{text[-TAIL:]}")
        return "\n".join(parts)


class MachineError(Exception):
    """Anything that the virtual machine could not do."""


class BootFailed(MachineError):
    """The guest did not come up."""


class MachineDied(MachineError):
    """QEMU is gone: the kernel panicked (an oops is one), something powered it off, or it was killed."""


class CommandFailed(MachineError):
    """A command returned something else than 0."""

    def __init__(self, result: Result) -> None:
        super().__init__(str(result))
        self.result = result


class CommandTimeout(MachineError):
    """A command ran past its timeout. It and all that it started were killed; the machine lives on.

    `result` holds the output until then, with the status that the kill gave it.
    """

    def __init__(self, result: Result, timeout: float, console: str) -> None:
        super().__init__(f"killed after {timeout:g} s: {result}\n--- console\n{console}")
        self.result = result
