"""What a person can ask of the filters of a disk that is in use: list, push, pop, tell, set, settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tcmu_core.disk.disk import Disk, Layer, ask
from tcmu_core.errors import ConfigError
from tcmu_core.filters.registry import installed


def command(disk: Disk, message: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a message says; on the disk's loop, and its engine must look at the disk anew afterwards.

    `{"do": "list"}`; `{"do": "push", "text": "delay;read=5ms"}`; `{"do": "pop", "name": "delay"}`;
    `{"do": "tell", "name": "fault", "message": {…}}`, with `"push": true` to put the filter on if it is not there.
    `{"do": "set", "name": "rate", "options": {"iops": "500"}}` sets options that a filter takes while it is in use,
    and `{"do": "settings"}` asks for those of all filters: `{"rate": {"iops": 500.0, …}}`.
    The answer has `filters`, the names from the lowest on, and what the filter has said as `answer`.

    Raises:
        ConfigError, HandlerError, OSError: it can't be done; the disk is as it was.
    """
    answer: dict[str, Any] = {}
    match message.get("do"):
        case "list":
            pass
        case "push":
            disk.push(installed().make(str(message["text"])))
        case "pop":
            disk.pop(str(message["name"]))
        case "tell":
            name = str(message["name"])
            if message.get("push") and name not in [layer.name for layer in disk.filters]:
                disk.push(installed().make(name))
            answer = disk.tell(name, message.get("message", {}))
        case "set":
            name = str(message["name"])
            layer, told = disk.filter(name), {str(key): str(value) for key, value in message["options"].items()}
            _check(layer, told)
            answer = _in_force(layer, disk.tell(name, told))
        case "settings":
            answer = {layer.name: _in_force(layer, ask(layer, {})) for layer in disk.filters if layer.settable}
        case other:
            raise ConfigError(f"{other!r} can't be done with filters: list, push, pop, tell, set or settings")
    return {"filters": [layer.name for layer in disk.filters], "answer": answer}


def _check(layer: Layer, told: Mapping[str, str]) -> None:
    """Raise `ConfigError`, which says what would be needed, where an option can't be set while the disk is in use."""
    for option, value in told.items():
        if option in layer.settable:
            continue
        known = sorted(layer.options.options)
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"the filter {layer.name!r} has no option {option!r}: {hint}it has {', '.join(known)}")
        needed = (
            f"take it off (`tcmu filter DISK pop {layer.name}`) and put it on again (`… push '{layer.name};"
            f"{option}={value}'`)"
            if layer.live
            else "open the disk with it: --filter of `tcmu serve`, `filters` in tcmu.conf, tcmur_filter in a cfgstring"
        )
        raise ConfigError(f"{layer.name}.{option} can't be set while the disk is in use; what is needed: {needed}")


def _in_force(layer: Layer, answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in sorted(layer.settable) if name in answer}
