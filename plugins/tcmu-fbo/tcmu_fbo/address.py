"""Addresses on a CD: minutes, seconds and frames (MMC-6 4.2.4.3, MSF)."""

from __future__ import annotations

FRAMES = 75  # blocks a second
PREGAP = 150  # blocks in front of LBA 0
MAX_MSF = (255, 59, 74)  # what a long disc's address is given as


def msf(lba: int) -> tuple[int, int, int]:
    """Return LBA as minute, second and frame; the last of all for what they can't express."""
    minute, rest = divmod(lba + PREGAP, 60 * FRAMES)
    return (minute, *divmod(rest, FRAMES)) if minute <= MAX_MSF[0] else MAX_MSF


def msf_address(lba: int) -> int:
    """Return LBA in MSF form as it stands in an address field of 32 bits."""
    return int.from_bytes(bytes(msf(lba)), "big")


def lba_of(minute: int, second: int, frame: int) -> int:
    """Return the LBA of an MSF address; negative in front of LBA 0."""
    return (minute * 60 + second) * FRAMES + frame - PREGAP
