"""The glfs handler: a file on a GlusterFS volume becomes a SCSI disk, without mounting the volume."""

from tcmu_glfs.handler import GlfsHandler

__all__ = ["GlfsHandler"]
