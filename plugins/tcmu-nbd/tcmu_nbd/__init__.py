"""tcmu-nbd: any NBD export as a SCSI disk."""

from tcmu_nbd.handler import NbdHandler

__all__ = ["NbdHandler"]
