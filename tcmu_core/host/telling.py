"""All that there is to see of a host, in as few messages as have room for it: a packet of a channel is not larger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tcmu_core.host.messages import DiskCounters, Looked, OperationCounters, SessionStatus, Status

ROOM = 96 << 10  # bytes of one message, by the weights below: three quarters of what a packet carries
_NAME = 240  # bytes: of an initiator (RFC 7143 4.2.7.1: 223), in quotes
_FIXED = 400  # of a disk, a session or an operation beside what follows


def looked(
    status: Status, counters: Iterable[DiskCounters], sessions: Iterable[SessionStatus], number: int = 0
) -> Iterator[Looked]:
    """Yield it in parts, the last of which is `over` and has the status, and the number of all of it."""
    some: list[DiskCounters] = []
    who: list[SessionStatus] = []
    taken = 0
    for one in counters:
        weight = _NAME + sum(map(_operation, one.counters.operations))
        if taken + weight > ROOM and taken:
            yield Looked(tuple(some))
            some, taken = [], 0
        some.append(one)
        taken += weight
    for session in sessions:
        weight = _FIXED + 2 * _NAME + 80 * len(session.reservations) + 8 * len(session.luns)
        if taken + weight > ROOM and taken:
            yield Looked(tuple(some), sessions=tuple(who))
            some, who, taken = [], [], 0
        who.append(session)
        taken += weight
    if taken and taken + _status(status) > ROOM:
        yield Looked(tuple(some), sessions=tuple(who))
        some, who = [], []
    yield Looked(tuple(some), True, status, tuple(who), number)


def _operation(one: OperationCounters) -> int:
    """Return how many bytes the counters of an operation code take at most, or nearly so."""
    counts = sum(len(times.counts) for times in (one.queue, one.storage, one.send))
    return _FIXED + 12 * counts + 64 * len(one.errors)


def _status(status: Status) -> int:
    disks = sum(_FIXED + len(one.cfgstring) + len(one.name) + _NAME * len(one.initiators) for one in status.disks)
    return disks + sum(_FIXED + len(one.reason) + len(one.title) for one in status.missing)
