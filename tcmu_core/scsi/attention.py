"""Unit attentions: what a nexus has to be told before its next command runs (SAM-5 5.14, SPC-4 annex F)."""

from __future__ import annotations

from tcmu_core.scsi.command import Nexus

POWER_ON = (0x29, 0x00)  # (asc, ascq)
LUN_RESET = (0x29, 0x03)
MEDIUM_CHANGED = (0x28, 0x00)
MODE_PARAMETERS_CHANGED = (0x2A, 0x01)
RESERVATIONS_PREEMPTED = (0x2A, 0x03)
RESERVATIONS_RELEASED = (0x2A, 0x04)
REGISTRATIONS_PREEMPTED = (0x2A, 0x05)
ACCESS_STATE_CHANGED = (0x2A, 0x06)
TRANSITION_FAILED = (0x2A, 0x07)
CAPACITY_CHANGED = (0x2A, 0x09)
COMMANDS_CLEARED = (0x2F, 0x00)
INQUIRY_CHANGED = (0x3F, 0x03)
LUNS_CHANGED = (0x3F, 0x0E)

MAX_WAITING = 16


def establish(nexus: Nexus, attention: tuple[int, int]) -> None:
    """Queue a unit attention for one nexus, once."""
    if attention not in nexus.attentions and len(nexus.attentions) < MAX_WAITING:
        nexus.attentions.append(attention)
