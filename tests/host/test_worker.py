"""What a worker tells the kernel of an exception."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tcmu_core.errors import ConfigError, HandlerError, MediumError, WriteProtected
from tcmu_core.host.worker import KernelDevice, errno_of
from tcmu_core.kernel.configfs import Backstore, ConfigfsError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("of no number"), errno.EIO),
        (FileNotFoundError(errno.ENOENT, "none"), errno.ENOENT),
        (ConfigError("wrong"), errno.EINVAL),
        (ValueError("wrong"), errno.EINVAL),
        (NotImplementedError(), errno.EOPNOTSUPP),
        (WriteProtected(), errno.EROFS),
        (MediumError(), errno.EIO),
        (HandlerError("none"), errno.ENOENT),
        (MemoryError(), errno.ENOMEM),
        (RuntimeError("moody"), errno.EIO),
        (ConfigfsError("writing", OSError(errno.EBUSY, "busy")), errno.EBUSY),
    ],
)
def test_each_exception_has_its_errno(error: BaseException, code: int) -> None:
    assert errno_of(error) == code


def test_the_serial_number_follows_configfs_unless_the_handler_has_one(tmp_path: Path) -> None:
    device = KernelDevice("disk", "ram")
    assert device.serial == ""
    device.backstore = Backstore(1, "disk", tmp_path)
    assert device.serial == ""
    (device.backstore.path / "wwn").mkdir(parents=True)
    serial = device.backstore.path / "wwn/vpd_unit_serial"
    for text in ("0c5b", "ffee"):
        serial.write_text(f"T10 VPD Unit Serial Number: {text}\n")
        assert device.serial == text
    device.serial = "own"
    assert device.serial == "own"
