"""What runs beside what: tests in virtual machines in one process, most others in the other."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

    from tests.kernel.host import Host


ALONE = {"packages": "tests/release/", "images": "plugins/tcmu-qcow/"}  # kinds that share nothing with others


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Keep each kind together: its tests share the ports, memory and files of a host.

    Some share nothing but processors: they come last, and whichever process is idle first has them.
    """
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def kind(module: str) -> str:
        alone = next((name for name, places in ALONE.items() if module.startswith(places)), "host")
        # What is about packages stays with them, in a machine too: it takes long to build them.
        if alone != "packages" and "mark.vm" in (config.rootpath / module).read_text():
            return "machines"
        return alone

    class Kinds(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return kind(nodeid.partition("::")[0])

    return Kinds(config, log)


@pytest.fixture(scope="session")
def kernel_host() -> Iterator[Host]:
    """Yield a host with LIO, open-iscsi and a system bus, for all tests: booting and importing are what takes long.

    Whoever uses it leaves no device, session or mount behind; tcmu-runner may run or not.
    """
    from tests.kernel.host import Host
    from tests.vm import Machine

    with Machine(cpus=2, memory="2G") as machine:
        yield Host(machine)


def pytest_configure() -> None:
    """Let what tests start hear Ctrl-C and Ctrl-\\, where all this runs in the background: a shell has them ignored."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
