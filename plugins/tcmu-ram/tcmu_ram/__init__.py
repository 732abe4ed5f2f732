"""The ram handler: memory becomes a SCSI disk."""

from tcmu_ram.handler import RamHandler

__all__ = ["RamHandler"]
