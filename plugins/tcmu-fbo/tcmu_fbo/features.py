"""Features of the drive (MMC-6 5.3), as GET CONFIGURATION reports them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcmu_fbo.layout import Field, Layout, flag, long, word
from tcmu_fbo.profiles import BLOCK, PROFILES, Code

if TYPE_CHECKING:
    from tcmu_fbo.drive import Drive

HEADER = Layout(8, data_length=long(0), current_profile=word(6))  # MMC-6, GET CONFIGURATION
DESCRIPTOR = Layout(
    4, code=word(0), version=Field(2, 5, 4), persistent=flag(2, 1), current=flag(2, 0), additional_length=Field(3)
)  # MMC-6 5.2.2
PROFILE = Layout(4, number=word(0), current=flag(2, 0))  # MMC-6 5.3.1

CORE = Layout(8, interface=long(0), inq2=flag(4, 1), dbe=flag(4, 0))  # MMC-6 5.3.2
MORPHING = Layout(4, oc_event=flag(0, 1), asynchronous=flag(0, 0))  # 5.3.3
REMOVABLE = Layout(
    4,
    mechanism=Field(0, 7, 3),
    load=flag(0, 4),
    eject=flag(0, 3),
    prevent_jumper=flag(0, 2),
    dbml=flag(0, 1),
    lock=flag(0, 0),
)  # 5.3.4
RANDOM_READABLE = Layout(8, block_size=long(0), blocking=word(4), page_present=flag(6, 0))  # 5.3.6
CD_READ = Layout(4, dap=flag(0, 7), c2_flags=flag(0, 1), cd_text=flag(0, 0))  # 5.3.8
DVD_READ = Layout(4, multi_110=flag(0, 0), dual_r=flag(2, 0))  # 5.3.9
RANDOM_WRITABLE = Layout(12, last_lba=long(0), block_size=long(4), blocking=word(8), page_present=flag(10, 0))  # 5.3.10
FORMATTABLE = Layout(
    8, re_no_sa=flag(0, 3), expand=flag(0, 2), quick_certify=flag(0, 1), certify=flag(0, 0), rrm=flag(4, 0)
)  # 5.3.13
DEFECT_MANAGEMENT = Layout(4, ssa=flag(0, 7))  # 5.3.14
BD_READ = Layout(28, re_0=word(4), r_0=word(12), rom_0=word(20), rom_1=word(22))  # feature 0040h
TIMEOUT = Layout(4, group_3=flag(0, 0), unit_length=word(2))  # feature 0105h
STREAMING = Layout(4, rbcb=flag(0, 4), scs=flag(0, 3), mp2a=flag(0, 2), wspd=flag(0, 1), sw=flag(0, 0))  # feature 0107h

SCSI_FAMILY = 0x00000001  # physical interface standard (MMC-6 5.3.2)
TRAY = 1  # loading mechanism type (MMC-6 5.3.4)
BD_VERSION_1 = 0x0002  # version bitmap of a BD class: bit 1

ANY = frozenset(Code)  # also without a disc
CD = frozenset({Code.CD_ROM})
DVD = frozenset({Code.DVD_ROM, Code.DVD_RAM})
RAM = frozenset({Code.DVD_RAM})
BD = frozenset({Code.BD_ROM})


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: current while the current profile is one of `profiles`; `data` gives what follows its header."""

    code: int
    version: int
    profiles: frozenset[Code]
    data: Callable[[Drive], bytes]
    persistent: bool = False

    def encode(self, drive: Drive) -> bytes:
        """Return the feature descriptor."""
        data = self.data(drive)
        current = self.is_current(drive)
        return (
            DESCRIPTOR.pack(
                code=self.code,
                version=self.version,
                persistent=self.persistent,
                current=current,
                additional_length=len(data),
            )
            + data
        )

    def is_current(self, drive: Drive) -> bool:
        """Return whether the feature is current."""
        return drive.profile_code in self.profiles


def _profiles(drive: Drive) -> bytes:
    return b"".join(
        PROFILE.pack(number=profile.code, current=profile.code == drive.profile_code) for profile in PROFILES
    )


def _blocking(drive: Drive) -> int:
    return drive.profile.blocking if drive.profile is not None else 1


def _last_lba(drive: Drive) -> int:
    return min(drive.medium.blocks - 1, 0xFFFFFFFF) if drive.medium is not None else 0


def _nothing(drive: Drive) -> bytes:
    return b""


FEATURES = (
    Feature(0x0000, 0, ANY, _profiles, persistent=True),
    Feature(0x0001, 2, ANY, lambda drive: CORE.pack(interface=SCSI_FAMILY, dbe=1), persistent=True),
    Feature(0x0002, 1, ANY, lambda drive: MORPHING.pack(oc_event=1), persistent=True),
    Feature(0x0003, 2, ANY, lambda drive: REMOVABLE.pack(mechanism=TRAY, load=1, eject=1, lock=1), persistent=True),
    Feature(
        0x0010,
        0,
        CD | DVD | BD,
        lambda drive: RANDOM_READABLE.pack(block_size=BLOCK, blocking=_blocking(drive), page_present=1),
    ),
    Feature(0x001D, 0, CD, _nothing),
    Feature(0x001E, 2, CD, lambda drive: CD_READ.pack()),
    Feature(0x001F, 1, DVD, lambda drive: DVD_READ.pack()),
    Feature(
        0x0020,
        1,
        RAM,
        lambda drive: RANDOM_WRITABLE.pack(
            last_lba=_last_lba(drive), block_size=BLOCK, blocking=_blocking(drive), page_present=1
        ),
    ),
    Feature(0x0023, 1, RAM, lambda drive: FORMATTABLE.pack()),
    Feature(0x0024, 1, RAM, lambda drive: DEFECT_MANAGEMENT.pack()),
    Feature(0x0040, 0, BD, lambda drive: BD_READ.pack(rom_0=BD_VERSION_1, rom_1=BD_VERSION_1)),
    Feature(0x0100, 0, ANY, _nothing, persistent=True),
    Feature(0x0105, 1, ANY, lambda drive: TIMEOUT.pack(), persistent=True),
    Feature(0x0107, 3, DVD | BD | CD, lambda drive: STREAMING.pack(rbcb=1, scs=1, mp2a=1, wspd=1)),
)
