"""Files that a person names: opened without waiting for anybody, and read as text whose faults have a place."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from tcmu_core.errors import ConfigError


def opened(path: Path, *, devices: bool = False) -> BinaryIO:
    """Open a regular file to be read, or a block device where `devices` are taken too.

    A FIFO would keep whoever opens it waiting for somebody who writes, and a character device may never end.

    Raises:
        ConfigError: it is something else.
        OSError: it can't be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not (devices and stat.S_ISBLK(mode)):
        os.close(fd)
        raise ConfigError(f"{path}: no regular file" + (", and no block device" if devices else ""))
    return os.fdopen(fd, "rb")


def text(path: Path, most: int, what: str) -> tuple[str, int]:
    """Return the text of a file and its permission bits; `most` is how many bytes a file that is `what` may have.

    Raises:
        ConfigError: it is no regular file, larger, or no UTF-8.
        OSError: it can't be read.
    """
    with opened(path) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        data = file.read(most + 1)
    if len(data) > most:
        size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise ConfigError(f"{path}: larger than {size}: this is no {what}")
    try:
        return data.decode("utf-8-sig"), mode
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text: this is no {what}") from None
