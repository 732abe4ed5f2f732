"""A handler without SCSI, for a debugger."""

from handler_queued import Queued

from tcmu_core.testing import open_device

with open_device(Queued, size=1 << 20) as disk:
    disk.write(4096, b"a" * 512, parts=[100, 7])
    found = disk.read(4096, 512, parts=[1])
    assert found == b"a" * 512, found[:16]
