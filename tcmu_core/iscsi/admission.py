"""Who gets in when there is little room: what each newcomer finds taken, and who makes way for it.

No address and no user has more than a share of the connections. Those that have not logged in make way first, then
discovery sessions, then sessions that nobody gave a password for, and these only for one that did; of them the oldest
of the address that has most. So whoever takes many connections crowds out itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

from tcmu_core.iscsi.settings import Limits

WAITING_ROOM = 16  # connections that may be at their login beyond the limit
LEFT_BEHIND = 16  # sessions that a host may leave with commands that have not ended, however small the limits are


class Rank(IntEnum):
    """What a connection is, the ones that make way first."""

    LOGGING_IN = 0
    DISCOVERY = 1
    OPEN = 2  # a session without a password
    PROVED = 3  # a session of a user who gave one


@dataclass(frozen=True, slots=True)
class Standing:
    """What a connection stands for: its rank, the host that it comes from, and its user."""

    rank: Rank
    host: str
    user: str | None = None


class Member(Protocol):
    """A connection."""

    @property
    def standing(self) -> Standing:
        """What it stands for now."""


M = TypeVar("M", bound=Member)


class Full(Exception):
    """There is no room; the message says why."""


def enter(members: Iterable[M], host: str, limits: Limits) -> M | None:
    """Return who makes way for a new connection from `host`, if anybody has to.

    Raises:
        Full: it can't come in.
    """
    members = list(members)
    own = [member for member in members if member.standing.host == host]
    if len(own) >= limits.share + WAITING_ROOM // 2:
        victim = _first(own, Rank.DISCOVERY)
        if victim is None:
            raise Full(f"{host} has {len(own)} connections already")
        return victim
    if len(members) >= limits.connections + WAITING_ROOM:
        victim = _first(members, Rank.DISCOVERY)
        if victim is None:
            raise Full(f"there are {len(members)} connections already")
        return victim
    return None


def leaves_too_much(count: int, limits: Limits) -> bool:
    """Return whether a host has left too many sessions, `count`, whose commands have not ended.

    The storage has to answer first: whoever comes and goes meanwhile would leave more and more of them.
    """
    return count >= max(limits.share, LEFT_BEHIND)


def log_in(members: Iterable[M], newcomer: Standing, limits: Limits) -> M | None:
    """Return who makes way for a connection that has just become `newcomer`, if anybody has to; `members` without it.

    Raises:
        Full: it can't log in.
    """
    sessions = [member for member in members if member.standing.rank is not Rank.LOGGING_IN]
    of_host = [member for member in sessions if member.standing.host == newcomer.host]
    most = Rank.DISCOVERY if newcomer.user is None else Rank.OPEN  # who proves who it is goes before those who don't
    if len(of_host) >= limits.share:
        victim = _first(of_host, most)
        if victim is None:
            raise Full(f"{newcomer.host} has {len(of_host)} sessions already")
        return victim
    if newcomer.user is not None:
        count = sum(member.standing.user == newcomer.user for member in sessions)
        if count >= limits.share:
            raise Full(f"user {newcomer.user!r} has {count} sessions already")
    if len(sessions) >= limits.connections:
        victim = _first(sessions, most)
        if victim is None:
            raise Full(f"there are {len(sessions)} sessions already")
        return victim
    return None


def _first(members: list[M], most: Rank) -> M | None:
    """Return the member that makes way first, of a rank up to `most`."""
    per_host = Counter(member.standing.host for member in members if member.standing.rank <= most)
    order = [
        (member.standing.rank, -per_host[member.standing.host], age)
        for age, member in enumerate(members)
        if member.standing.rank <= most
    ]
    return members[min(order)[2]] if order else None
