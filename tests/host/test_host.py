"""A host: what it opens, answers, changes and ends."""

from __future__ import annotations

import errno

import pytest

from tcmu_core.errors import ConfigError, HandlerError, MediumError, WriteProtected
from tcmu_core.host.host import errno_of
from tcmu_core.kernel.configfs import ConfigfsError


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
