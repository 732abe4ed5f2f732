"""Layout of what TCM-user shares with user space: offsets, flags and operations.

From linux/target_core_user.h (mailbox version 2) and Documentation/target/tcmu-design.rst. Offsets are bytes; those
of the mailbox count from the start of the mapping, those of an entry from the start of the entry, and an iovec's base
is an offset from the start of the mapping. All numbers are of the machine's own byte order.
"""

from __future__ import annotations

import struct
import sys
from enum import IntEnum, IntFlag

BYTE_ORDER = sys.byteorder

# -- struct tcmu_mailbox ------------------------------------------------------------------------------------------

MAILBOX = struct.Struct("=HHII")  # version, flags, cmdr_off, cmdr_size
MAILBOX_VERSION = 2
CMD_HEAD = 12  # u32, written by the kernel: where the next entry will be, from cmdr_off on
CMD_TAIL = 64  # u32, written by us, on a cache line of its own: what lies before it is done
MAILBOX_SIZE = 128


class Capability(IntFlag):
    """Flags of the mailbox: what this kernel offers."""

    OUT_OF_ORDER = 1 << 0  # TCMU_MAILBOX_FLAG_CAP_OOOC, since 4.6
    READ_LEN = 1 << 1  # since 4.19
    TMR = 1 << 2  # since 5.9
    KEEP_BUF = 1 << 3  # since 5.15


# -- struct tcmu_cmd_entry_hdr: len_op u32 @0, cmd_id u16 @4, kflags u8 @6, uflags u8 @7 ---------------------------

OP_MASK = 0x7  # the low bits of len_op; the rest is the entry's length, a multiple of 8
LEN_MASK = 0xFFFFFFF8


class EntryOp(IntEnum):
    """enum tcmu_opcode."""

    PAD = 0
    CMD = 1
    TMR = 2


UFLAGS = 7  # u8, written by us


class UserFlag(IntFlag):
    """Flags of a finished entry."""

    UNKNOWN_OP = 0x1
    READ_LEN = 0x2
    KEEP_BUF = 0x4


# -- struct tcmu_cmd_entry ----------------------------------------------------------------------------------------

# The request: cmd_id, iov_cnt, iov_bidi_cnt, cdb_off, and the base and length of the first iovec.
REQUEST = struct.Struct("=4xH2xII8xQ16xQQ")
IOVEC = 48  # struct iovec[iov_cnt + iov_bidi_cnt]
IOVEC_PAIR = struct.Struct("=QQ")  # base, length
ENTRY_MIN = 112  # sizeof(struct tcmu_cmd_entry): room for the response, whatever the request needs

# The response lies over the request: cmd_id, kflags, uflags, scsi_status, read_len; then the sense data.
RESPONSE = struct.Struct("=HBBB3xI")
RESPONSE_AT = 4
SENSE = 16
SENSE_SIZE = 96

# -- struct tcmu_tmr_entry ----------------------------------------------------------------------------------------

TMR = struct.Struct("=8xB3xI")  # tmr_type, cmd_cnt
TMR_IDS = 32  # u16[cmd_cnt]


class TmrType(IntEnum):
    """Task management functions that the kernel tells of (TCMU_TMR_*)."""

    UNKNOWN = 0
    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LUN_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    LUN_RESET_PRO = 128  # commands aborted by PERSISTENT RESERVE OUT, PREEMPT AND ABORT


# -- generic netlink ----------------------------------------------------------------------------------------------

FAMILY = "TCM-USER"
FAMILY_VERSION = 2
MULTICAST_GROUP = "config"


class Netlink(IntEnum):
    """enum tcmu_genl_cmd."""

    ADDED_DEVICE = 1
    REMOVED_DEVICE = 2
    RECONFIG_DEVICE = 3
    ADDED_DEVICE_DONE = 4
    REMOVED_DEVICE_DONE = 5
    RECONFIG_DEVICE_DONE = 6
    SET_FEATURES = 7


class Attribute(IntEnum):
    """enum tcmu_genl_attr, with the type of each."""

    DEVICE = 1  # string
    MINOR = 2  # u32
    PAD = 3
    DEV_CFG = 4  # string
    DEV_SIZE = 5  # u64
    WRITECACHE = 6  # u8
    CMD_STATUS = 7  # s32
    DEVICE_ID = 8  # u32
    SUPP_KERN_CMD_REPLY = 9  # u8
