"""The target port groups of tcmu.conf: who moves them, their portals, and their states for each logical unit."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.settings import format_address, parse_address
from tcmu_core.scsi.alua import MAX_GROUP, AccessState, Arrangement, PortGroup
from tcmu_core.scsi.opcodes import Tpgs

STATES = {state.name.lower().replace("_", "-"): state for state in AccessState}
PREFERRED = "preferred"


def access_state(text: str) -> AccessState:
    """Return the access state of this name; raises `ConfigError`."""
    state = STATES.get(text.strip().lower().removeprefix("active/"))
    if state is None:
        raise ConfigError(f"{text!r} is no access state: {', '.join(STATES)}")
    return state


def access(text: str) -> Tpgs:
    """Return who moves groups: `implicit`, `explicit` or `both`; raises `ConfigError`."""
    known = {one.name.lower(): one for one in (Tpgs.IMPLICIT, Tpgs.EXPLICIT, Tpgs.BOTH) if one.name}
    if text.strip().lower() not in known:
        raise ConfigError(f"{text!r} is none of {', '.join(known)}")
    return known[text.strip().lower()]


def group_id(text: str) -> int:
    """Return the number of a group: its portals' tag, and its target port's identifier; raises `ConfigError`."""
    if not text.isdecimal() or not 0 < int(text) <= MAX_GROUP:
        raise ConfigError(f"[[[[{text}]]]] is no group: write a number from 1 to {MAX_GROUP}")
    return int(text)


def add_portals(found: dict[str, int], group: int, portals: Iterable[str]) -> None:
    """Add the portals of a group, by address as sockets have it; raises `ConfigError` for what is in another."""
    for text in portals:
        host, port = parse_address(text)
        if ipaddress.ip_address(host).is_unspecified or not port:
            raise ConfigError(f"portal {text!r}: a group needs addresses and ports that clients reach")
        address = format_address(str(ipaddress.ip_address(host)), port)
        if found.setdefault(address, group) != group:
            raise ConfigError(f"portal {text!r} is in group {found[address]} already")


def listened(portals: Mapping[str, int], listen: Iterable[str]) -> bool:
    """Return whether any of these portals is listened on here."""
    for text in listen:
        host, port = parse_address(text)
        address = ipaddress.ip_address(host)
        for portal in portals:
            own, number = parse_address(portal)
            if number == port and (address.is_unspecified or ipaddress.ip_address(own) == address):
                return True
    return False


def arrangement(who: Tpgs, seconds: int, sections: Mapping[str, Mapping[str, Any]]) -> Arrangement:
    """Return the groups of a target; raises `ConfigError`. A portal group is one target port (RFC 7143 4.4.1)."""
    made = []
    for text, own in sections.items():
        number = group_id(text)
        made.append(PortGroup(number, (number,), own["state"], own["preferred"]))
    return Arrangement(tuple(sorted(made, key=lambda group: group.id)), who, seconds)


def with_states(general: Arrangement, words: Iterable[str]) -> Arrangement:
    """Return the groups in the states that a logical unit has of its own: `ID STATE [preferred]` each.

    Raises:
        ConfigError: there is no such group or state.
    """
    groups = {group.id: group for group in general.groups}
    for text in words:
        number, *rest = text.split() or [""]
        known = groups.get(int(number)) if number.isdecimal() else None
        if known is None or not 0 < len(rest) <= 2 or rest[1:] not in ([], [PREFERRED]):
            raise ConfigError(f"groups: {text!r}: write ID STATE, and {PREFERRED} if it is; there are {list(groups)}")
        groups[known.id] = replace(known, state=access_state(rest[0]), preferred=len(rest) == 2)
    return replace(general, groups=tuple(groups.values()))
