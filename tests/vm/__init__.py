"""A Debian kernel under QEMU on which the tests run commands; see README.md."""

from .errors import BootFailed, CommandFailed, CommandTimeout, MachineDied, MachineError, Result
from .machine import GATEWAY, Job, Machine

__all__ = [
    "GATEWAY",
    "BootFailed",
    "CommandFailed",
    "CommandTimeout",
    "Job",
    "Machine",
    "MachineDied",
    "MachineError",
    "Result",
]
