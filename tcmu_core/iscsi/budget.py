"""Who may keep how much: one budget for a process, one account for each connection.

Everything large that a connection makes us keep is a block of its account, and counts in full for as long as any view
into it lives; what it was promised counts as if it were there already. What an account may take beyond its guaranteed
share is no more than what is free for everybody, so that some of the budget always stays free, whoever comes first.
"""

from __future__ import annotations

from collections import deque

from tcmu_core.posix import address

ALIGNMENT = 512  # bytes: a block begins at a multiple
OVERHEAD = 512  # bytes: what the interpreter adds to a block, or to a PDU that is kept


class Budget:
    """The bytes that all connections of a process may take together, besides their guaranteed shares."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        # Blocks die wherever their last view does, in a thread of a handler too: appending is safe there.
        self._returned: deque[tuple[Account, int]] = deque()

    @property
    def used(self) -> int:
        """The bytes that are taken."""
        self.settle()
        return self._used

    def settle(self) -> None:
        """Note what has been returned."""
        returned = self._returned
        while returned:
            account, size = returned.popleft()
            account.release(size)

    def account(self, limit: int, guaranteed: int, spare: int = 0) -> Account:
        """Return a new account that may take `limit` bytes at most, of which it always has `guaranteed`.

        Data leaves `spare` bytes of them to what is received.
        """
        return Account(self, limit, min(guaranteed, limit), spare)


class Account:
    """What one connection makes us keep, in bytes. Used on the loop's thread alone."""

    def __init__(self, budget: Budget, limit: int, guaranteed: int, spare: int) -> None:
        self._spare = spare
        self.budget = budget
        self.limit = limit
        self.guaranteed = guaranteed
        self._used = 0

    @property
    def used(self) -> int:
        """The bytes that are taken."""
        self.budget.settle()
        return self._used

    def allows(self, size: int) -> bool:
        """Return whether it may take `size` bytes more."""
        free = self.budget.total - self.budget.used
        return self._used + size <= max(self.guaranteed, min(self.limit, free))

    def allows_data(self, size: int) -> bool:
        """Return whether it may take `size` bytes for data, and still hear what comes next."""
        return self.allows(size + self._spare)

    def charge(self, size: int) -> None:
        """Take `size` bytes: without asking, which is `allows`' part."""
        self._used += size
        self.budget._used += size

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        self._used -= size
        self.budget._used -= size

    def block(self, size: int) -> memoryview:
        """Return `size` bytes of memory, which count until the last view of them has gone.

        It begins where direct I/O can begin, on nearly every disk.
        """
        self.charge(size + ALIGNMENT + OVERHEAD)
        block = memoryview(_Block(self, size + ALIGNMENT))
        skew = -(address(block) or 0) % ALIGNMENT
        return block[skew : skew + size]


class _Block(bytearray):
    """Memory that gives itself back."""

    __slots__ = ("_entry",)

    def __new__(cls, account: Account, size: int) -> _Block:
        return super().__new__(cls)

    def __init__(self, account: Account, size: int) -> None:
        super().__init__(size)
        self._entry = (account, size + OVERHEAD)

    def __del__(self) -> None:
        account = self._entry[0]
        account.budget._returned.append(self._entry)
