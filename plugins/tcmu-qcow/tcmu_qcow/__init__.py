"""tcmu-qcow: QEMU's qcow and qcow2 images as disks."""
