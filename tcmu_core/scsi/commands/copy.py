"""EXTENDED COPY (LID1) and RECEIVE COPY RESULTS between the units of one target (SPC-4 6.4, 6.17 to 6.20)."""

from __future__ import annotations

from dataclasses import dataclass

from tcmu_core.errors import (
    CopyAborted,
    HardwareError,
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    ParameterListLengthError,
    WriteProtected,
)
from tcmu_core.scsi.command import Command, Nexus, TaskAttribute
from tcmu_core.scsi.commands.data import flushed, parameter_list, put_blocks
from tcmu_core.scsi.copies import UNDER_WAY, WELL, WITH_ERRORS, CopyResult
from tcmu_core.scsi.limits import CHUNK
from tcmu_core.scsi.opcodes import Access, Op, Opcode
from tcmu_core.scsi.steps import PAUSE, Steps
from tcmu_core.scsi.taskset import EVERYTHING, Span
from tcmu_core.scsi.unit import Unit

MAX_TARGETS, MAX_SEGMENTS = 16, 16
MAX_LIST_LENGTH = 4096  # bytes of all descriptors
MAX_SEGMENT_BYTES = 64 << 20
BLOCK_TO_BLOCK, IDENTIFICATION = 0x02, 0xE4  # descriptor type codes (SPC-4 tables 129, 115)
_TARGET_LENGTH, _SEGMENT_LENGTH, _HEADER_LENGTH = 32, 28, 16
RESET = "a unit of the copy was reset"
_NAA = 0x03
# What it does to the units, as their reservations see it.
_READING = Opcode(Op.READ_10, "EXTENDED COPY reads", b"", access=Access.READ)
_WRITING = Opcode(Op.WRITE_10, "EXTENDED COPY writes", b"", access=Access.WRITE)


class TooManyTargets(InvalidFieldInParameterList):
    """Too many target descriptors."""

    ascq = 0x06


class UnsupportedTarget(InvalidFieldInParameterList):
    """Unsupported target descriptor type code."""

    ascq = 0x07


class TooManySegments(InvalidFieldInParameterList):
    """Too many segment descriptors."""

    ascq = 0x08


class UnsupportedSegment(InvalidFieldInParameterList):
    """Unsupported segment descriptor type code."""

    ascq = 0x09


class TargetNotReachable(CopyAborted):
    """Copy target device not reachable: no unit of this target has that name."""

    ascq = 0x02


class UnreachableTarget(CopyAborted):
    """Unreachable copy target: a segment names a target descriptor that is not in the list."""

    asc, ascq = 0x08, 0x04


class PastTheEnd(CopyAborted):
    """A segment lies past the end of a device; no additional sense says so (SPC-4 6.4.6.3)."""

    asc, ascq = 0x00, 0x00


class WrongDeviceType(CopyAborted):
    """Incorrect copy target device type."""

    ascq = 0x03


@dataclass(frozen=True, slots=True)
class Segment:
    """A block to block segment: whole blocks of the source, as bytes, to an offset (bytes) of the destination."""

    source: Unit
    destination: Unit
    source_offset: int
    destination_offset: int
    length: int


def extended_copy(unit: Unit, command: Command) -> Steps:
    """EXTENDED COPY (LID1): SPC-4 6.4. Everything is checked before the first block moves."""
    length = int.from_bytes(command.cdb[10:14], "big")
    if not length:
        return
    if length < _HEADER_LENGTH:
        raise ParameterListLengthError
    data = parameter_list(command, min(length, command.length))
    if len(data) < length:
        raise ParameterListLengthError
    identifier, usage = data[0], data[1] >> 3 & 3
    targets_length = int.from_bytes(data[2:4], "big")
    segments_length, inline = int.from_bytes(data[8:12], "big"), int.from_bytes(data[12:16], "big")
    if usage == 1:
        raise InvalidFieldInParameterList("LIST ID USAGE 01b is reserved", field=(1, 4), in_cdb=False)
    if usage == 3 and identifier:
        raise InvalidFieldInParameterList("LIST IDENTIFIER must be zero", field=(0, 7), in_cdb=False)
    if inline:
        raise InvalidFieldInParameterList("INLINE DATA is not supported", field=(12, 7), in_cdb=False)
    if targets_length + segments_length > MAX_LIST_LENGTH:
        raise ParameterListLengthError
    if targets_length > MAX_TARGETS * _TARGET_LENGTH:
        raise TooManyTargets(field=(2, 7), in_cdb=False)
    if _HEADER_LENGTH + targets_length + segments_length > length:
        raise ParameterListLengthError
    targets = _targets(unit, data[_HEADER_LENGTH : _HEADER_LENGTH + targets_length])
    start = _HEADER_LENGTH + targets_length
    segments = _segments(targets, data[start : start + segments_length], start)
    for segment in segments:
        _may(segment, command.nexus)
    visits = _visits(unit, command, segments)
    moved = count = 0

    def note(status: int) -> None:
        if usage != 3:
            unit.copies.keep(command.nexus, identifier, CopyResult(status, count, moved))

    note(UNDER_WAY)
    try:
        for visit in visits:
            yield from visit.enter()
        for segment in segments:
            yield from _copy(unit, segment, command.nexus, visits)
            moved += segment.length
            count += 1
            note(UNDER_WAY)
    finally:
        for visit in visits:
            visit.leave()
        note(WELL if count == len(segments) else WITH_ERRORS)


