"""A host with a runner; a test that breaks the runner has the next one start it again."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import pytest

from tests.kernel.host import Host
from tests.vm import MachineError

TOLD = 6000  # characters of each log
STILL = {"hog", "hung", "ill", "one"}  # devices whose workers tests have stand still; no other may keep anybody waiting


@pytest.fixture
def host(kernel_host: Host) -> Iterator[Host]:
    """Yield the host with a runner on it; afterwards no device is left."""
    if not kernel_host.runs():
        kernel_host.start()
    yield kernel_host
    log = kernel_host.log() if kernel_host.runner is not None else ""
    kernel_host.sh(
        "cd /sys/kernel/config/target;"
        "for t in loopback/naa.*; do [ -d $t ] || continue;"
        " rm -f $t/tpgt_1/lun/lun_*/x; rmdir $t/tpgt_1/lun/lun_* $t/tpgt_1 $t; done;"
        "ls -d iscsi/iqn* > /dev/null 2>&1 && targetctl clear;"
        "for d in core/user_*/*/enable; do [ -e $d ] && rmdir ${d%/enable}; done;"
        "modprobe sd_mod; rmdir core/user_* 2> /dev/null; rm -rf /var/tmp/t/*; true",
        timeout=60,
    )
    waited = set(re.findall(r"\w+/(\w+): the worker of .* has not answered for \d\d", log))
    assert waited <= STILL, log[-TOLD:]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the runner and the kernel said where a test failed."""
    report = yield
    host = getattr(item, "funcargs", {}).get("kernel_host")
    if report.failed and isinstance(host, Host):
        if host.runner is not None:
            report.sections.append(("the runner", host.log()[-TOLD:]))
        try:
            report.sections.append(("the kernel", host.run("dmesg", timeout=10).stdout[-TOLD:]))
        except MachineError as error:
            report.sections.append(("the kernel", str(error)))
    return report
