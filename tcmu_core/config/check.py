"""What handlers say of a tcmu.conf before it is applied: names, cfgstrings and defaults that can't be right."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from tcmu_core.cfgstring import Default
from tcmu_core.config.configuration import Config, LunConfig
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import HandlerError, TcmuError, text_of
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


def unknown(config: Config, registry: Registry) -> list[str]:
    """Return which sections of `[handlers]` name no handler that works, and which of their keys no option of it.

    The daemon goes on with such a file: they mean nothing to it.
    """
    found = []
    for name, defaults in config.handlers.items():
        places = [value.where for value in defaults.values() if isinstance(value, Default)]
        where = f"{places[0]}: " if places else ""
        try:
            handler = registry.get(name)
        except HandlerError as error:
            found.append(f"{where}[handlers] [[{name}]]: {error}")
            continue
        known = handler.options.options if handler.options is not None else {}
        for key, value in defaults.items():
            if handler.options is None or key in known:
                continue
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"
            place = f"{value.where}: " if isinstance(value, Default) else ""
            found.append(f"{place}handler {name!r} has no option {key!r}: {hint}")
    return found


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
