"""All that there is to see of a host, in messages each of which has room in a packet."""

from __future__ import annotations

import pytest

from tcmu_core.channel import LARGEST
from tcmu_core.codec import encode
from tcmu_core.host.messages import (
    DiskCounters,
    DiskStatus,
    ErrorCount,
    InitiatorCounters,
    Looked,
    Missing,
    OperationCounters,
    SessionStatus,
    Status,
    TimesTaken,
)
from tcmu_core.host.telling import looked
from tcmu_core.scsi.tally import BUCKETS

LONG = "iqn.2026-01.org.example:" + "x" * 199
TAKEN = TimesTaken((10_123_456_789,) * BUCKETS, 1 << 62)
ERRORS = tuple(ErrorCount("illegal_request", 1 << 40) for _ in range(4))
BUSY = OperationCounters(0x28, "persistent_reserve_out", 1 << 40, 1 << 60, 1 << 16, ERRORS, TAKEN, TAKEN, TAKEN)
SESSION = SessionStatus(
    LONG, "800000000001", 65535, "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535", 1.7e9 + 0.123456, LONG,
    tuple(range(64)), "u" * 64, True, True, 128, ("LUN 0: registered, and holds the reservation",) * 4,
)  # fmt: skip


def disk(lun: int, initiators: int) -> DiskStatus:
    return DiskStatus(
        lun, "file", f"disk-{lun}", "/path" * 40, 1 << 60, 4096, False, True, False, ("rate",), (LONG,) * initiators
    )


@pytest.mark.parametrize(
    ("disks", "initiators", "operations"), [(1, 1, 1), (1, 16, 3), (20, 16, 12), (1, 16, 40), (100, 1, 1)]
)
def test_all_of_it_is_told_and_each_message_has_room(disks: int, initiators: int, operations: int) -> None:
    status = Status(1, tuple(disk(lun, initiators) for lun in range(disks)), (Missing(9, "file/x", "why" * 30),))
    counters = [
        DiskCounters(lun, InitiatorCounters(f"{LONG}{number}", (BUSY,) * operations, 1.5))
        for lun in range(disks)
        for number in range(initiators)
    ]
    sessions = [SESSION] * initiators * 4
    told = list(looked(status, counters, sessions))
    assert all(len(encode(one)) < LARGEST for one in told)
    assert [one for part in told for one in part.counters] == counters
    assert [one for part in told for one in part.sessions] == sessions
    assert [part.over for part in told] == [False] * (len(told) - 1) + [True]
    assert [part.status for part in told if part.status is not None] == [status]


def test_of_a_host_with_little_to_say_it_is_one_message() -> None:
    counters = [DiskCounters(0, InitiatorCounters(LONG, (BUSY,) * 4, 1.5)) for _ in range(4)]
    assert len(list(looked(Status(1, (disk(0, 4),)), counters, [SESSION] * 4))) == 1
    assert list(looked(Status(1), (), ())) == [Looked((), True, Status(1))]
