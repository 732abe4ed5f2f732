"""One boot and one runner for the tests of a module; a test that breaks the runner starts it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.host import Host
from tests.vm import Machine


@pytest.fixture(scope="module")
def machine_host() -> Iterator[Host]:
    with Machine(cpus=2, memory="2G") as machine:
        yield Host(machine)


@pytest.fixture
def host(machine_host: Host) -> Iterator[Host]:
    """Yield the host with a runner on it; afterwards no device is left."""
    if machine_host.runner is None or machine_host.runner.poll() is not None:
        machine_host.start()
    yield machine_host
    machine_host.sh(
        "cd /sys/kernel/config/target;"
        "for t in loopback/naa.*; do [ -d $t ] || continue;"
        " rm -f $t/tpgt_1/lun/lun_*/x; rmdir $t/tpgt_1/lun/lun_* $t/tpgt_1 $t; done;"
        "ls -d iscsi/iqn* > /dev/null 2>&1 && targetctl clear;"
        "for d in core/user_*/*/enable; do [ -e $d ] && rmdir ${d%/enable}; done;"
        "modprobe sd_mod; rmdir core/user_* 2> /dev/null; rm -rf /var/tmp/t/*; true",
        timeout=60,
    )
