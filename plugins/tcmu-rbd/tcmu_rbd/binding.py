"""Ceph's own Python modules, `rados` and `rbd`, found where the system has them and loaded when a disk is opened.

They are compiled for the system's Python and come in its packages, not from an index. A virtual environment sees those
if it was made with --system-site-packages; if not, the two modules, and nothing else, are loaded from there.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from tcmu_core import ConfigError

INSTALL = "install Ceph's Python bindings: apt-get install python3-rados python3-rbd (dnf install python3-rbd)"
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
# Debian and its kin; Fedora, SUSE and theirs; a Ceph that was built here.
DIRECTORIES = (
    Path("/usr/lib/python3/dist-packages"),
    Path(f"/usr/lib64/{_VERSION}/site-packages"),
    Path(f"/usr/lib/{_VERSION}/site-packages"),
    Path(f"/usr/local/lib/{_VERSION}/dist-packages"),
    Path(f"/usr/local/lib64/{_VERSION}/site-packages"),
)

_once = threading.Lock()


@dataclass(frozen=True, slots=True)
class Binding:
    """The two modules; neither says anything of types."""

    rados: Any
    rbd: Any


def load() -> Binding:
    """Return the modules.

    Raises:
        ConfigError: they are not there, or not for this Python; what to install.
    """
    with _once:
        # rbd is linked against the types of rados: that must be there first.
        return Binding(_load("rados"), _load("rbd"))


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        pass
    except ImportError as error:  # it is there, and librados or librbd is not
        raise ConfigError(f"the Python module {name} can't be loaded ({error}): {INSTALL}") from error
    file = next(_files(name), None)
    if file is None:
        raise ConfigError(_missing(name))
    loader = ExtensionFileLoader(name, str(file))
    spec = spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    try:
        module = sys.modules[name] = module_from_spec(spec)
        loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, ImportError):  # librados or librbd is missing
            raise ConfigError(f"{file} can't be loaded ({error}): {INSTALL}") from error
        raise
    return module


def _files(name: str) -> Iterator[Path]:
    """Yield the files of the module `name` that are compiled for this Python."""
    for directory in DIRECTORIES:
        for suffix in EXTENSION_SUFFIXES:
            if (file := directory / (name + suffix)).is_file():
                yield file


def _missing(name: str) -> str:
    others = [file for directory in DIRECTORIES for file in directory.glob(f"{name}.*.so")]
    if others:
        return (
            f"{others[0]} is for another Python than this one ({_VERSION}): "
            "make the virtual environment with the system's own python3"
        )
    return f"there is no Python module {name}: {INSTALL}"
