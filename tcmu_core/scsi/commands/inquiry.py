"""INQUIRY: standard data and the vital product data pages (SPC-4 6.6, 7.8; SBC-4 6.6)."""

from __future__ import annotations

from tcmu_core.errors import InvalidFieldInCdb
from tcmu_core.scsi.alua import AccessState
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.identity import ASSOCIATION_UNIT, CODE_SET_ASCII, CODE_SET_BINARY, designator, of_port
from tcmu_core.scsi.limits import MAX_ATOMIC, MAX_UNMAP_DESCRIPTORS
from tcmu_core.scsi.sense import MAX_SENSE_LENGTH
from tcmu_core.scsi.unit import Unit

_VERSIONS = (0x00A0, 0x0960, 0x0460, 0x04C0, 0x0600)  # SAM-5, iSCSI, SPC-4, SBC-3, SBC-4 (SPC-4 6.6.2)
_VERSIONS_OTHER = (0x00A0, 0x0960, 0x0460)
_IDENTIFICATION = 0x83
_NOT_CONNECTED = 0x20  # PERIPHERAL QUALIFIER 001b


def inquiry(unit: Unit, command: Command) -> None:
    """INQUIRY: SPC-4 6.6."""
    cdb = command.cdb
    room, port = int.from_bytes(cdb[3:5], "big"), command.nexus.initiator.port
    if cdb[1] & 0x01:
        if cdb[2] not in vpd_pages(unit):
            raise InvalidFieldInCdb("there is no such VPD page", field=(2, 7))
        body = identification(unit, port) if cdb[2] == _IDENTIFICATION else _VPD[cdb[2]](unit)
        page = bytes([_peripheral(unit, port), cdb[2]]) + len(body).to_bytes(2, "big") + body
        command.put(page[:room])
        return
    if cdb[2]:
        raise InvalidFieldInCdb("PAGE CODE without EVPD", field=(2, 7))
    command.put(standard(unit, port)[:room])


def _peripheral(unit: Unit, port: int) -> int:
    """Return the first byte: the device type, which is not connected to an unavailable port (SPC-4 5.15.2.7)."""
    unavailable = unit.access.state(port) is AccessState.UNAVAILABLE
    return unit.device.device_type | (_NOT_CONNECTED if unavailable else 0)


def standard(unit: Unit, port: int) -> bytes:
    """Return the standard INQUIRY data (SPC-4 6.6.2), with version descriptors: 96 bytes."""
    device = unit.device
    data = bytearray(96)
    data[0] = _peripheral(unit, port)
    data[1] = 0x80 if device.removable else 0x00
    data[2] = 0x06  # SPC-4
    data[3] = 0x12  # HISUP, response data format 2
    data[4] = len(data) - 5
    if device.device_type == 0x00:
        data[5] = 0x08  # 3PC: EXTENDED COPY
    data[5] |= unit.access.arrangement.tpgs << 4
    data[6] = 0x10 if len(unit.access.ports) > 1 else 0x00  # MULTIP
    data[7] = 0x02  # CMDQUE
    data[8:16] = _ascii(device.vendor, 8)
    data[16:32] = _ascii(device.product, 16)
    data[32:36] = _ascii(device.revision, 4)
    for number, version in enumerate(_VERSIONS if device.device_type == 0x00 else _VERSIONS_OTHER):
        data[58 + 2 * number : 60 + 2 * number] = version.to_bytes(2, "big")
    return bytes(data)


def _ascii(text: str, length: int) -> bytes:
    return text.encode("ascii", "replace")[:length].ljust(length)


def vpd_pages(unit: Unit) -> list[int]:
    """Return the codes of the VPD pages that this unit has."""
    pages = [0x00, 0x80, _IDENTIFICATION, 0x86]
    if unit.device.device_type == 0x00:
        pages += [0xB0, 0xB1]
        pages += [0xB2]
    return pages


def _supported(unit: Unit) -> bytes:
    return bytes(vpd_pages(unit))


def _serial(unit: Unit) -> bytes:
    return unit.identity.serial.encode("ascii", "replace")


def identification(unit: Unit, port: int) -> bytes:
    """Return the designation descriptors of VPD page 83 (SPC-4 7.8.6), as this target port has them."""
    identity = unit.identity
    vendor = _ascii(unit.device.vendor, 8) + _serial(unit)
    data = designator(CODE_SET_BINARY, 0x03 | ASSOCIATION_UNIT, identity.naa)
    data += designator(CODE_SET_ASCII, 0x01 | ASSOCIATION_UNIT, vendor)
    if unit.around.target:
        data += of_port(unit.around.target, port, unit.access.group(port))
    return data


def _extended(unit: Unit) -> bytes:
    data = bytearray(60)  # page length 3Ch (SPC-4 7.8.7)
    data[5 - 4] = 0x27  # UASK_SUP, HEADSUP, ORDSUP, SIMPSUP
    data[6 - 4] = 0x01 if unit.operations.flush is not None else 0x00  # V_SUP: a volatile cache
    data[7 - 4] = 0x01  # LUICLR
    data[13 - 4] = MAX_SENSE_LENGTH
    return bytes(data)


def _block_limits(unit: Unit) -> bytes:
    device, size = unit.device, unit.block_size
    most = unit.max_blocks
    optimal = min(device.optimal_transfer_length // size, most)
    data = bytearray(64)  # numbered as SBC-4 6.6.4 does, the header included
    data[4] = 0x01  # WSNZ
    writable = unit.operations.write is not None
    if writable:
        data[5] = unit.max_compare_blocks
    # OPTIMAL TRANSFER LENGTH GRANULARITY: what the storage reads, writes and frees as a whole
    granularity = max(device.physical_block_size or size, device.discard_granularity) // size
    data[6:8] = min(granularity, 0xFFFF).to_bytes(2, "big")
    data[8:12] = min(most, 0xFFFFFFFF).to_bytes(4, "big")
    data[12:16] = min(optimal, 0xFFFFFFFF).to_bytes(4, "big")
    if unit.operations.discard is not None:
        data[20:24] = unit.max_unmap_blocks.to_bytes(4, "big")
        data[24:28] = MAX_UNMAP_DESCRIPTORS.to_bytes(4, "big")
        granularity = max(device.discard_granularity // size, 1)
        data[28:32] = granularity.to_bytes(4, "big")
        data[32:36] = (0x80000000 | (device.discard_alignment // size % granularity)).to_bytes(4, "big")
    if writable:
        data[36:44] = unit.max_write_same_blocks.to_bytes(8, "big")
        data[44:48] = (min(MAX_ATOMIC // size, most)).to_bytes(4, "big")
    return bytes(data[4:])


def _characteristics(unit: Unit) -> bytes:
    data = bytearray(64)  # SBC-4 6.6.2
    data[4:6] = (1 if unit.device.solid_state else 0).to_bytes(2, "big")
    data[7] = 0x40  # WABEREQ 01b: what was erased can be read, and reads well
    data[8] = 0x02  # FUAB
    return bytes(data[4:])


def _provisioning(unit: Unit) -> bytes:
    flags = kind = 0
    if unit.operations.discard is not None:
        flags = 0xE4  # LBPU, LBPWS, LBPWS10, LBPRZ 001b: an unmapped block reads as zeros (SBC-4 6.6.6)
        kind = 2 if unit.device.thin else 0
    return bytes([0, flags, kind, 0])


_VPD = {
    0x00: _supported,
    0x80: _serial,
    0x86: _extended,
    0xB0: _block_limits,
    0xB1: _characteristics,
    0xB2: _provisioning,
}
