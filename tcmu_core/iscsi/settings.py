"""What an administrator decides about a portal: addresses, limits, who may log in."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.chap import Algorithm

DIGESTS = ("CRC32C", "None")
PORT = 3260  # IANA's for iSCSI targets
MIN_SECRET = 12  # bytes; a CHAP secret of less than 96 bits can be found by trying (RFC 7143 9.2.1)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAMED = re.compile(rf"({_LABEL}(?:\.{_LABEL})*)(?::([0-9]{{1,5}}))?")  # a host name (RFC 1123 2.1), and a port
_DIGITS = re.compile(r"[0-9.]+")
_CLASS = re.compile(r"\[!?\]?[^\]]*\]")  # a choice of characters in a pattern, as fnmatch has it
MAX_SECONDS = 86400.0  # a day: of a time that somebody is waited for


@dataclass(frozen=True, slots=True)
class ChapUser:
    """A name and its secret, and the initiator names that it may log in with: patterns; none: any."""

    name: str
    secret: bytes = field(repr=False)
    initiators: tuple[str, ...] = ()

    def may_be(self, initiator: str) -> bool:
        """Return whether this user may log in with this initiator name."""
        return _matches(self.initiators, initiator)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may log in: `users` (none: no CHAP), our own `outgoing` name for mutual CHAP, initiator name patterns."""

    users: tuple[ChapUser, ...] = ()
    outgoing: ChapUser | None = None
    initiators: tuple[str, ...] = ()  # fnmatch patterns; none: everyone
    algorithms: tuple[Algorithm, ...] = tuple(Algorithm)

    def __post_init__(self) -> None:
        for pattern in (*self.initiators, *(pattern for user in self.users for pattern in user.initiators)):
            check_pattern(pattern)
        for user in (*self.users, *([self.outgoing] if self.outgoing else [])):
            if not user.name or not user.secret:
                raise ConfigError("CHAP needs a name and a secret that are not empty")
        if self.outgoing is not None:
            if not self.users:
                raise ConfigError("mutual CHAP needs incoming CHAP users too")
            if any(user.secret == self.outgoing.secret for user in self.users):
                raise ConfigError("mutual CHAP: the outgoing secret must differ from the incoming ones")

    def allows(self, initiator: str) -> bool:
        """Return whether the initiator of this name may log in at all."""
        return _matches(self.initiators, initiator)

    @property
    def restricted(self) -> bool:
        """Return whether anybody is kept out."""
        return bool(self.users) or bool(self.initiators and not any(map(_fits_all, self.initiators)))


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what one peer, and all peers together, can make us spend. Sizes in bytes, times in seconds."""

    connections: int = 64
    login_text: int = 16384  # of one login, all its requests together
    login_requests: int = 64  # of one login
    login_timeout: float = 15.0
    nop_interval: float = 30.0  # silence after which the peer is asked for a sign of life
    nop_timeout: float = 15.0  # ... and how long it may take to give one
    queue_depth: int = 128  # commands in flight for one session: the CmdSN window
    segment: int = 262144  # MaxRecvDataSegmentLength that we declare
    burst: int = 1048576  # MaxBurstLength that we take at most
    first_burst: int = 262144  # FirstBurstLength likewise
    outstanding_r2t: int = 4  # MaxOutstandingR2T likewise
    transfer: int = 16777216  # data of one command; more is not asked for and reported as residual
    memory: int = 67108864  # all that one session makes us keep
    total: int = 134217728  # ... and all sessions of a process together, besides a share that each always has
    send_queue: int = 4194304  # unsent output beyond which a session's commands wait

    @property
    def share(self) -> int:
        """The sessions that one address, or one user, may have."""
        return max(1, self.connections * 3 // 4)

    def __post_init__(self) -> None:
        for name in ("segment", "burst", "first_burst"):
            if not 512 <= getattr(self, name) <= 0xFFFFFF:  # RFC 7143 13.12 to 13.14
                raise ConfigError(f"{name}: must be 512 to 16777215 bytes")
        for name in ("connections", "queue_depth", "outstanding_r2t"):
            if not 1 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{name}: must be 1 to 65535")
        for name in ("login_timeout", "nop_interval", "nop_timeout"):
            if not 0 < getattr(self, name) <= MAX_SECONDS:  # nor is it no number at all
                raise ConfigError(f"{name}: must be at most {MAX_SECONDS:g} seconds")


@dataclass(frozen=True, slots=True)
class PortalSettings:
    """A portal: where it listens, what it offers, who may come. `targets` overrides `access` for one target's name.

    `groups` has, for a target that is reached through several portal groups, each portal's address and the tag of its
    group. Addresses may be those of other hosts that serve the same disks.
    """

    addresses: tuple[str, ...] = ("127.0.0.1:3260",)
    access: Access = Access()
    targets: Mapping[str, Access] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)  # TargetAlias by target name
    header_digests: tuple[str, ...] = DIGESTS  # acceptable values
    data_digests: tuple[str, ...] = DIGESTS
    portal_group: int = 1
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    limits: Limits = Limits()
    insecure: bool = False  # listen beyond loopback although nobody is kept out
    advertise: tuple[str, ...] = ()  # what discovery tells instead: addresses in front of a port mapping, names too

    def __post_init__(self) -> None:
        for value in (*self.header_digests, *self.data_digests):
            if value not in DIGESTS:
                raise ConfigError(f"digest {value!r}: choose from {', '.join(DIGESTS)}")
        for address in self.advertise:
            parse_advertised(address)
        for address in self.addresses:
            host, _port = parse_address(address)
            if not self.insecure and not ipaddress.ip_address(host).is_loopback:
                open_targets = [a for a in (self.access, *self.targets.values()) if not a.restricted]
                if open_targets:
                    raise ConfigError(
                        f"portal {address}: anybody on the network could write to the disks; "
                        "set CHAP users or an initiator list, or say insecure"
                    )

    def access_to(self, target: str | None) -> Access:
        """Return who may log in to `target`; None is discovery."""
        return self.access if target is None else self.targets.get(target, self.access)

    def group_of(self, target: str, local: tuple[str, int]) -> int | None:
        """Return the tag of the portal group by which a target is reached here; None: not at this address."""
        groups = self.groups.get(target)
        return self.portal_group if groups is None else groups.get(format_address(*local))


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `127.0.0.1:3260`, `[::1]:3260` or `localhost`; port 3260 when none is given.

    Raises:
        ConfigError: it is none of these.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else rest
        bad = not bracket or (rest and not rest.startswith(":"))
    elif text.count(":") > 1:
        host, port, bad = text, "", False
    else:
        host, _colon, port = text.partition(":")
        bad = False
    host = {"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(host, host)
    try:
        ipaddress.ip_address(host)
        number = int(port) if port else PORT
        bad = bad or (bool(port) and not (port.isascii() and port.isdigit()))  # int() takes 1_000, too
    except ValueError:
        bad = True
        number = 0
    if bad or not 0 <= number <= 65535:
        raise ConfigError(f"portal address {text!r}: write it like 127.0.0.1:3260 or [::1]:3260")
    return host, number


def parse_advertised(text: str) -> tuple[str, int]:
    """Return host and port of an address as clients reach it: as `parse_address`, or with a host name.

    Raises:
        ConfigError: it is neither, or an address that stands for all.
    """
    named = _NAMED.fullmatch(text)
    if named is not None and not _DIGITS.fullmatch(named[1]) and 0 < int(named[2] or PORT) <= 65535:
        return named[1], int(named[2] or PORT)
    host, number = parse_address(text)
    if ipaddress.ip_address(host).is_unspecified or not number:
        raise ConfigError(f"advertised address {text!r}: clients need one that they can reach")
    return host, number


def check_pattern(pattern: str) -> None:
    """Raise ConfigError for a pattern that no initiator's name can fit: whoever wrote it has meant something else."""
    plain = _CLASS.sub("", pattern)
    if not pattern or not pattern.isprintable() or any(char in plain for char in " ,[]"):
        raise ConfigError(
            f"initiator pattern {pattern!r}: no name fits it: write one such as iqn.1993-08.org.debian:*, "
            "each by itself"
        )


def _fits_all(pattern: str) -> bool:
    """Return whether every name fits a pattern: it has no character of its own, and names no length."""
    return "*" in pattern and not pattern.strip("*?")


def _matches(patterns: tuple[str, ...], initiator: str) -> bool:
    name = initiator.lower()
    return not patterns or any(fnmatchcase(name, pattern.lower()) for pattern in patterns)


def format_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
