"""Unit: the SCSI state of a disk. It knows no command; the engine runs commands on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tcmu_core.disk.device import StateStore
from tcmu_core.disk.disk import Disk
from tcmu_core.errors import MediumNotPresent, NotReadyStopped
from tcmu_core.scsi.alua import Access
from tcmu_core.scsi.attention import CAPACITY_CHANGED, LUNS_CHANGED, POWER_ON, establish
from tcmu_core.scsi.background import Background
from tcmu_core.scsi.command import Initiator, Nexus
from tcmu_core.scsi.copies import CopyResults
from tcmu_core.scsi.identity import Identity
from tcmu_core.scsi.limits import MAX_COMPARE_AND_WRITE, MAX_TRANSFER, MAX_UNMAP_BLOCKS, MAX_WRITE_SAME
from tcmu_core.scsi.modes import ModePages
from tcmu_core.scsi.opcodes import Table
from tcmu_core.scsi.reservations import Registrant, Reservations
from tcmu_core.scsi.tally import Tallies, Tally
from tcmu_core.scsi.taskset import TaskSet
from tcmu_core.scsi.workspace import Workspace


@dataclass(slots=True)
class Surroundings:
    """Where a unit stands: the units of its target by LUN, itself among them, and the name of the target."""

    units: Mapping[int, Unit] = field(default_factory=dict)
    target: str = ""

    def listed_to(self, nexus: Nexus) -> None:
        """An initiator port has the list of units: none tells it any more that this has changed (SPC-4 6.33)."""
        for unit in self.units.values():
            attentions = unit.twin(nexus).attentions
            if LUNS_CHANGED in attentions:
                attentions.remove(LUNS_CHANGED)


class Unit:
    """The state of one logical unit: nexuses, attentions, access states, reservations, mode pages, task set, medium.

    `version` counts the changes after which the engine has to look at everything anew.
    """

    def __init__(self, disk: Disk, *, store: StateStore | None = None) -> None:
        self.disk = disk
        self.device = disk.device
        self.operations = disk.operations
        self.nexuses: list[Nexus] = []
        self.tasks = TaskSet()
        self.tallies = Tallies()
        self.identity = Identity.of(self.device.serial)
        self.modes = ModePages(self.device)
        self.reservations = Reservations(store, self.device.log)
        self.access = Access()
        self.copies = CopyResults()
        self.workspace = Workspace()
        self.copying = Workspace()  # of copies: they may wait for another disk
        self.around = Surroundings({0: self})
        self.lun = 0
        self.started = True
        self.loaded = True  # START STOP UNIT ejects the medium of a removable disk, and loads it again
        self.background: Background | None = None  # a sanitize or format operation that outlives its command
        self.prevented: set[Nexus] = set()
        self.version = 0
        self.table: Table = {}  # the commands that it has, which the engine fills in
        self.refresh()

    def refresh(self) -> None:
        """Derive everything anew after the device or a mode page changed."""
        device = self.device
        wrong = self.disk.settle()
        if wrong is not None:
            device.log.error("%s; everything stays as it was", wrong)
        self.version += 1
        self.operations = self.disk.operations
        self.block_size = device.block_size
        self.blocks = device.blocks
        self.read_only = self.disk.read_only
        self.max_blocks = min(device.max_transfer_length or MAX_TRANSFER, MAX_TRANSFER) // device.block_size
        self.write_cache = self.modes.write_cache and self.operations.flush is not None

    @property
    def write_protected(self) -> bool:
        """Whether writes are refused: a read-only device, or the SWP bit."""
        return self.read_only or self.modes.software_write_protect

    @property
    def has_medium(self) -> bool:
        """Whether there is something to read: a drive may be empty, or its medium ejected."""
        return self.loaded and bool(self.blocks)

    @property
    def max_compare_blocks(self) -> int:
        """MAXIMUM COMPARE AND WRITE LENGTH (VPD page B0), blocks: each goes over twice in one transfer."""
        return min(MAX_COMPARE_AND_WRITE, self.max_blocks // 2)

    @property
    def max_unmap_blocks(self) -> int:
        """MAXIMUM UNMAP LBA COUNT (VPD page B0), blocks."""
        limit = self.device.max_discard_length
        return min(max(limit // self.block_size, 1), MAX_UNMAP_BLOCKS) if limit else MAX_UNMAP_BLOCKS

    @property
    def max_write_same_blocks(self) -> int:
        """MAXIMUM WRITE SAME LENGTH (VPD page B0), blocks."""
        return MAX_WRITE_SAME // self.block_size

    def must_be_ready(self) -> None:
        """Raise what a command that needs the medium is told while there is none, or somebody else has it."""
        if self.background is not None:
            raise self.background.not_ready()
        self.must_have_medium()

    def must_have_medium(self) -> None:
        """Raise what a command is told while there is no medium, or it is stopped."""
        if not self.has_medium:
            raise MediumNotPresent
        if not self.started:
            raise NotReadyStopped

    def identify(self, serial: str) -> None:
        """Settle the serial number, and the designators that are made of it, anew."""
        self.device.serial = serial
        self.identity = Identity.of(serial)

    # -- nexuses and unit attentions ----------------------------------------------------------------------------------

    def attach(self, initiator: Initiator) -> Nexus:
        """Make a new I_T_L nexus; its first command gets POWER ON, RESET, OR BUS DEVICE RESET OCCURRED."""
        nexus = Nexus(initiator, tally=self.tallies.of(initiator.name, self._in_use))
        nexus.attentions.append(POWER_ON)
        self.nexuses.append(nexus)
        self.access.look(self.nexuses)
        return nexus

    def _in_use(self, tally: Tally) -> bool:
        """Return whether an initiator is here, or has a command here that has not ended."""
        nexuses = (*self.nexuses, *(command.nexus for command in self.tasks.active))
        return any(nexus.tally is tally for nexus in nexuses)

    def forget(self, nexus: Nexus) -> None:
        """Drop a nexus that is lost, its RESERVE(6) and its PREVENT (SAM-5 6.3.4)."""
        if nexus in self.nexuses:
            self.nexuses.remove(nexus)
            self.access.look(self.nexuses)
        self.prevented.discard(nexus)
        self.reservations.nexus_lost(nexus)

    def twin(self, nexus: Nexus) -> Nexus:
        """Return the nexus of the same initiator port with this unit, for a nexus with a unit beside it."""
        return next((own for own in self.nexuses if own.initiator == nexus.initiator), nexus)

    def attention(self, asc: int, ascq: int, *, but: Nexus | None = None) -> None:
        """Establish a unit attention for every nexus but one."""
        for nexus in self.nexuses:
            if nexus is not but:
                establish(nexus, (asc, ascq))

    def tell(self, told: Mapping[Registrant, list[tuple[int, int]]]) -> None:
        """Establish the unit attentions that a change of the reservations has for each registrant."""
        for nexus in self.nexuses:
            for attention in told.get(Registrant.of(nexus), ()):
                establish(nexus, attention)

    def resized(self) -> None:
        """Take the device's new size; every nexus hears of it."""
        self.refresh()
        self.attention(*CAPACITY_CHANGED)
