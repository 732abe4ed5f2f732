"""Journal: the changes that only a flush makes stable, so that they can be written again when the server was lost."""

from __future__ import annotations

from collections import deque

from tcmu_nbd.request import Request


class Journal:
    """Changes that were sent and are not covered by a flush. `limit` is the memory for them in bytes; 0 keeps none.

    `needed` is False for a server without flushes: it says that what it acknowledged is stable. `changes` counts those
    that were acknowledged and are not, `flushed` says how many of them a flush has covered: both are right without
    memory too.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.needed = True
        self.memory = 0
        self.changes = 0
        self.flushed = 0
        self._sent: dict[Request, None] = {}  # in the order in which they were sent
        self._acknowledged: deque[Request] = deque()  # those of them that were, in the order of that

    def wants(self, request: Request) -> bool:
        """Say whether a change is to be kept until a flush.

        One that was written through needs no flush, but an older one that is written again must not end on top of it.
        """
        return bool(self.limit and self.needed and request.changes and (request.volatile or self._sent))

    def has_room(self, request: Request) -> bool:
        """Say whether a change can be kept; one alone always can."""
        return not self.memory or self.memory + request.memory <= self.limit

    @property
    def half_full(self) -> bool:
        """Whether half of the memory is used."""
        return self.memory * 2 > self.limit

    @property
    def flushable(self) -> bool:
        """Whether a flush would make room."""
        return bool(self._acknowledged)

    def add(self, request: Request) -> None:
        """Keep a change that is being sent."""
        self._sent[request] = None
        self.memory += request.memory

    def acknowledge(self, request: Request) -> None:
        """Note that a change was acknowledged."""
        if request in self._sent:
            self.changes += 1
            request.acknowledged = True
            request.number = self.changes
            self._acknowledged.append(request)
        elif request.volatile and self.needed:
            self.changes += 1

    def forget(self, request: Request) -> None:
        """Drop a change that was not acknowledged, or anything that is not kept."""
        if request in self._sent:
            del self._sent[request]
            self.memory -= request.memory

    def covered(self, number: int) -> None:
        """Note that a flush has succeeded that was sent when so many changes had been acknowledged."""
        self.flushed = max(self.flushed, number)
        while self._acknowledged and self._acknowledged[0].number <= number:
            self.forget(self._acknowledged.popleft())

    def again(self) -> deque[Request]:
        """Return the acknowledged changes, as they were sent."""
        return deque(request for request in self._sent if request.acknowledged)

    def give_up(self) -> None:
        """Keep nothing from now on: no flush can succeed any more."""
        self.limit = self.memory = 0
        self._sent.clear()
        self._acknowledged.clear()
