"""What a person can ask of the filters of a disk that is in use: list, push, pop, tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcmu_core.disk.disk import Disk
from tcmu_core.errors import ConfigError
from tcmu_core.filters.registry import installed


def command(disk: Disk, message: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a message says; on the disk's loop, and its engine must look at the disk anew afterwards.

    `{"do": "list"}`; `{"do": "push", "text": "delay;read=5ms"}`; `{"do": "pop", "name": "delay"}`;
    `{"do": "tell", "name": "fault", "message": {…}}`, with `"push": true` to put the filter on if it is not there.
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
        case other:
            raise ConfigError(f"{other!r} can't be done with filters: list, push, pop or tell")
    return {"filters": [layer.name for layer in disk.filters], "answer": answer}
