"""Which way the data of a CDB goes, as far as its operation code alone tells.

An initiator that sends a write as a read must not have memory of ours written to its disk, nor one that sends a read as
a write be told GOOD for data that it never got: such a command runs without data.
"""

from __future__ import annotations

from tcmu_core.scsi.opcodes import Op

ANY, IN, OUT = 0, 1, 2

_IN = (
    Op.REQUEST_SENSE, Op.READ_6, Op.INQUIRY, Op.MODE_SENSE_6, Op.RECEIVE_DIAGNOSTIC_RESULTS, Op.READ_CAPACITY_10,
    Op.READ_10, Op.READ_DEFECT_DATA_10, Op.LOG_SENSE, Op.MODE_SENSE_10, Op.PERSISTENT_RESERVE_IN,
    Op.RECEIVE_COPY_RESULTS, Op.READ_16, Op.SERVICE_ACTION_IN_16, Op.REPORT_LUNS, Op.MAINTENANCE_IN, Op.READ_12,
    Op.READ_DEFECT_DATA_12,
)  # fmt: skip
_OUT = (
    Op.FORMAT_UNIT, Op.WRITE_6, Op.MODE_SELECT_6, Op.SEND_DIAGNOSTIC, Op.WRITE_10, Op.WRITE_AND_VERIFY_10,
    Op.VERIFY_10, Op.WRITE_SAME_10, Op.UNMAP, Op.SANITIZE, Op.MODE_SELECT_10, Op.PERSISTENT_RESERVE_OUT,
    Op.EXTENDED_COPY, Op.COMPARE_AND_WRITE, Op.WRITE_16, Op.ORWRITE_16, Op.WRITE_AND_VERIFY_16, Op.VERIFY_16,
    Op.WRITE_SAME_16, Op.WRITE_ATOMIC_16, Op.MAINTENANCE_OUT, Op.WRITE_12, Op.WRITE_AND_VERIFY_12, Op.VERIFY_12,
)  # fmt: skip

DIRECTION = bytes(IN if code in _IN else OUT if code in _OUT else ANY for code in range(256))
