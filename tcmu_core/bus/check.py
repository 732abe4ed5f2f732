"""CheckConfig: the form of a device's configuration, and the handler's own check off the bus's thread."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from tcmu_core.cfgstring import FILTER_OPTION, configfs_problem, split_runner_options
from tcmu_core.errors import ConfigError, text_of
from tcmu_core.filters.registry import check_texts
from tcmu_core.handlers.registry import Handler

log = logging.getLogger("tcmu.bus")

CHECK_SECONDS = 5.0  # targetcli's call gives up after 25 s
MAX_PENDING_CHECKS = 4  # threads that one handler's checks may occupy

Verdict = tuple[bool, str]
VALID: Verdict = (True, "success")

T = TypeVar("T")


@dataclass(slots=True)
class Later(Generic[T]):
    """An answer that will come; `fallback` is given when it has not after `seconds`."""

    future: Future[T]
    seconds: float
    fallback: T


def split_config(subtype: str, config: str) -> str:
    """Return the cfgstring in `config`, which is `<subtype>/<cfgstring>`, after checking its form.

    Raises:
        ConfigError: the form is wrong. Nothing outside the string is looked at.
    """
    prefix = f"{subtype}/"
    if not config.startswith(prefix):
        raise ConfigError(f"{config!r} does not begin with {prefix!r}")
    problem = configfs_problem(config)
    if problem:
        raise ConfigError(f"this can't be the configuration of a kernel device: {problem}")
    cfgstring = config.removeprefix(prefix)
    split_runner_options(cfgstring)
    return cfgstring


class Checker:
    """Runs one handler's check_config on threads of its own, so that a slow one delays nobody else."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self._free = threading.Semaphore(MAX_PENDING_CHECKS)

    def check(self, config: str, *, trusted: bool) -> Verdict | Later[Verdict]:
        """Say whether `config` can be right.

        The handler's code runs for a `trusted` caller alone: it runs as root, and nobody else shall learn from it what
        files there are, or keep it busy.
        """
        name = self.handler.name
        try:
            cfgstring = split_config(name, config)
            options, body = split_runner_options(cfgstring)
            if trusted and FILTER_OPTION in options:
                check_texts(options[FILTER_OPTION])
        except ConfigError as error:
            return False, str(error)
        if not trusted:
            return True, f"the form is valid; handler {name!r} itself was not asked, only root may do so"
        if "check_config" not in self.handler.capabilities:
            return VALID
        if not self._free.acquire(blocking=False):
            return False, f"handler {name!r} has not ended {MAX_PENDING_CHECKS} earlier checks"
        future: Future[Verdict] = Future()
        # No pool: its threads are joined when the interpreter ends, and a check that hangs would hold it up.
        threading.Thread(target=self._run, args=(body, future), name=f"tcmu-check-{name}", daemon=True).start()
        return Later(future, CHECK_SECONDS, (False, f"handler {name!r} did not answer within {CHECK_SECONDS:g} s"))

    def _run(self, body: str, future: Future[Verdict]) -> None:
        try:
            self.handler.check_config(body)
            verdict = VALID
        except ConfigError as error:
            verdict = False, str(error)
        except BaseException as error:
            log.exception("handler %r failed in check_config", self.handler.name)
            verdict = False, text_of(error)
        finally:
            self._free.release()
        future.set_result(verdict)
