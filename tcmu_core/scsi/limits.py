"""What one command may ask for, in bytes and blocks: what VPD page B0 says, and the commands keep to."""

from __future__ import annotations

MAX_TRANSFER = 16 << 20  # bytes of one command, where the device sets no lower limit: transports move no more
CHUNK = 1 << 20  # bytes that a command of several steps holds in memory, and moves before others have their turn
MAX_COMPARE_AND_WRITE = 255  # blocks: one byte in VPD page B0
MAX_ATOMIC = 1 << 20  # bytes: an honest bound on what one write has for itself
MAX_UNMAP_DESCRIPTORS = 256
MAX_UNMAP_BLOCKS = 1 << 20  # of one command: it must end before an initiator gives up on it
MAX_WRITE_SAME = 16 << 20  # bytes of one command: likewise
MAX_PARAMETERS = 1 << 16  # bytes of a parameter list that is read whole
MAX_SETTINGS = 1 << 12  # ... and of one of mode pages or port groups, which takes more time for each byte
