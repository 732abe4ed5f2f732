"""tcmu-qcow: QEMU's qcow and qcow2 images as SCSI disks."""

from tcmu_qcow.handler import Handler

__all__ = ["Handler"]
