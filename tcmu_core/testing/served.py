"""ServedDisk: a disk that a `tcmu serve` of its own serves, and that fails when it is told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tcmu_core.channel import ask
from tcmu_core.errors import ConfigError, TcmuError
from tcmu_core.host.messages import FilterAnswer, FilterCommand

PATIENCE = 30.0  # seconds for the process to answer, and to end
DEFAULT_SIZE = "64M"
WITHOUT_STORAGE = ("ram",)  # handlers whose cfgstring may be empty


class ServedDisk:
    """A disk at `uri` (iscsi://…), `portal`, `iqn` and `lun`; served until `close`.

    `handler` is one that `tcmu handlers` lists, `filters` are texts such as `delay;read=5ms`, `size` is `64M` or bytes.
    Without a `cfgstring` the disk has a file of its own in `directory`, or memory.
    """

    def __init__(
        self,
        handler: str,
        cfgstring: str | None = None,
        *,
        directory: Path,
        size: str | int = DEFAULT_SIZE,
        filters: Sequence[str] = (),
        name: str = "disk",
        block_size: int = 512,
        read_only: bool = False,
        handler_path: Path | None = None,
    ) -> None:
        if cfgstring is None:
            cfgstring = "" if handler in WITHOUT_STORAGE else str(directory / "disk.img")
        self.name = name
        self._directory = directory
        self._arguments = [handler, cfgstring, "--size", str(size), "--name", name, "--block-size", str(block_size)]
        self._arguments += [word for text in ("stats", *filters) for word in ("--filter", text)]
        self._arguments += ["--read-only"] if read_only else []
        self._arguments += ["--handler-path", str(handler_path)] if handler_path else []
        self._process: subprocess.Popen[str] | None = None
        self._address = "127.0.0.1:0"
        self.start()

    # -- the process --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve it; again after `kill`, at the same address."""
        if self._process is not None:
            raise TcmuError(f"{self.name} is served already")
        words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", *self._arguments, "--json"]
        words += ["--portal", self._address, "--state-dir", str(self._directory)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._reap()
            raise ConfigError((self._directory / "log").read_text().strip() or "tcmu serve ended without a word")
        said = json.loads(line)
        self._address = said["portal"]
        self.uri: str = said["uri"]
        self.portal: str = said["portal"]
        self.iqn: str = said["target"]
        self.lun: int = said["lun"]

    def kill(self) -> None:
        """End the process as `kill -9` does: connections break, and what was not flushed may be lost."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def close(self) -> None:
        """Stop serving; what hangs is ended."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        with self._process:
            self._process.wait(PATIENCE)
        self._process = None

    @property
    def log(self) -> str:
        """What the process has said on its standard error."""
        return (self._directory / "log").read_text()

    # -- its filters --------------------------------------------------------------------------------------------------

    def fault(self, *rules: str) -> None:
        """Add rules, `CONDITIONS -> ACTIONS`, such as `write lba=0-7 -> write-error`; see docs/filters.md."""
        self.tell("fault", push=True, action="add", rules="\n".join(rules))

    def clear(self) -> None:
        """Forget all rules."""
        self.tell("fault", push=True, action="clear")

    def release(self) -> int:
        """Let what hangs go on, and put a medium back that is gone; return how many commands hung."""
        return int(self.tell("fault", push=True, action="release")["released"])

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The rules, with how often each matched (`seen`) and did something (`fired`)."""
        found: list[dict[str, Any]] = self.tell("fault", push=True, action="list")["rules"]
        return found

    @property
    def stats(self) -> dict[str, Any]:
        """Count, bytes, errors, commands in flight and times of each hook, as the handler has seen them."""
        return self.tell("stats")

    def record(self, path: Path) -> None:
        """Record what reaches the disk from now on into a new file."""
        self.push(f"record;file={path}")

    def push(self, text: str) -> None:
        """Put a filter on top."""
        self._ask({"do": "push", "text": text})

    def pop(self, name: str) -> None:
        """Take a filter off; `record` ends a recording."""
        self._ask({"do": "pop", "name": name})

    def tell(self, filter_name: str, *, push: bool = False, **message: Any) -> dict[str, Any]:
        """Tell a filter something, and return its answer."""
        told = self._ask({"do": "tell", "name": filter_name, "message": message, "push": push})
        answer: dict[str, Any] = told["answer"]
        return answer

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send one message to the process; raises what it answers."""
        if self._process is None:
            raise TcmuError(f"{self.name} is not served now")
        path = self._directory / f"serve-{self._process.pid}.sock"
        answer = ask(path, FilterCommand(json.dumps(message)), PATIENCE)
        if not isinstance(answer, FilterAnswer):
            raise TcmuError(f"{self.name} did not understand")
        if answer.error:
            raise (ConfigError if answer.mistaken else TcmuError)(answer.error)
        told: dict[str, Any] = json.loads(answer.answer)
        return told
