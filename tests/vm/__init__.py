"""A Debian kernel under QEMU on which the tests run commands; see README.md."""

from .errors import BootFailed, CommandFailed, CommandTimeout, MachineDied, MachineError, Result
from .machine import Job, Machine

__all__ = [
    "BootFailed",
    "CommandFailed",
    "CommandTimeout",
    "Job",
    "Machine",
    "MachineDied",
    "MachineError",
    "Result",
]