class Visit:
    """A copy's place in the task set of a unit that it reads or writes: like any command there it can be waited for."""

    def __init__(self, unit: Unit, command: Command, spans: tuple[Span, ...], *, alone: bool) -> None:
        self.unit = unit
        self._spans = spans
        self._alone = alone
        self._command = Command(command.cdb, [], 0, unit.twin(command.nexus))

    @property
    def aborted(self) -> bool:
        """Whether somebody has aborted what is in flight on the unit."""
        return self._command.aborted

    def enter(self) -> Steps:
        """Ask for the blocks, and wait for them."""
        turn = self.unit.tasks.admit(self._command, self._spans, alone=self._alone)
        if turn is not None:
            try:
                yield turn
            except HardwareError:  # its turn was cancelled
                raise CopyAborted(RESET) from None

    def leave(self) -> None:
        """Let go of the blocks."""
        for told in self.unit.tasks.end(self._command):
            told()


def _visits(unit: Unit, command: Command, segments: list[Segment]) -> list[Visit]:
    """Return the places to ask for, in the order of LUNs: everybody asks in that order, so nobody waits in a circle."""
    spans: dict[Unit, list[Span]] = {}
    for segment in segments:
        for one, offset in ((segment.source, segment.source_offset), (segment.destination, segment.destination_offset)):
            first = offset // one.block_size
            spans.setdefault(one, []).append((first, first + segment.length // one.block_size))
    ordered = command.attribute == TaskAttribute.ORDERED
    if ordered:
        spans[unit] = [EVERYTHING]
    return [
        Visit(one, command, tuple(touched), alone=ordered and one is unit)
        for one, touched in sorted(spans.items(), key=lambda item: item[0].lun)
    ]


def _targets(unit: Unit, data: bytes) -> list[Unit]:
    """Return the units that the CSCD descriptors name (SPC-4 6.4.5)."""
    if len(data) % _TARGET_LENGTH:
        raise ParameterListLengthError
    known = list(unit.around.units.values())
    found = []
    for at in range(0, len(data), _TARGET_LENGTH):
        one = data[at : at + _TARGET_LENGTH]
        if one[0] != IDENTIFICATION:
            raise UnsupportedTarget(field=(_HEADER_LENGTH + at, 7), in_cdb=False)
        if one[1] & 0x1F:  # LU ID TYPE and NUL above it are obsolete, and ignored
            raise WrongDeviceType
        wanted = one[8 : 8 + one[7]]
        match = [other for other in known if one[5] & 0x3F == _NAA and other.identity.naa == wanted]
        if not match:
            raise TargetNotReachable
        found.append(match[0])
    return found


def _segments(targets: list[Unit], data: bytes, base: int) -> list[Segment]:
    """Return the block to block segments (SPC-4 6.4.6.3)."""
    segments: list[Segment] = []
    at = 0
    while at < len(data):
        one = data[at : at + _SEGMENT_LENGTH]
        if one[0] != BLOCK_TO_BLOCK:
            raise UnsupportedSegment(field=(base + at, 7), in_cdb=False)
        if len(one) < _SEGMENT_LENGTH or int.from_bytes(one[2:4], "big") != _SEGMENT_LENGTH - 4:
            raise InvalidFieldInParameterList("DESCRIPTOR LENGTH", field=(base + at + 2, 7), in_cdb=False)
        if len(segments) == MAX_SEGMENTS:
            raise TooManySegments(field=(8, 7), in_cdb=False)
        source, destination = (int.from_bytes(one[first : first + 2], "big") for first in (4, 6))
        if max(source, destination) >= len(targets):
            raise UnreachableTarget
        one_source, one_destination = targets[source], targets[destination]
        count = int.from_bytes(one[10:12], "big")
        counted = one_destination if one[1] & 0x02 else one_source  # DC: the count is of destination blocks
        length = count * counted.block_size
        source_lba, destination_lba = int.from_bytes(one[12:20], "big"), int.from_bytes(one[20:28], "big")
        if length % one_source.block_size or length % one_destination.block_size:
            raise InvalidFieldInParameterList("the block sizes do not agree", field=(base + at + 10, 7), in_cdb=False)
        segments.append(
            Segment(
                one_source,
                one_destination,
                source_lba * one_source.block_size,
                destination_lba * one_destination.block_size,
                length,
            )
        )
        at += _SEGMENT_LENGTH
    return segments


def _may(segment: Segment, nexus: Nexus) -> None:
    """Check ranges, write protection and reservations of both units, as a READ and a WRITE would be."""
    for unit, offset in ((segment.source, segment.source_offset), (segment.destination, segment.destination_offset)):
        if offset + segment.length > unit.blocks * unit.block_size:
            raise PastTheEnd
        unit.must_be_ready()
    if segment.length > MAX_SEGMENT_BYTES:
        raise InvalidFieldInParameterList("more than MAXIMUM SEGMENT LENGTH", in_cdb=False)
    if segment.destination.write_protected or segment.destination.operations.write is None:
        raise WriteProtected
    for unit in (segment.source, segment.destination):
        unit.access.check(unit.twin(nexus), _WRITING)
    segment.source.reservations.check(segment.source.twin(nexus), _READING, b"")
    segment.destination.reservations.check(segment.destination.twin(nexus), _WRITING, b"")


def _still_may(segment: Segment, nexus: Nexus, visits: list[Visit]) -> None:
    """Look again whether the copy may go on: a reset, a reservation or a sanitize operation may have come meanwhile."""
    if any(visit.aborted for visit in visits):
        raise CopyAborted(RESET)
    _may(segment, nexus)


def _copy(unit: Unit, segment: Segment, nexus: Nexus, visits: list[Visit]) -> Steps:
    """Move the bytes a chunk at a time, backwards where the ranges overlap that way."""
    source, destination = segment.source, segment.destination
    starts = list(range(0, segment.length, CHUNK))
    if source is destination and segment.source_offset < segment.destination_offset:
        starts.reverse()
    for first in starts:
        part = yield from unit.copying.take(min(CHUNK, segment.length - first))
        try:
            _still_may(segment, nexus, visits)
            yield source.operations.read(segment.source_offset + first, [part])
            _still_may(segment, nexus, visits)
            yield put_blocks(destination, (segment.destination_offset + first) // destination.block_size, [part])
        finally:
            unit.copying.give(part)
            del part  # while others run it is not kept
        yield PAUSE
    if not destination.write_cache:
        yield flushed(destination)


# -- RECEIVE COPY RESULTS ---------------------------------------------------------------------------------------------

COPY_STATUS, RECEIVE_DATA, OPERATING_PARAMETERS, FAILED_DETAILS = 0x00, 0x01, 0x03, 0x04


def receive_copy_status(unit: Unit, command: Command) -> None:
    """RECEIVE COPY RESULTS, COPY STATUS (LID1): SPC-4 6.18."""
    result = unit.copies.take(command.nexus, command.cdb[2])
    if result is None:
        raise InvalidFieldInCdb("LIST IDENTIFIER: no copy with it is known", field=(2, 7))
    units, count = 0, result.transferred  # TRANSFER COUNT UNITS: bytes, or kibibytes where those do not fit
    if count >= 1 << 32:
        units, count = 1, count >> 10
    data = (8).to_bytes(4, "big") + bytes([result.status]) + result.segments.to_bytes(2, "big") + bytes([units])
    command.put((data + count.to_bytes(4, "big"))[: int.from_bytes(command.cdb[10:14], "big")])


def operating_parameters(unit: Unit, command: Command) -> None:
    """RECEIVE COPY RESULTS, OPERATING PARAMETERS: SPC-4 6.19."""
    data = bytearray(44)
    data[4] = 0x01  # SNLID
    data[8:10] = MAX_TARGETS.to_bytes(2, "big")
    data[10:12] = MAX_SEGMENTS.to_bytes(2, "big")
    data[12:16] = MAX_LIST_LENGTH.to_bytes(4, "big")
    data[16:20] = MAX_SEGMENT_BYTES.to_bytes(4, "big")
    data[34:36] = (1).to_bytes(2, "big")  # TOTAL CONCURRENT COPIES
    data[36] = 1  # MAXIMUM CONCURRENT COPIES
    data[37] = unit.block_size.bit_length() - 1  # DATA SEGMENT GRANULARITY, log 2
    codes = bytes([BLOCK_TO_BLOCK, IDENTIFICATION])
    data[43] = len(codes)
    data += codes
    data[0:4] = (len(data) - 4).to_bytes(4, "big")
    command.put(bytes(data[: int.from_bytes(command.cdb[10:14], "big")]))
