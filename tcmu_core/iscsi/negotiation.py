"""The keys that a login negotiates (RFC 7143 section 13): one row for each, and the rules that rows name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Flag, auto
from typing import Any

from tcmu_core.iscsi.settings import PortalSettings

NOT_UNDERSTOOD = "NotUnderstood"
IRRELEVANT = "Irrelevant"
REJECT = "Reject"
ANSWERS = {NOT_UNDERSTOOD, IRRELEVANT, REJECT}
MAX_SEGMENT = 0xFFFFFF
NUMERAL = re.compile(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}")  # up to 64 bits (6.1)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a session has agreed on; the defaults are those of RFC 7143 section 13. Bytes and seconds."""

    header_digest: str = "None"
    data_digest: str = "None"
    initial_r2t: bool = True
    immediate_data: bool = True
    max_segment: int = 8192  # MaxRecvDataSegmentLength of the initiator
    max_burst: int = 262144
    first_burst: int = 65536
    time2wait: int = 2
    time2retain: int = 20
    max_outstanding_r2t: int = 1
    max_connections: int = 1
    error_recovery_level: int = 0
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    protocol_level: int = 1
    task_reporting: str = "RFC3720"
    initiator_alias: str = ""


class When(Flag):
    """When a key may be used (the "Use" line of each key): in the leading login, and in full-feature phase."""

    LOGIN = auto()
    FULL_FEATURE = auto()
    NOT_IN_DISCOVERY = auto()
    ALWAYS = LOGIN | FULL_FEATURE


class Invalid(ValueError):
    """A value that the key can't have; answered with Reject."""


Rule = Callable[["Key", str, PortalSettings], tuple[Any, str | None]]  # value agreed on, and what is answered


@dataclass(frozen=True, slots=True)
class Key:
    """One row: `rule` turns the initiator's value into the result, which becomes Parameters.`name`."""

    rule: Rule
    name: str = ""
    ours: Callable[[PortalSettings], Any] = lambda settings: None
    bounds: tuple[int, int] = (0, 0)
    when: When = When.LOGIN


def number(text: str, bounds: tuple[int, int]) -> int:
    """Return a decimal or hex numeral that lies within `bounds` (RFC 7143 6.1)."""
    if not NUMERAL.fullmatch(text):
        raise Invalid(text)
    value = int(text, 16 if text[:2] in {"0x", "0X"} else 10)
    if not bounds[0] <= value <= bounds[1]:
        raise Invalid(text)
    return value


def yes(text: str) -> bool:
    """Return the boolean that `text` is."""
    if text not in {"Yes", "No"}:
        raise Invalid(text)
    return text == "Yes"


def _minimum(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    value = min(number(text, key.bounds), key.ours(settings))
    return value, str(value)


def _maximum(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    value = max(number(text, key.bounds), key.ours(settings))
    return value, str(value)


def _and(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    value = yes(text) and key.ours(settings)
    return value, "Yes" if value else "No"


def _or(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    value = yes(text) or key.ours(settings)
    return value, "Yes" if value else "No"


def _choice(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    """Take the first value of the initiator's list that we accept (6.2.1)."""
    acceptable = key.ours(settings)
    for value in text.split(","):
        if value in acceptable:
            return value, value
    raise Invalid(text)


def _declared_number(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    return number(text, key.bounds), None


def _declared_text(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    if len(text.encode()) > 255:
        raise Invalid(text)
    return text, None


def _obsolete_no(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    """Markers are gone (13.25): nobody uses them."""
    return None, "No"


def _obsolete(key: Key, text: str, settings: PortalSettings) -> tuple[Any, str | None]:
    raise Invalid(text)


_NORMAL = When.LOGIN | When.NOT_IN_DISCOVERY
_SIZES = (512, MAX_SEGMENT)

KEYS: dict[str, Key] = {
    "HeaderDigest": Key(_choice, "header_digest", lambda s: s.header_digests),  # 13.1
    "DataDigest": Key(_choice, "data_digest", lambda s: s.data_digests),  # 13.1
    "MaxConnections": Key(_minimum, "max_connections", lambda s: 1, (1, 65535), _NORMAL),  # 13.2
    "InitiatorAlias": Key(_declared_text, "initiator_alias", when=When.ALWAYS),  # 13.7
    "InitialR2T": Key(_or, "initial_r2t", lambda s: False, when=_NORMAL),  # 13.10
    "ImmediateData": Key(_and, "immediate_data", lambda s: True, when=_NORMAL),  # 13.11
    "MaxRecvDataSegmentLength": Key(_declared_number, "max_segment", bounds=_SIZES, when=When.ALWAYS),  # 13.12
    "MaxBurstLength": Key(_minimum, "max_burst", lambda s: s.limits.burst, _SIZES, _NORMAL),  # 13.13
    "FirstBurstLength": Key(_minimum, "first_burst", lambda s: s.limits.first_burst, _SIZES, _NORMAL),  # 13.14
    "DefaultTime2Wait": Key(_maximum, "time2wait", lambda s: 0, (0, 3600)),  # 13.15
    "DefaultTime2Retain": Key(_minimum, "time2retain", lambda s: 0, (0, 3600)),  # 13.16: ERL 0 retains nothing
    "MaxOutstandingR2T": Key(
        _minimum, "max_outstanding_r2t", lambda s: s.limits.outstanding_r2t, (1, 65535), _NORMAL
    ),  # 13.17
    "DataPDUInOrder": Key(_or, "data_pdu_in_order", lambda s: True, when=_NORMAL),  # 13.18
    "DataSequenceInOrder": Key(_or, "data_sequence_in_order", lambda s: True, when=_NORMAL),  # 13.19
    "ErrorRecoveryLevel": Key(_minimum, "error_recovery_level", lambda s: 0, (0, 2)),  # 13.20
    "TaskReporting": Key(_choice, "task_reporting", lambda s: ("RFC3720",), when=_NORMAL),  # 13.23
    "iSCSIProtocolLevel": Key(_minimum, "protocol_level", lambda s: 1, (0, 31), _NORMAL),  # 13.24
    "IFMarker": Key(_obsolete_no),  # 13.25
    "OFMarker": Key(_obsolete_no),
    "IFMarkInt": Key(_obsolete),
    "OFMarkInt": Key(_obsolete),
}


def negotiate(
    pairs: Mapping[str, str], agreed: Parameters, settings: PortalSettings, *, phase: When, discovery: bool = False
) -> tuple[Parameters, dict[str, str]]:
    """Return the parameters after the initiator's `pairs`, and the pairs to answer with."""
    answers: dict[str, str] = {}
    results: dict[str, Any] = {}
    for name, text in pairs.items():
        key = KEYS.get(name)
        if text in ANSWERS:
            continue  # to something that we have not asked
        if key is None:
            answers[name] = NOT_UNDERSTOOD
        elif phase not in key.when:
            answers[name] = REJECT
        elif discovery and When.NOT_IN_DISCOVERY in key.when:
            answers[name] = IRRELEVANT
        else:
            try:
                value, answer = key.rule(key, text, settings)
            except Invalid:
                answers[name] = REJECT
                continue
            if key.name:
                results[key.name] = value
            if answer is not None:
                answers[name] = answer
    agreed = replace(agreed, **results)
    if agreed.first_burst > agreed.max_burst:  # 13.14: must not exceed it
        agreed = replace(agreed, first_burst=agreed.max_burst)
        if answers.get("FirstBurstLength", REJECT) != REJECT:
            answers["FirstBurstLength"] = str(agreed.max_burst)
    return agreed, answers
