from __future__ import annotations

from typing import Any

import pytest

from tcmu_core.iscsi.negotiation import Parameters, When, negotiate
from tcmu_core.iscsi.settings import PortalSettings

SETTINGS = PortalSettings()

# key, what the initiator offers, what is answered (None: nothing), the parameter and its value afterwards
ROWS: list[tuple[str, str, str | None, str, Any]] = [
    ("HeaderDigest", "CRC32C,None", "CRC32C", "header_digest", "CRC32C"),
    ("HeaderDigest", "None,CRC32C", "None", "header_digest", "None"),
    ("DataDigest", "MD5,CRC32C", "CRC32C", "data_digest", "CRC32C"),
    ("DataDigest", "MD5", "Reject", "data_digest", "None"),
    ("MaxConnections", "8", "1", "max_connections", 1),
    ("InitialR2T", "No", "No", "initial_r2t", False),
    ("InitialR2T", "Yes", "Yes", "initial_r2t", True),
    ("InitialR2T", "yes", "Reject", "initial_r2t", True),
    ("ImmediateData", "Yes", "Yes", "immediate_data", True),
    ("ImmediateData", "No", "No", "immediate_data", False),
    ("MaxRecvDataSegmentLength", "262144", None, "max_segment", 262144),
    ("MaxRecvDataSegmentLength", "0x400", None, "max_segment", 1024),
    ("MaxRecvDataSegmentLength", "511", "Reject", "max_segment", 8192),
    ("MaxRecvDataSegmentLength", "16777216", "Reject", "max_segment", 8192),
    ("MaxBurstLength", "16776192", "1048576", "max_burst", 1048576),
    ("MaxBurstLength", "65536", "65536", "max_burst", 65536),
    ("FirstBurstLength", "65536", "65536", "first_burst", 65536),
    ("FirstBurstLength", "1048576", "262144", "first_burst", 262144),
    ("FirstBurstLength", "-1", "Reject", "first_burst", 65536),
    ("DefaultTime2Wait", "5", "5", "time2wait", 5),
    ("DefaultTime2Retain", "20", "0", "time2retain", 0),
    ("DefaultTime2Retain", "3601", "Reject", "time2retain", 20),
    ("MaxOutstandingR2T", "1", "1", "max_outstanding_r2t", 1),
    ("MaxOutstandingR2T", "64", "4", "max_outstanding_r2t", 4),
    ("DataPDUInOrder", "No", "Yes", "data_pdu_in_order", True),
    ("DataSequenceInOrder", "No", "Yes", "data_sequence_in_order", True),
    ("ErrorRecoveryLevel", "2", "0", "error_recovery_level", 0),
    ("ErrorRecoveryLevel", "3", "Reject", "error_recovery_level", 0),
    ("TaskReporting", "FastAbort,RFC3720", "RFC3720", "task_reporting", "RFC3720"),
    ("iSCSIProtocolLevel", "2", "1", "protocol_level", 1),
    ("InitiatorAlias", "my laptop", None, "initiator_alias", "my laptop"),
    ("IFMarker", "Yes", "No", "initial_r2t", True),
    ("OFMarker", "No", "No", "initial_r2t", True),
    ("IFMarkInt", "2048~65535", "Reject", "initial_r2t", True),
    ("X-com.example.key", "1", "NotUnderstood", "initial_r2t", True),
    ("X#NodeArchitecture", "os:linux", "NotUnderstood", "initial_r2t", True),
    ("RDMAExtensions", "Yes", "NotUnderstood", "initial_r2t", True),
    ("X-com.example.key", "NotUnderstood", None, "initial_r2t", True),
    ("X-com.example.key", "", "NotUnderstood", "initial_r2t", True),
    ("MaxBurstLength", "", "Reject", "max_burst", 262144),
    ("MaxBurstLength", "0x1_0000", "Reject", "max_burst", 262144),
    ("MaxBurstLength", "0X10000", "65536", "max_burst", 65536),
    ("MaxBurstLength", "1" * 5000, "Reject", "max_burst", 262144),
    ("InitiatorAlias", "", None, "initiator_alias", ""),
    ("SendTargets", "All", "NotUnderstood", "initial_r2t", True),
    ("ImmediateData", "Irrelevant", None, "immediate_data", True),
]


@pytest.mark.parametrize(("key", "offer", "answer", "name", "value"), ROWS, ids=[f"{r[0]}={r[1]}" for r in ROWS])
def test_each_key_is_negotiated_by_its_rule(key: str, offer: str, answer: str | None, name: str, value: Any) -> None:
    agreed, answers = negotiate({key: offer}, Parameters(), SETTINGS, phase=When.LOGIN)
    assert answers == ({} if answer is None else {key: answer})
    assert getattr(agreed, name) == value


def test_first_burst_never_exceeds_max_burst() -> None:
    agreed, answers = negotiate(
        {"FirstBurstLength": "65536", "MaxBurstLength": "4096"}, Parameters(), SETTINGS, phase=When.LOGIN
    )
    assert (agreed.first_burst, agreed.max_burst) == (4096, 4096)
    assert answers == {"FirstBurstLength": "4096", "MaxBurstLength": "4096"}


def test_a_first_burst_that_is_none_is_rejected_beside_a_short_burst_too() -> None:
    offers = {"FirstBurstLength": "-1", "MaxBurstLength": "4096"}
    agreed, answers = negotiate(offers, Parameters(), SETTINGS, phase=When.LOGIN)
    assert (agreed.first_burst, answers) == (4096, {"FirstBurstLength": "Reject", "MaxBurstLength": "4096"})


def test_operational_keys_are_irrelevant_in_discovery() -> None:
    offers = {"InitialR2T": "No", "HeaderDigest": "None", "MaxBurstLength": "4096"}
    _, answers = negotiate(offers, Parameters(), SETTINGS, phase=When.LOGIN, discovery=True)
    assert answers == {"InitialR2T": "Irrelevant", "HeaderDigest": "None", "MaxBurstLength": "Irrelevant"}


def test_a_login_key_is_rejected_in_full_feature_phase() -> None:
    agreed, answers = negotiate(
        {"InitialR2T": "No", "MaxRecvDataSegmentLength": "4096"}, Parameters(), SETTINGS, phase=When.FULL_FEATURE
    )
    assert answers == {"InitialR2T": "Reject"}
    assert agreed.max_segment == 4096


def test_a_portal_that_wants_digests_takes_nothing_else() -> None:
    settings = PortalSettings(header_digests=("CRC32C",))
    agreed, answers = negotiate({"HeaderDigest": "None,CRC32C"}, Parameters(), settings, phase=When.LOGIN)
    assert (agreed.header_digest, answers) == ("CRC32C", {"HeaderDigest": "CRC32C"})
