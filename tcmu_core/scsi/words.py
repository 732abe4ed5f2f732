"""Sense data in words, as a person reads them: the names of SPC-4 4.5.6 and annex F."""

from __future__ import annotations

from tcmu_core.scsi.sense import SenseKey

# SPC-4 annex F: those that this target gives, and those that come from optical drives and from handlers.
ADDITIONAL = {
    (0x00, 0x00): "NO ADDITIONAL SENSE INFORMATION",
    (0x04, 0x00): "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE",
    (0x04, 0x01): "LOGICAL UNIT IS IN PROCESS OF BECOMING READY",
    (0x04, 0x02): "LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED",
    (0x04, 0x04): "LOGICAL UNIT NOT READY, FORMAT IN PROGRESS",
    (0x04, 0x0A): "LOGICAL UNIT NOT ACCESSIBLE, ASYMMETRIC ACCESS STATE TRANSITION",
    (0x04, 0x0B): "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE",
    (0x04, 0x0C): "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE",
    (0x04, 0x12): "LOGICAL UNIT NOT READY, OFFLINE",
    (0x04, 0x1B): "LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS",
    (0x08, 0x00): "LOGICAL UNIT COMMUNICATION FAILURE",
    (0x08, 0x04): "UNREACHABLE COPY TARGET",
    (0x0C, 0x00): "WRITE ERROR",
    (0x0C, 0x0C): "WRITE ERROR - UNEXPECTED UNSOLICITED DATA",
    (0x0C, 0x0D): "WRITE ERROR - NOT ENOUGH UNSOLICITED DATA",
    (0x0D, 0x01): "THIRD PARTY DEVICE FAILURE",
    (0x0D, 0x02): "COPY TARGET DEVICE NOT REACHABLE",
    (0x0D, 0x03): "INCORRECT COPY TARGET DEVICE TYPE",
    (0x0E, 0x03): "INVALID FIELD IN COMMAND INFORMATION UNIT",
    (0x11, 0x00): "UNRECOVERED READ ERROR",
    (0x1A, 0x00): "PARAMETER LIST LENGTH ERROR",
    (0x1D, 0x00): "MISCOMPARE DURING VERIFY OPERATION",
    (0x20, 0x00): "INVALID COMMAND OPERATION CODE",
    (0x21, 0x00): "LOGICAL BLOCK ADDRESS OUT OF RANGE",
    (0x24, 0x00): "INVALID FIELD IN CDB",
    (0x25, 0x00): "LOGICAL UNIT NOT SUPPORTED",
    (0x26, 0x00): "INVALID FIELD IN PARAMETER LIST",
    (0x26, 0x04): "INVALID RELEASE OF PERSISTENT RESERVATION",
    (0x26, 0x06): "TOO MANY TARGET DESCRIPTORS",
    (0x26, 0x07): "UNSUPPORTED TARGET DESCRIPTOR TYPE CODE",
    (0x26, 0x08): "TOO MANY SEGMENT DESCRIPTORS",
    (0x26, 0x09): "UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE",
    (0x27, 0x00): "WRITE PROTECTED",
    (0x27, 0x07): "SPACE ALLOCATION FAILED WRITE PROTECT",
    (0x28, 0x00): "NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED",
    (0x29, 0x00): "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED",
    (0x29, 0x03): "BUS DEVICE RESET FUNCTION OCCURRED",
    (0x2A, 0x01): "MODE PARAMETERS CHANGED",
    (0x2A, 0x03): "RESERVATIONS PREEMPTED",
    (0x2A, 0x04): "RESERVATIONS RELEASED",
    (0x2A, 0x05): "REGISTRATIONS PREEMPTED",
    (0x2A, 0x06): "ASYMMETRIC ACCESS STATE CHANGED",
    (0x2A, 0x07): "IMPLICIT ASYMMETRIC ACCESS STATE TRANSITION FAILED",
    (0x2A, 0x09): "CAPACITY DATA HAS CHANGED",
    (0x2F, 0x00): "COMMANDS CLEARED BY ANOTHER INITIATOR",
    (0x30, 0x02): "CANNOT READ MEDIUM - INCOMPATIBLE FORMAT",
    (0x30, 0x05): "CANNOT WRITE MEDIUM - INCOMPATIBLE FORMAT",
    (0x31, 0x00): "MEDIUM FORMAT CORRUPTED",
    (0x31, 0x03): "SANITIZE COMMAND FAILED",
    (0x39, 0x00): "SAVING PARAMETERS NOT SUPPORTED",
    (0x3A, 0x00): "MEDIUM NOT PRESENT",
    (0x3A, 0x01): "MEDIUM NOT PRESENT - TRAY CLOSED",
    (0x3A, 0x02): "MEDIUM NOT PRESENT - TRAY OPEN",
    (0x3E, 0x02): "TIMEOUT ON LOGICAL UNIT",
    (0x3F, 0x03): "INQUIRY DATA HAS CHANGED",
    (0x3F, 0x0E): "REPORTED LUNS DATA HAS CHANGED",
    (0x44, 0x00): "INTERNAL TARGET FAILURE",
    (0x47, 0x05): "PROTOCOL SERVICE CRC ERROR",
    (0x49, 0x00): "INVALID MESSAGE ERROR",
    (0x53, 0x02): "MEDIUM REMOVAL PREVENTED",
    (0x55, 0x04): "INSUFFICIENT REGISTRATION RESOURCES",
    (0x64, 0x00): "ILLEGAL MODE FOR THIS TRACK",
}
_DESCRIPTOR = (0x72, 0x73)  # response codes (SPC-4 4.5.1)
_FIXED = (0x70, 0x71)


def parts_of(sense: bytes) -> tuple[int, int, int] | None:
    """Return sense key, additional sense code and qualifier of sense data in either format; None for anything else."""
    code = sense[0] & 0x7F if sense else 0
    if code in _DESCRIPTOR and len(sense) >= 4:
        return sense[1] & 0xF, sense[2], sense[3]
    if code in _FIXED and len(sense) >= 14:
        return sense[2] & 0xF, sense[12], sense[13]
    return None


def words_of(sense: bytes) -> str:
    """Return sense data as `MEDIUM ERROR: UNRECOVERED READ ERROR (11/00)`, or its bytes where it is no sense data."""
    parts = parts_of(sense)
    if parts is None:
        return sense.hex(" ")
    key, asc, ascq = parts
    name = SenseKey(key).name.replace("_", " ") if key in SenseKey.__members__.values() else f"SENSE KEY {key:X}h"
    what = ADDITIONAL.get((asc, ascq))
    return f"{name}: {what} ({asc:02X}/{ascq:02X})" if what is not None else f"{name}: {asc:02X}/{ascq:02X}"
