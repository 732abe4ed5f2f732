"""The rbd handler: an RBD image of a Ceph cluster becomes a SCSI disk."""

from tcmu_rbd.handler import RbdHandler

__all__ = ["RbdHandler"]
