"""Events: what GET EVENT STATUS NOTIFICATION tells each initiator once (MMC-6, the command of that name)."""

from __future__ import annotations

import weakref
from collections import deque
from enum import IntEnum
from itertools import count

from tcmu_core import Nexus
from tcmu_fbo.layout import Field, Layout, flag, word

KEPT = 32  # events of each class that are kept for initiators that poll seldom


class EventClass(IntEnum):
    """Notification classes that this drive has."""

    OPERATIONAL_CHANGE = 1
    POWER_MANAGEMENT = 2
    MEDIA = 4
    DEVICE_BUSY = 6


class MediaEvent(IntEnum):
    """Media event codes."""

    NO_CHANGE = 0
    EJECT_REQUEST = 1
    NEW_MEDIA = 2
    MEDIA_REMOVAL = 3


class PowerEvent(IntEnum):
    """Power management event codes."""

    NO_CHANGE = 0
    CHANGED = 1


CHANGED = 2  # operational change event code: the drive changed
FEATURE_CHANGE = 0x0001  # operational change: features
NOT_BUSY, BUSY = 0, 1  # device busy status

HEADER = Layout(4, length=word(0), nea=flag(2, 7), notification_class=Field(2, 2, 3), supported=Field(3))
OPERATIONAL = Layout(
    4, event=Field(0, 3, 4), persistent_prevent=flag(1, 7), status=Field(1, 3, 4), operational_change=word(2)
)
POWER = Layout(4, event=Field(0, 3, 4), status=Field(1))
MEDIA = Layout(4, event=Field(0, 3, 4), present=flag(1, 1), open=flag(1, 0), start_slot=Field(2), end_slot=Field(3))
DEVICE_BUSY = Layout(4, event=Field(0, 3, 4), status=Field(1), time=word(2))

SUPPORTED = sum(1 << number for number in EventClass)


class Events:
    """What happened, and how much of it each nexus has been told.

    A nexus is told of what happens after its first command. It is forgotten with its last reference.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._latest = 0
        self._log: dict[EventClass, deque[tuple[int, int]]] = {kind: deque(maxlen=KEPT) for kind in EventClass}
        self._told: weakref.WeakKeyDictionary[Nexus, dict[EventClass, int]] = weakref.WeakKeyDictionary()

    def greet(self, nexus: Nexus) -> None:
        """Note that `nexus` is there: it hears of what happens from now on."""
        if nexus not in self._told:
            self._told[nexus] = dict.fromkeys(EventClass, self._latest)

    def add(self, kind: EventClass, code: int) -> None:
        """Note an event for every nexus."""
        self._latest = next(self._numbers)
        self._log[kind].append((self._latest, code))

    def pending(self, nexus: Nexus, kind: EventClass) -> bool:
        """Return whether an event of this class waits for `nexus`."""
        log = self._log[kind]
        return bool(log) and log[-1][0] > self._told[nexus][kind]

    def take(self, nexus: Nexus, kind: EventClass) -> int:
        """Return the code of the oldest event that `nexus` has not been told of, 0 (no change) when there is none."""
        told = self._told[nexus]
        for number, code in self._log[kind]:
            if number > told[kind]:
                told[kind] = number
                return code
        return 0
