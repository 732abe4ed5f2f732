"""Which files of the host an image may name as its backing or data file: an image is not to be trusted with all."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tcmu_core import ConfigError
from tcmu_qcow.errors import ForbiddenFile
from tcmu_qcow.files import HostFile


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the administrator allows: the directory of the image and what is below it, others, or all."""

    here: bool = True
    anywhere: bool = False
    directories: tuple[str, ...] = ()


HERE = Allowed()


def parse_allowed(text: str) -> Allowed:
    """Return what `any`, `none`, or a list of `here` and absolute paths with `|` between them stands for."""
    if text in ("any", "none"):
        return Allowed(here=False, anywhere=text == "any")
    words = text.split("|")
    directories = tuple(word for word in words if word != "here")
    if not all(map(os.path.isabs, directories)):
        raise ConfigError(f"{text!r} is neither any, none, here nor a list of directories such as here|/srv/golden")
    return Allowed(here="here" in words, directories=directories)


class Scope:
    """What the images of one chain may name, whichever of them does; symbolic links are followed first."""

    def __init__(self, top: str, allowed: Allowed) -> None:
        self._anywhere = allowed.anywhere
        directories = [*allowed.directories]
        if allowed.here:
            directories += [os.path.dirname(os.path.abspath(top)), os.path.dirname(os.path.realpath(top))]
        self._directories = {os.path.realpath(directory) for directory in directories}

    def check(self, path: str, by: str) -> None:
        """Raise ForbiddenFile unless the image `by` may name `path`; before it is opened."""
        self._check(os.path.realpath(path), path, by)

    def check_opened(self, file: HostFile, by: str) -> None:
        """The same for what was opened: a link may have been turned elsewhere meanwhile."""
        if not self._anywhere:
            self._check(os.readlink(f"/proc/self/fd/{file.fd}"), file.path, by)

    def _check(self, real: str, path: str, by: str) -> None:
        if not self._anywhere and not any(
            os.path.commonpath([real, directory]) == directory for directory in self._directories
        ):
            raise ForbiddenFile(
                f"{by} names {path}, which it may not: that lies outside its own directory or what allow= says. "
                "If you trust the image, add allow=any, or the directory (allow=here|/srv/golden)"
            )
