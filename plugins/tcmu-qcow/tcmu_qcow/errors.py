"""What can be wrong with an image; each is an OSError, so its errno tells the initiator enough."""

from __future__ import annotations

import errno
from typing import ClassVar


class ImageError(OSError):
    """An image that can't be used as asked. The message names the image and the reason."""

    code: ClassVar[int] = errno.EINVAL

    def __init__(self, message: str) -> None:
        super().__init__(self.code, message)

    def __str__(self) -> str:
        return str(self.strerror)


class CorruptImage(ImageError):
    """The image contradicts itself; nothing more is written to it."""

    code = errno.EIO


class UnsupportedImage(ImageError):
    """A format or feature that isn't handled here; the message has its name."""

    code = errno.ENOTSUP


class ImageInUse(ImageError):
    """Another program holds a lock on the image that excludes ours."""

    code = errno.EBUSY


class ForbiddenFile(ImageError):
    """An image names a file of the host that it may not."""

    code = errno.EACCES


class ReadOnlyImage(ImageError):
    """A write to an image that was opened read-only."""

    code = errno.EROFS
