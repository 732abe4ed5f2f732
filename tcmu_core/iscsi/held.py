"""What came before its turn: requests whose CmdSN is ahead of the expected one, with the data that follows them."""

from __future__ import annotations

from dataclasses import replace

from tcmu_core.iscsi.budget import OVERHEAD, Account
from tcmu_core.iscsi.errors import PduError
from tcmu_core.iscsi.pdu import DataOut, Pdu, ScsiCommand


class Held:
    """Held requests by CmdSN, `limit` bytes at most. One that was aborted before it came holds no PDU."""

    def __init__(self, account: Account, limit: int) -> None:
        self._account = account
        self._limit = limit
        self._bytes = 0
        self._pdus: dict[int, list[Pdu]] = {}

    def __bool__(self) -> bool:
        return bool(self._pdus)

    def clear(self) -> None:
        """Forget everything."""
        self._pdus.clear()
        self._account.release(self._bytes)
        self._bytes = 0

    def add(self, cmd_sn: int, pdu: Pdu) -> None:
        """Hold a request; a second one of the same number is ignored (RFC 7143 4.2.2.1)."""
        if cmd_sn not in self._pdus:
            self._pdus[cmd_sn] = [self._copy(pdu)]

    def add_data(self, pdu: DataOut) -> bool:
        """Hold data together with the command that it belongs to; False if that is not held."""
        for pdus in self._pdus.values():
            if pdus and getattr(pdus[0], "itt", None) == pdu.itt:
                pdus.append(self._copy(pdu))
                return True
        return False

    def abort(self, cmd_sn: int) -> None:
        """Hold the place of a request that must not run any more."""
        self.pop(cmd_sn)
        self._pdus[cmd_sn] = []

    def commands(self) -> list[tuple[int, ScsiCommand]]:
        """Return the SCSI commands that are held, with their numbers."""
        return [(cmd_sn, pdus[0]) for cmd_sn, pdus in self._pdus.items() if pdus and isinstance(pdus[0], ScsiCommand)]

    def get(self, cmd_sn: int) -> list[Pdu] | None:
        """Return what is held for a number; None if nothing is."""
        return self._pdus.get(cmd_sn)

    def pop(self, cmd_sn: int) -> None:
        """Hold what there is for a number no longer."""
        self._count(-sum(len(pdu.data) + 2 * OVERHEAD for pdu in self._pdus.pop(cmd_sn, ())))

    def _copy(self, pdu: Pdu) -> Pdu:
        size = len(pdu.data) + 2 * OVERHEAD
        if self._bytes + size > self._limit or not self._account.allows_data(size):
            raise PduError("too much that is out of order", fatal=True)
        self._count(size)
        return replace(pdu, data=memoryview(bytearray(pdu.data)))

    def _count(self, size: int) -> None:
        self._bytes += size
        self._account.charge(size)
