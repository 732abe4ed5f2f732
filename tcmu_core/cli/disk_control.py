"""What a running `tcmu serve` answers about its disk: who it is, a change of its medium, and its filters."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from tcmu_core.channel import Message
from tcmu_core.cli.control import ControlSocket
from tcmu_core.disk.device import Change
from tcmu_core.errors import ConfigError, TcmuError, text_of
from tcmu_core.filters.control import command
from tcmu_core.loop import Loop

if TYPE_CHECKING:
    from tcmu_core.scsi.engine import Engine


class DiskControl:
    """Answers the other `tcmu` commands for the disk of this process."""

    def __init__(self, loop: Loop, directory: Path, engine: Engine) -> None:
        self._engine = engine
        self._socket: ControlSocket | None = None
        try:
            self._socket = ControlSocket(loop, directory, self.answer)
        except OSError as error:
            engine.device.log.warning("other `tcmu` commands can't reach this process: %s", error)

    def answer(self, message: Message) -> Message:
        """Answer one message."""
        device = self._engine.device
        if message.get("op") == "who":
            return {"name": device.name, "handler": device.handler, "removable": device.removable}
        told: Message = {}
        try:
            match message.get("op"):
                case "change":
                    if not device.removable:
                        raise ConfigError(f"{device.name} has no medium that can be changed")
                    self._engine.change(Change(cfgstring=str(message["cfgstring"])))
                case "filter":
                    told = command(self._engine.disk, message)
                    self._engine.refresh()
                case _:
                    raise ConfigError("this process does not know that: is it of another version?")
        except Exception as error:
            if not isinstance(error, TcmuError | OSError | NotImplementedError):
                device.log.exception("%s failed", message.get("op"))
            return {"error": text_of(error), "kind": "config" if isinstance(error, ConfigError) else "other"}
        return {"error": "", "kind": "", **told}

    def close(self) -> None:
        """Take the socket away."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
