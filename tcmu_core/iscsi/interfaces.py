"""The addresses of this host, as the kernel tells them in /proc: for discovery on a portal that listens on all."""

from __future__ import annotations

import ipaddress
from pathlib import Path

LINK_LOCAL = "20"  # the scope of addresses that mean nothing without an interface


def own_addresses(ipv6: bool, proc: Path = Path("/proc")) -> list[str]:
    """Return the addresses of one family that others can reach this host at; loopback only where there is no other."""
    found = _ipv6(proc) if ipv6 else _ipv4(proc)
    return [text for text in found if not ipaddress.ip_address(text).is_loopback] or found


def _ipv6(proc: Path) -> list[str]:
    """Read lines of address, interface number, prefix length, scope, flags, name."""
    try:
        lines = (proc / "net/if_inet6").read_text().splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [str(ipaddress.IPv6Address(bytes.fromhex(row[0]))) for row in rows if row[3] != LINK_LOCAL]


def _ipv4(proc: Path) -> list[str]:
    """Read the routing trie, where a line `|-- ADDRESS` is followed by what it is: our own are `/32 host LOCAL`."""
    try:
        lines = (proc / "net/fib_trie").read_text().splitlines()
    except OSError:
        return []
    found: dict[str, None] = {}  # the trie of the local table may come twice
    address = ""
    for line in lines:
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            found[address] = None
    return list(found)
