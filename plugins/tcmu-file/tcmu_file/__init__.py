"""The file handler: a file or a block device becomes a SCSI disk."""

from tcmu_file.handler import FileHandler

__all__ = ["FileHandler"]
