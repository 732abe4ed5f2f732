"""A host with a runner; a test that breaks the runner has the next one start it again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.host import Host


@pytest.fixture
def host(kernel_host: Host) -> Iterator[Host]:
    """Yield the host with a runner on it; afterwards no device is left."""
    if not kernel_host.runs():
        kernel_host.start()
    yield kernel_host
    kernel_host.sh(
        "cd /sys/kernel/config/target;"
        "for t in loopback/naa.*; do [ -d $t ] || continue;"
        " rm -f $t/tpgt_1/lun/lun_*/x; rmdir $t/tpgt_1/lun/lun_* $t/tpgt_1 $t; done;"
        "ls -d iscsi/iqn* > /dev/null 2>&1 && targetctl clear;"
        "for d in core/user_*/*/enable; do [ -e $d ] && rmdir ${d%/enable}; done;"
        "modprobe sd_mod; rmdir core/user_* 2> /dev/null; rm -rf /var/tmp/t/*; true",
        timeout=60,
    )
