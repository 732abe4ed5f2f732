"""The conformance kit: run a handler's hooks outside the SCSI engine, and hold them to their promises.

A handler author needs three lines:

    from tcmu_core.testing import check_handler, open_device

    def test_it_keeps_the_promises(tmp_path):
        check_handler(lambda: open_device(MyHandler, f"{tmp_path}/disk", size=4 << 20), persistent=True)

`check_handler` takes a *maker*: a callable that opens a device each time it is called. With `persistent=True` what was
written must be there again at the next call. Each promise is a function of its own, `check_…(make)`, listed in
`PROMISES`; a `PromiseBroken` (an AssertionError) says which one was broken, and how: the call, the offset, the values.
What can't be checked is left out and listed: the handler lacks it, or claims (`claims=`, see `CLAIMS`) not to do it.

What commands can show is checked by the hooks, and again through each of `WAYS`, the ways in: the engine, the portal's
session, the kernel's ring; `reached` opens a device through one of them.

`open_device` alone serves for tests of one's own: it gives a device with blocking `read` and `write`.

`Initiator` is a small iSCSI initiator without I/O, `Client` one on a socket. The pytest fixture `tcmu_disk` comes with
the package: see docs/testing.md.
"""

from tcmu_core.testing.client import Client
from tcmu_core.testing.harness import Hangs, OpenDevice, PromiseBroken, open_device
from tcmu_core.testing.initiator import Initiator, InitiatorError, Reply
from tcmu_core.testing.kit import CLAIMS, PROMISES, Report, check_handler
from tcmu_core.testing.through import THROUGH, Reached, reached
from tcmu_core.testing.ways import WAYS

__all__ = [
    "CLAIMS",
    "PROMISES",
    "THROUGH",
    "WAYS",
    "Client",
    "Hangs",
    "Initiator",
    "InitiatorError",
    "OpenDevice",
    "PromiseBroken",
    "Reached",
    "Reply",
    "Report",
    "check_handler",
    "open_device",
    "reached",
]
