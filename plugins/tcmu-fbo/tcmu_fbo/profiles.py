"""Profiles: the kinds of disc that the drive plays (MMC-6 5.3.1), and which one an image is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

BLOCK = 2048


class Code(IntEnum):
    """Profile numbers (MMC-6 5.3.1)."""

    NONE = 0x0000
    CD_ROM = 0x0008
    DVD_ROM = 0x0010
    DVD_RAM = 0x0012
    BD_ROM = 0x0040


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of disc: speeds are in kB/s (1000 bytes), `blocking` is the blocks of an ECC block (5.3.6)."""

    code: Code
    name: str
    read_speed: int
    blocking: int
    capacity: int  # in blocks, of the largest disc of the kind: what an image may hold to be taken for one
    write_speed: int = 0
    layer: int = 0  # blocks on one layer
    disc_type: int = 0xFF  # READ DISC INFORMATION: 00h CD-ROM, FFh undefined

    @property
    def writable(self) -> bool:
        """Return whether a disc of this kind can be written."""
        return self.write_speed > 0


# 80 minutes of 75 blocks a second; DVD and BD of two and four layers.
CD_ROM = Profile(Code.CD_ROM, "cd-rom", 176 * 48, 1, 80 * 60 * 75, disc_type=0x00)
DVD_ROM = Profile(Code.DVD_ROM, "dvd-rom", 1385 * 16, 16, 4_173_824, layer=2_298_496)
DVD_RAM = Profile(Code.DVD_RAM, "dvd-ram", 1385 * 16, 16, 2_295_104, write_speed=1385 * 12, layer=2_295_104)
BD_ROM = Profile(Code.BD_ROM, "bd-rom", 4496 * 12, 32, 62_500_864, layer=12_219_392)

# In the order in which GET CONFIGURATION lists them: the most capable first.
PROFILES = (BD_ROM, DVD_RAM, DVD_ROM, CD_ROM)
BY_NAME = {profile.name: profile for profile in PROFILES}


def by_size(blocks: int) -> Profile:
    """Return the profile of a read-only image of `blocks` blocks: the smallest kind of disc that holds it."""
    for profile in (CD_ROM, DVD_ROM):
        if blocks <= profile.capacity:
            return profile
    return BD_ROM
