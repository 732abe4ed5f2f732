"""What handlers say of a tcmu.conf before it is applied: names, cfgstrings and defaults that can't be right."""

from __future__ import annotations

from collections.abc import Mapping

from tcmu_core.config.configuration import Config, LunConfig
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import TcmuError, text_of
from tcmu_core.filters.registry import check_texts
from tcmu_core.handlers.registry import Handler, Registry


def problems(config: Config, registry: Registry) -> list[str]:
    """Return what is wrong with the disks of a configuration, a line each, with file and line.

    The handlers' own code runs; nothing is opened.
    """
    found = []
    for target in config.targets:
        for lun in target.luns:
            try:
                _check(lun, registry.get(lun.handler), config.handlers.get(lun.handler, {}))
            except Exception as error:
                found.append(f"{lun.place}: {text_of(error)}" if lun.place else text_of(error))
    return list(dict.fromkeys(found))


def _check(lun: LunConfig, handler: Handler, defaults: Mapping[str, str]) -> None:
    spec = DiskSpec(lun.handler, filters=lun.filters).configured(lun.cfgstring)
    check_texts(spec.filters)
    try:
        handler.check_config(spec.cfgstring)
        if handler.options is not None:
            handler.options.parse(spec.cfgstring, defaults)
    except (TcmuError, OSError):
        raise
    except BaseException as error:
        raise TcmuError(f"handler {lun.handler!r} broke while it looked at the cfgstring: {text_of(error)}") from error
